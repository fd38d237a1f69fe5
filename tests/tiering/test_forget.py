from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.tiering.corpora import flip, killed_after, objects, small, small_arrow, without_claims
from tiering import Corpus, Tier, catalog, open_corpus, plan_move, verify
from tiering.claim import claimed
from tiering.errors import Conflict, Corrupt, FormatError, LastCopy, NotFound, UsageError
from tiering.forget import forget
from tiering.gc import gc
from tiering.keys import INTERNAL


def keys(tier: Tier, name: str = "text") -> set[str]:
    return {key.removeprefix(f"{name}/") for key in objects(tier, name) if "/claims/" not in key}


@pytest.fixture
def two(lake: Tier, make_tier: Callable[..., Tier]) -> tuple[Corpus, Corpus]:
    """Versions 1 and 2 of a corpus: the second has all but the last rows, and so all but the last shard."""
    older = small_arrow(lake, rows=24)
    fewer = small_arrow(make_tier("other"), rows=20)
    table = fewer.manifest
    assert table["digest"].to_pylist() == older.manifest["digest"].to_pylist()[: len(table)]
    catalog.publish(lake.store, "text", 2, fewer.contents, fewer.contents.encode())
    return older, open_corpus(lake, "text", 2)


def own_keys(older: Corpus, newer: Corpus) -> set[str]:
    record = older.record
    return (older.contents.named() - newer.contents.named()) | {
        f"{INTERNAL}/versions/{record.version:08d}.json",
        f"{INTERNAL}/manifests/{record.manifest}.parquet",
    }


def test_forget_an_old_version_drops_what_it_alone_names(lake: Tier, two: tuple[Corpus, Corpus]) -> None:
    older, newer = two
    before = keys(lake)
    freed = forget(lake, "text", 1)
    assert freed > 0
    assert before - keys(lake) == own_keys(older, newer)
    assert verify(newer).ok
    assert verify(newer).extra == ()
    assert catalog.versions(lake.store, "text") == [2]


def test_forget_the_newest_needs_proof_or_the_words_last_copy(
    lake: Tier, disk: Tier, two: tuple[Corpus, Corpus]
) -> None:
    older, newer = two
    before = objects(lake)
    for version in (2, None):
        with pytest.raises(LastCopy, match="0 verified copies elsewhere"):
            forget(lake, "text", version, copies=[disk])
    assert {key for key in before if "/claims/" not in key} <= set(objects(lake))
    plan_move(newer, disk).run()
    with pytest.raises(LastCopy, match="1 verified copies elsewhere, 2 needed"):
        forget(lake, "text", copies=[disk], min_copies=2)
    with pytest.raises(LastCopy, match="min_copies = 0"):
        forget(lake, "text", copies=[disk], min_copies=0)
    forget(lake, "text", 2, copies=[disk])
    assert open_corpus(lake, "text").record == older.record
    assert verify(older).ok
    forget(lake, "text", last_copy=True)
    assert keys(lake) == set()


def test_forget_all_with_proof_of_the_newest(lake: Tier, disk: Tier, two: tuple[Corpus, Corpus]) -> None:
    plan_move(two[1], disk).run()
    forget(lake, "text", copies=[disk])
    assert keys(lake) == set()
    assert verify(open_corpus(disk, "text")).ok
    assert small_arrow(lake).version == 1


def test_forget_of_a_damaged_proof_is_refused(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    plan_move(corpus, disk).run()
    flip(disk, "web/tokens/c/2/0")
    with pytest.raises(LastCopy):
        forget(lake, "web", copies=[disk])
    assert verify(corpus).ok


def test_forget_what_is_not_there_or_at_work_or_read_only(
    lake: Tier, make_tier: Callable[..., Tier], two: tuple[Corpus, Corpus]
) -> None:
    with pytest.raises(NotFound, match="no corpus 'nope'"):
        forget(lake, "nope")
    with pytest.raises(NotFound, match="no version 7"):
        forget(lake, "text", 7)
    with pytest.raises(UsageError, match="read-only"):
        forget(make_tier("lake", read_only=True), "text")
    with claimed(lake.store, "text", two[1].record.manifest, shared=True), pytest.raises(Conflict):
        forget(lake, "text", 1)
    rival = claimed(lake.store, "text", "0" * 64, shared=False, purpose="forgotten")
    with rival, pytest.raises(Conflict, match="is being forgotten by"):
        forget(lake, "text", 1)
    assert all(verify(corpus).ok for corpus in two)


def test_forget_beside_a_version_that_cannot_be_read_deletes_nothing(
    lake: Tier, two: tuple[Corpus, Corpus]
) -> None:
    flip(lake, catalog.manifest_key("text", two[1].record.manifest))
    before = keys(lake)
    with pytest.raises(Corrupt):
        forget(lake, "text", 1)
    assert keys(lake) == before


def test_forget_killed_anywhere_leaves_whole_versions_and_gc_takes_the_rest(
    make_tier: Callable[..., Tier],
) -> None:
    for step in range(1, 12):
        lake = make_tier(f"lake{step}")
        small_arrow(lake, rows=24)
        fewer = small_arrow(make_tier(f"other{step}"), rows=20)
        catalog.publish(lake.store, "text", 2, fewer.contents, fewer.contents.encode())
        done = False
        with killed_after(step, lake):
            forget(lake, "text", 1)
            done = True
        gc(lake, older_than_seconds=0)
        for version in catalog.versions(lake.store, "text"):
            found = verify(open_corpus(lake, "text", version))
            assert found.ok
            assert found.extra == ()
        assert 2 in catalog.versions(lake.store, "text")
        if done:
            break
    assert done


@pytest.mark.parametrize("spoilt", ["manifest", "older manifest", "record", "manifest away", "all"])
def test_forget_of_a_last_copy_that_nobody_can_read_clears_it(
    lake: Tier, make_tier: Callable[..., Tier], two: tuple[Corpus, Corpus], spoilt: str
) -> None:
    older, newer = two
    manifest = catalog.manifest_key("text", (older if spoilt == "older manifest" else newer).record.manifest)
    if spoilt == "manifest away":
        lake.store.delete(manifest)
    elif spoilt != "record":
        flip(lake, manifest)
    if spoilt in ("record", "all"):
        lake.store.write(catalog.record_key("text", 2), [b"{}"])
    lake.store.write("text/notes.txt", [b"mine"])
    inner = small(make_tier("lake/text"), name="inner")
    before = without_claims(lake)
    others = ("text/inner/", "text/notes.txt", f"text/{INTERNAL}/reservations/")
    kept = {key for key in before if key.startswith(others)}
    for options in ({}, {"version": 2, "last_copy": True}):
        with pytest.raises((Corrupt, FormatError)) as caught:
            forget(lake, "text", **options)
        if "manifest" in spoilt:
            assert "tiering forget text --on lake --last-copy" in str(caught.value)
        assert without_claims(lake) == before
    assert forget(lake, "text", last_copy=True) > newer.nbytes
    assert set(without_claims(lake)) == kept
    assert verify(inner).ok
    with pytest.raises(NotFound):
        forget(lake, "text", last_copy=True)
    assert small_arrow(lake).version == 1


def test_nothing_of_a_tier_inside_of_a_corpus_is_taken_for_the_corpus_s(
    lake: Tier, make_tier: Callable[..., Tier]
) -> None:
    corpus = small(lake)
    inner = small(make_tier("lake/web"), name="inner")
    assert f"web/{inner.name}/zarr.json" in objects(lake)
    assert gc(lake, ["web"], older_than_seconds=0).garbage == ()
    forget(lake, "web", last_copy=True)
    assert gc(lake, ["web"], older_than_seconds=0).nbytes == 0
    assert verify(inner).ok
    small(lake)  # an ingest sweeps what a killed one left
    assert verify(inner).ok
    assert verify(corpus).ok


def test_forget_of_an_old_version_that_became_the_newest_meanwhile_needs_proof(
    lake: Tier, disk: Tier, two: tuple[Corpus, Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = two
    plan_move(newer, disk).run()
    module: Any = sys.modules["tiering.forget"]
    real, others = module.name_held, [lambda: forget(lake, "text", 2, copies=[disk])]

    def held(*given: Any) -> Any:  # another process runs to its end before we hold the name
        if others:
            others.pop()()
        return real(*given)

    monkeypatch.setattr(module, "name_held", held)
    with pytest.raises(LastCopy, match="0 verified copies elsewhere"):
        forget(lake, "text", 1)
    assert catalog.versions(lake.store, "text") == [1]
    assert verify(older).ok
