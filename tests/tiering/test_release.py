"""Releases: what proves that a copy may go, and what goes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tiering.corpora import (
    Full,
    copy_of,
    flip,
    shard_keys,
    small,
    without_claims,
    wrapped,
)
from tiering import Corpus, Tier, catalog, open_corpus, open_tier, plan_move, release, verify
from tiering.claim import claimed
from tiering.digest import digest
from tiering.errors import Conflict, LastCopy, Unavailable, UsageError
from tiering.keys import INTERNAL
from tiering.stores import file_systems
from tiering.stores.base import ObjectInfo
from tiering.stores.file_systems import is_memory
from tiering.stores.wrappers import Wrapper


def test_release_gives_back_what_the_manifest_names_and_nothing_else(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    copy_of(corpus, disk)
    foreign = ("web/notes.txt", "web/tokens/c/99/0", "web/tokens/notes", "other/x", "web/part-000001.arrow")
    for key in foreign:
        lake.store.write(key, [b"mine"])
    before = without_claims(lake)
    freed = release(corpus, lake, copies=[disk])
    assert without_claims(lake) == dict.fromkeys(foreign, b"mine")
    assert freed >= corpus.nbytes
    assert freed + 4 * len(foreign) <= sum(map(len, before.values()))
    assert release(corpus, lake, copies=[disk]) == 0
    assert verify(corpus.at(disk)).ok


def test_release_of_one_version_keeps_what_the_other_needs(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    table = corpus.manifest.slice(0, 6)
    newer = replace(corpus.contents, table=table, intent=digest(b"newer"))
    catalog.publish(lake.store, "web", 2, newer, newer.encode())
    copy_of(corpus, disk)
    release(corpus, lake, copies=[disk])
    assert catalog.versions(lake.store, "web") == [2]
    assert verify(open_corpus(lake, "web")).ok


def refused(corpus: Corpus, tier: Tier, **options: Any) -> str:
    before = without_claims(tier)
    with pytest.raises(LastCopy) as caught:
        release(corpus, tier, **options)
    assert without_claims(tier) == before
    assert caught.value.tier in (tier.name, None)
    return str(caught.value)


def test_release_of_the_only_copy_is_refused(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    assert "no other tier named" in refused(corpus, lake)
    assert "min_copies = 0 would allow" in refused(corpus, lake, min_copies=0)
    assert "disk: no version 1 of corpus 'web'" in refused(corpus, lake, copies=[disk])
    assert without_claims(disk) == {}


@pytest.mark.parametrize("spoil", ["flip", "cut", "missing", "document", "manifest", "record"])
def test_release_against_a_copy_that_is_not_whole_is_refused(lake: Tier, disk: Tier, spoil: str) -> None:
    corpus = small(lake)
    there = copy_of(corpus, disk)
    key = shard_keys(corpus)[5]
    if spoil == "flip":
        flip(disk, key)
    elif spoil == "cut":
        disk.store.write(key, [disk.store.read(key)[:-1]])
    elif spoil == "missing":
        disk.store.delete(key)
    elif spoil == "document":
        flip(disk, "web/tokens/zarr.json")
    elif spoil == "manifest":
        flip(disk, catalog.manifest_key("web", corpus.record.manifest))
    else:
        disk.store.delete(f"web/{INTERNAL}/versions/00000001.json")
    assert "0 verified copies elsewhere, 1 needed (disk: " in refused(corpus, lake, copies=[disk])
    assert "0 verified copies" in refused(there, lake)


def test_release_needs_as_many_copies_as_asked_for(
    lake: Tier, disk: Tier, make_tier: Callable[..., Tier]
) -> None:
    corpus, third = small(lake), make_tier("third")
    copy_of(corpus, disk)
    assert "1 verified copies elsewhere, 2 needed" in refused(corpus, lake, copies=[disk], min_copies=2)
    assert "1 verified copies elsewhere, 2 needed" in refused(
        corpus, lake, copies=[disk, disk, lake], min_copies=2
    )
    copy_of(corpus, third)
    release(corpus, lake, copies=[disk, third], min_copies=2)
    assert without_claims(lake) == {}


def test_release_of_a_lasting_copy_is_not_proven_by_memory(
    lake: Tier, disk: Tier, memory: Tier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_systems, "is_memory", lambda _path: False)  # wherever this test has its folders
    corpus = small(lake)
    copy_of(corpus, memory)
    assert "memory: in memory, which is gone" in refused(corpus, lake, copies=[memory])
    copy_of(corpus, disk)
    assert "1 verified copies elsewhere, 2 needed (memory: in memory" in refused(
        corpus, lake, copies=[disk, memory], min_copies=2
    )
    release(corpus, memory, copies=[disk])
    assert without_claims(memory) == {}
    assert verify(corpus, lake).ok


@pytest.mark.skipif(not is_memory(Path("/dev/shm")), reason="/dev/shm is no file system in memory here")
def test_release_is_proven_by_memory_for_memory_and_a_folder_there_is_memory_too(lake: Tier) -> None:
    if lake.store.is_volatile():
        pytest.skip("the folders of this test are in memory too")
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
        closing(open_tier(f"{folder}/one", "one")) as one,
        closing(open_tier(f"{folder}/two", "two")) as two,
    ):
        corpus = small(lake)
        for tier in (one, two):
            copy_of(corpus, tier)
        assert "0 verified copies elsewhere" in refused(corpus, lake, copies=[one, two])
        with pytest.raises(LastCopy, match="would be in memory") as caught:
            plan_move(corpus, one, release=True)
        assert caught.value.tier == "one"
        assert release(corpus.at(one), one, copies=[two])
        assert verify(corpus, two).ok


def test_release_takes_one_place_under_two_names_for_one(
    lake: Tier, disk: Tier, tmp_path: Path, make_tier: Callable[..., Tier]
) -> None:
    corpus = small(lake)
    (tmp_path / "link").symlink_to(tmp_path / "lake")
    link = make_tier("link")
    assert verify(corpus, link).ok
    assert "the same place as a tier before it" in refused(corpus, lake, copies=[link])
    assert "the same place" in refused(corpus, link)
    assert "the same place" in refused(corpus, lake, copies=[open_tier(lake.url + "/../lake", "dots")])
    assert "the same place" in refused(corpus, lake, copies=[replace(link, read_only=True)])
    copy_of(corpus, disk)
    (tmp_path / "link2").symlink_to(tmp_path / "disk")
    assert "1 verified copies" in refused(corpus, lake, copies=[disk, make_tier("link2")], min_copies=2)
    release(corpus, link, copies=[disk, lake])
    assert without_claims(lake) == {}


def test_release_counts_read_only_places_once(
    lake: Tier, disk: Tier, tmp_path: Path, make_tier: Callable[..., Tier]
) -> None:
    corpus = small(lake)
    copy_of(corpus, disk)
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    locked, link = replace(disk, name="locked", read_only=True), make_tier("link", read_only=True)
    assert "locked: the same place" in refused(corpus, lake, copies=[locked, disk], min_copies=2)
    assert "link: read-only, and not to be told from locked" in refused(
        corpus, lake, copies=[locked, link], min_copies=2
    )
    copy_of(corpus, make_tier("third"))
    release(corpus, lake, copies=[locked, make_tier("third", read_only=True)], min_copies=2)
    assert without_claims(lake) == {}


def test_release_against_a_read_only_copy_that_is_given_up_is_refused(lake: Tier, disk: Tier) -> None:
    """Else of two releases, each against the other's copy, both would succeed."""
    corpus = small(lake)
    copy_of(corpus, disk)
    locked = replace(disk, read_only=True)
    with claimed(disk.store, "web", "0" * 64, shared=False, purpose="released"):
        assert "read-only, and somebody else is at work" in refused(corpus, lake, copies=[locked])
    with claimed(disk.store, "web", corpus.record.manifest, shared=True):  # who keeps it, or heals it
        release(corpus, lake, copies=[locked])
    assert without_claims(lake) == {}


def test_release_leaves_no_trace_on_the_tiers_that_prove_it(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    copy_of(corpus, disk)
    before = without_claims(disk)
    release(corpus, lake, copies=[disk])
    assert without_claims(disk) == before


def test_release_against_a_read_only_copy_is_allowed_and_of_one_refused(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    copy_of(corpus, disk)
    locked = replace(disk, read_only=True)
    with pytest.raises(UsageError, match="read-only"):
        release(corpus, locked)
    release(corpus, lake, copies=[locked])
    assert without_claims(lake) == {}


def test_release_of_both_copies_at_once_keeps_one(lake: Tier, disk: Tier) -> None:
    """Each is proven by the other: while one release reads its proof, the other one must not delete that."""
    corpus = small(lake)
    there = copy_of(corpus, disk)
    tried: list[str] = []

    class Meanwhile(Wrapper):
        def read(self, key: str) -> bytearray:
            if key == shard_keys(corpus)[0] and not tried:
                tried.append(key)
                with pytest.raises((Conflict, LastCopy)):
                    release(there, replace(disk, name="disk again"), copies=[lake])
            return super().read(key)

    with wrapped(disk, Meanwhile(disk.store)):
        release(corpus, lake, copies=[disk])
    assert tried
    assert verify(open_corpus(disk, "web")).ok


def test_release_of_a_corpus_that_is_being_written_is_a_conflict(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    copy_of(corpus, disk)
    with claimed(lake.store, "web", corpus.record.manifest, shared=True), pytest.raises(Conflict):
        release(corpus, lake, copies=[disk])
    assert verify(corpus).ok


def test_release_of_another_corpus_of_that_name_is_a_conflict(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    other = small(disk, seed=9)
    with pytest.raises(Conflict, match="another corpus is called 'web' there"):
        release(corpus, disk)
    assert verify(other).ok


def test_release_then_ingest_under_the_same_name_is_a_new_corpus(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    copy_of(corpus, disk)
    release(corpus, lake, copies=[disk])
    assert verify(small(lake, seed=9)).ok
    with pytest.raises(Conflict):
        corpus.at(lake)


def test_release_whose_proof_is_away_is_refused(lake: Tier, disk: Tier) -> None:
    class Away(Wrapper):
        def stat(self, key: str) -> ObjectInfo:
            raise Unavailable("nobody answers")

    corpus = small(lake)
    copy_of(corpus, disk)
    with wrapped(disk, Away(disk.store)):
        assert "disk: nobody answers" in refused(corpus, lake, copies=[disk])


def test_release_is_proven_by_a_medium_that_is_full(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    copy_of(corpus, disk)
    with wrapped(disk, Full(disk.store, 0)):
        assert release(corpus, lake, copies=[disk]) > 0
    assert without_claims(lake) == {}
    assert verify(open_corpus(disk, "web")).ok


def test_release_of_a_tier_that_is_full_makes_room(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    copy_of(corpus, disk)
    with wrapped(lake, Full(lake.store, 0)):
        assert release(corpus, lake, copies=[disk]) > 0
    assert without_claims(lake) == {}


def test_release_leaves_what_somebody_else_put_in_the_place_of_a_shard(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    key = corpus.key(corpus.manifest["key"][0].as_py())
    disk.store.write(key, [b"mine"])
    with pytest.raises(Conflict, match="not of a corpus"):
        release(corpus, disk)
    assert disk.store.read(key) == b"mine"
    assert [info.key for info in disk.store.list()] == [key]
