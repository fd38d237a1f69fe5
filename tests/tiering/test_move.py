from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dask.delayed import delayed
from distributed import Client

from tests.tiering.corpora import flip, objects, shard_keys, small, small_arrow, wrapped
from tiering import Corpus, Tier, catalog, open_corpus, open_tier, plan_move, release, verify
from tiering.claim import claimed
from tiering.digest import Buffer, digest
from tiering.errors import CapacityExceeded, Conflict, Corrupt, LastCopy, NotFound, Unavailable, UsageError
from tiering.keys import INTERNAL
from tiering.stores.base import ObjectInfo
from tiering.stores.wrappers import Wrapper

MAKERS = pytest.mark.parametrize("make", [small, small_arrow], ids=["zarr", "arrow"])


def copy_of(corpus: Corpus, tier: Tier) -> Corpus:
    plan_move(corpus, tier).run()
    return corpus.at(tier)


def data_of(tier: Tier) -> dict[str, bytes]:
    """All objects but claims."""
    return {key: data for key, data in objects(tier).items() if "/claims/" not in key}


@MAKERS
def test_move_makes_the_same_objects(lake: Tier, disk: Tier, make: Callable[..., Corpus]) -> None:
    corpus = make(lake)
    report = plan_move(corpus, disk).run()
    assert (report.moved, report.skipped, report.nbytes) == (len(corpus.manifest), 0, corpus.nbytes)
    assert data_of(disk) == data_of(lake)
    assert corpus.at(disk).others == (lake,)
    assert verify(corpus, disk).ok


def test_move_again_skips_what_is_there_and_mends_what_is_not(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    copy_of(corpus, disk)
    keys = shard_keys(corpus)
    disk.store.delete(keys[0])
    disk.store.write(keys[1], [b"short"])
    flip(disk, keys[2])
    flip(disk, "web/zarr.json")
    flip(disk, catalog.manifest_key("web", corpus.record.manifest))
    report = plan_move(corpus, disk).run()
    assert (report.moved, report.skipped) == (3, 3)
    assert data_of(disk) == data_of(lake)


def test_move_of_a_corrupt_source_names_shard_and_tier_and_publishes_nothing(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    key = shard_keys(corpus)[4]
    for spoil in (lambda: flip(lake, key), lambda: lake.store.write(key, [b"short"])):
        spoil()
        with pytest.raises(Corrupt) as caught:
            plan_move(corpus, disk).run()
        assert (caught.value.tier, caught.value.key) == ("lake", key)
        with pytest.raises(NotFound):
            open_corpus(disk, "web")
    lake.store.delete(key)
    with pytest.raises(NotFound) as missing:
        plan_move(corpus, disk).run()
    assert (missing.value.tier, missing.value.key) == ("lake", key)
    with pytest.raises(NotFound):
        open_corpus(disk, "web")


def test_move_of_a_damaged_manifest_publishes_nothing(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    plan = plan_move(corpus, disk)
    flip(lake, catalog.manifest_key("web", corpus.record.manifest))
    with pytest.raises(Corrupt, match="the manifest has other bytes"):
        plan.run()
    with pytest.raises(NotFound):
        open_corpus(disk, "web")


def test_move_of_one_version_leaves_the_other_alone(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    newer = replace(corpus.contents, intent=digest(b"newer"))
    catalog.publish(lake.store, "web", 2, newer, newer.encode())
    copy_of(open_corpus(lake, "web", 1), disk)
    assert catalog.versions(disk.store, "web") == [1]
    copy_of(open_corpus(lake, "web", 2), disk)
    assert catalog.versions(disk.store, "web") == [1, 2]


@pytest.mark.parametrize("on_cluster", [False, True])
def test_move_graph_does_what_run_does(
    lake: Tier, disk: Tier, make_tier: Callable[..., Tier], cluster: Client, on_cluster: bool
) -> None:
    corpus = small(lake)
    other = make_tier("other")
    whole = plan_move(corpus, disk, release=True).graph()
    plan_move(corpus, other).run(cluster if on_cluster else None)
    doubled = delayed(lambda moved: 2 * moved, pure=False)(whole)
    found = cluster.compute(doubled).result() if on_cluster else doubled.compute(scheduler="synchronous")
    assert found == 12
    assert data_of(disk) == data_of(other)
    assert data_of(lake) == {}
    assert verify(open_corpus(disk, "web"), client=cluster).ok


def test_move_graph_carries_no_manifest(lake: Tier, disk: Tier) -> None:
    from distributed.protocol.pickle import dumps

    corpus = small(lake, rows=4000)
    whole = plan_move(corpus, disk).graph()
    assert corpus.contents.shards == 1000
    assert len(dumps(dict(whole.dask))) < 1000 * 150


def test_move_on_a_cluster_with_a_memory_tier_runs_here(lake: Tier, memory: Tier, cluster: Client) -> None:
    corpus = small(lake)
    assert plan_move(corpus, memory).run(cluster).moved == 6
    assert verify(corpus, memory, client=cluster).ok
    with pytest.raises(UsageError, match="lives in the process that opened it"):
        cluster.compute(plan_move(small(lake, "two"), memory).graph()).result()


def test_move_then_release_leaves_one_copy(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    plan = plan_move(corpus, disk, release=True)
    plan.run()
    assert data_of(lake) == {}
    assert verify(open_corpus(disk, "web")).ok
    report = plan.run()  # all was done; nothing is left to do
    assert (report.moved, report.nbytes) == (0, 0)


def test_move_whose_release_was_cut_short_goes_on(lake: Tier, disk: Tier) -> None:
    class Sick(Wrapper):
        def delete(self, key: str) -> None:
            if key == shard_keys(corpus)[3]:
                raise Unavailable("the tier went away", tier="lake")
            super().delete(key)

    corpus = small(lake)
    plan = plan_move(corpus, disk, release=True)
    with wrapped(lake, Sick(lake.store)), pytest.raises(Unavailable):
        plan.run()
    with pytest.raises(NotFound):
        open_corpus(lake, "web")
    assert verify(open_corpus(disk, "web")).ok
    plan.run()
    assert data_of(lake) == {}


def test_release_gives_back_what_the_manifest_names_and_nothing_else(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    copy_of(corpus, disk)
    foreign = ("web/notes.txt", "web/tokens/c/99/0", "web/tokens/notes", "other/x", "web/part-000001.arrow")
    for key in foreign:
        lake.store.write(key, [b"mine"])
    before = data_of(lake)
    freed = release(corpus, lake, copies=[disk])
    assert data_of(lake) == dict.fromkeys(foreign, b"mine")
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
    before = data_of(tier)
    with pytest.raises(LastCopy) as caught:
        release(corpus, tier, **options)
    assert data_of(tier) == before
    assert caught.value.tier in (tier.name, None)
    return str(caught.value)


def test_release_of_the_only_copy_is_refused(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    assert "no other tier named" in refused(corpus, lake)
    assert "min_copies = 0 would allow" in refused(corpus, lake, min_copies=0)
    assert "disk: no version 1 of corpus 'web'" in refused(corpus, lake, copies=[disk])
    assert data_of(disk) == {}


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


def test_release_needs_as_many_copies_as_asked_for(lake: Tier, disk: Tier, memory: Tier) -> None:
    corpus = small(lake)
    copy_of(corpus, disk)
    assert "1 verified copies elsewhere, 2 needed" in refused(corpus, lake, copies=[disk], min_copies=2)
    assert "1 verified copies elsewhere, 2 needed" in refused(
        corpus, lake, copies=[disk, disk, lake], min_copies=2
    )
    copy_of(corpus, memory)
    release(corpus, lake, copies=[disk, memory], min_copies=2)
    assert data_of(lake) == {}


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
    assert data_of(lake) == {}


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
    assert data_of(lake) == {}


def test_release_against_a_read_only_copy_that_is_given_up_is_refused(lake: Tier, disk: Tier) -> None:
    """Else of two releases, each against the other's copy, both would succeed."""
    corpus = small(lake)
    copy_of(corpus, disk)
    locked = replace(disk, read_only=True)
    with claimed(disk.store, "web", "0" * 64, shared=False, purpose="released"):
        assert "read-only, and somebody else is at work" in refused(corpus, lake, copies=[locked])
    with claimed(disk.store, "web", corpus.record.manifest, shared=True):  # who keeps it, or heals it
        release(corpus, lake, copies=[locked])
    assert data_of(lake) == {}


def test_release_leaves_no_trace_on_the_tiers_that_prove_it(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    copy_of(corpus, disk)
    before = data_of(disk)
    release(corpus, lake, copies=[disk])
    assert data_of(disk) == before


def test_release_against_a_read_only_copy_is_allowed_and_of_one_refused(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    copy_of(corpus, disk)
    locked = replace(disk, read_only=True)
    with pytest.raises(UsageError, match="read-only"):
        release(corpus, locked)
    release(corpus, lake, copies=[locked])
    assert data_of(lake) == {}


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


class Full(Wrapper):
    """A medium of so many objects; what is deleted makes room again."""

    def __init__(self, inner: Any, room: int) -> None:
        super().__init__(inner)
        self.room = room

    def write(
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        if not self.exists(key):
            if self.room <= 0:
                raise CapacityExceeded("no room", tier=self.name, key=key)
            self.room -= 1
        return super().write(key, buffers, if_absent=if_absent, digest=digest)

    def delete(self, key: str) -> None:
        self.room += self.exists(key)
        super().delete(key)


def test_release_is_proven_by_a_medium_that_is_full(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    copy_of(corpus, disk)
    with wrapped(disk, Full(disk.store, 0)):
        assert release(corpus, lake, copies=[disk]) > 0
    assert data_of(lake) == {}
    assert verify(open_corpus(disk, "web")).ok


def test_release_of_a_tier_that_is_full_makes_room(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    copy_of(corpus, disk)
    with wrapped(lake, Full(lake.store, 0)):
        assert release(corpus, lake, copies=[disk]) > 0
    assert data_of(lake) == {}
