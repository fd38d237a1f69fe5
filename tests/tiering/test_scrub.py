from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from distributed import Client

from tests.tiering.corpora import flip, objects, shard_keys, small, small_arrow, without_claims, wrapped
from tiering import Corpus, Tier, catalog, plan_move, verify
from tiering import scrub as scrub_module
from tiering.digest import Buffer, digest
from tiering.errors import (
    CapacityExceeded,
    Conflict,
    Corrupt,
    NotFound,
    Unavailable,
    UsageError,
)
from tiering.keys import INTERNAL
from tiering.repair import fetch_copy, heal
from tiering.stores.base import ObjectInfo
from tiering.stores.wrappers import Wrapper


def healed(corpus: Corpus, number: int) -> tuple[bytearray, bool]:
    entry = corpus.manifest.slice(number, 1).to_pylist()[0]
    return heal(corpus, entry["key"], entry["nbytes"], entry["digest"])


@pytest.fixture
def copies(lake: Tier, disk: Tier) -> Corpus:
    """A corpus on the lake and on the disk, seen on the disk."""
    corpus = small(lake)
    plan_move(corpus, disk).run()
    return corpus.at(disk)


@pytest.mark.parametrize("on_cluster", [False, True])
@pytest.mark.parametrize("make", [small, small_arrow], ids=["zarr", "arrow"])
def test_verify_finds_missing_corrupt_truncated_and_extra(
    lake: Tier, cluster: Client, make: Callable[..., Corpus], on_cluster: bool
) -> None:
    corpus = make(lake)
    client = cluster if on_cluster else None
    whole = verify(corpus, client=client)
    documents = sum(map(len, corpus.contents.documents.values()))
    assert whole.ok
    assert whole.nbytes == corpus.nbytes + documents
    keys = corpus.manifest["key"].to_pylist()
    lake.store.delete(corpus.key(keys[1]))
    flip(lake, corpus.key(keys[2]))
    lake.store.write(corpus.key(keys[3]), [lake.store.read(corpus.key(keys[3]))[:-1]])
    lake.store.write(corpus.key(keys[4]), [lake.store.read(corpus.key(keys[4])) + b"x"])
    lake.store.write(corpus.key("b/foreign"), [b"x"])
    lake.store.write(corpus.key("a-foreign"), [b"x"])
    report = verify(corpus, client=client)
    assert not report.ok
    assert report.missing == (keys[1],)
    assert report.corrupt == tuple(sorted(keys[2:5]))
    assert report.extra == ("a-foreign", "b/foreign")
    assert report.nbytes == whole.nbytes - sum(corpus.manifest["nbytes"].to_pylist()[1:5])


def test_verify_counts_a_flip_anywhere_in_a_shard(memory: Tier) -> None:
    corpus = small(memory, rows=4)
    (key,) = shard_keys(corpus)
    for position in range(corpus.nbytes):
        flip(memory, key, position)
        assert verify(corpus).corrupt == ("tokens/c/0/0",)
        flip(memory, key, position)
    assert verify(corpus).ok


def test_verify_looks_at_the_documents(lake: Tier) -> None:
    corpus = small(lake)
    flip(lake, "web/zarr.json")
    lake.store.delete("web/tokens/zarr.json")
    report = verify(corpus)
    assert (report.missing, report.corrupt) == (("tokens/zarr.json",), ("zarr.json",))


def test_verify_of_a_corpus_that_is_not_there_or_another_one(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    with pytest.raises(NotFound, match="no version 1 of corpus 'web'"):
        verify(corpus, disk)
    small(disk, seed=9)
    with pytest.raises(Conflict, match="another corpus is called 'web' there"):
        verify(corpus, disk)
    flip(lake, catalog.manifest_key("web", corpus.record.manifest))
    with pytest.raises(Corrupt, match="the manifest has other bytes"):
        verify(corpus)
    catalog.unpublish(lake.store, "web", 1)
    with pytest.raises(NotFound):
        verify(corpus)


def test_verify_whose_tier_goes_away_says_so_and_not_that_shards_are_bad(lake: Tier) -> None:
    class Away(Wrapper):
        gone = False

        def read(self, key: str) -> bytearray:
            self.gone = self.gone or "/c/" in key
            if self.gone:
                raise Unavailable("nobody answers", tier="lake", key=key)
            return super().read(key)

    corpus = small(lake)
    with wrapped(lake, Away(lake.store)), pytest.raises(Unavailable, match="nobody answers"):
        verify(corpus)


def test_verify_batches_have_bounded_bytes(lake: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = small(lake)
    largest = max(corpus.manifest["nbytes"].to_pylist())
    for limit in (1, largest, 2 * largest, 1 << 30):
        monkeypatch.setattr(scrub_module, "_BATCH_BYTES", limit)
        assert verify(corpus).ok


def test_heal_puts_the_bad_copy_into_quarantine(copies: Corpus) -> None:
    disk, key = copies.tier, shard_keys(copies)[2]
    good = disk.store.read(key)
    flip(disk, key)
    bad = disk.store.read(key)
    assert healed(copies, 2) == (good, True)
    assert disk.store.read(key) == good
    assert disk.store.read(f"web/{INTERNAL}/quarantine/{digest(bad)}") == bad
    assert verify(copies).ok
    assert verify(copies).extra == ()


def test_heal_brings_a_missing_shard_back(copies: Corpus) -> None:
    copies.tier.store.delete(shard_keys(copies)[2])
    assert healed(copies, 2)[1]
    assert verify(copies).ok
    assert not [key for key in objects(copies.tier) if "quarantine" in key]


def test_heal_of_what_somebody_healed_meanwhile_changes_nothing(copies: Corpus) -> None:
    before = without_claims(copies.tier)
    assert healed(copies, 2)[1]
    assert without_claims(copies.tier) == before


def test_heal_without_a_good_copy_says_what_each_tier_answered(copies: Corpus, lake: Tier) -> None:
    disk, key = copies.tier, shard_keys(copies)[2]
    flip(disk, key)
    flip(lake, key)
    before = objects(disk)
    with pytest.raises(Corrupt, match=r"no good copy of the shard \(lake: .* bytes read") as caught:
        healed(copies, 2)
    assert (caught.value.tier, caught.value.key) == ("disk", key)
    with pytest.raises(Corrupt, match="no other tier with a copy is known"):
        healed(replace(copies, others=()), 2)
    assert objects(disk) == before


def test_heal_asks_the_next_tier_when_one_is_bad(copies: Corpus, lake: Tier, memory: Tier) -> None:
    plan_move(copies.at(lake), memory).run()
    flip(lake, shard_keys(copies)[2])
    three = replace(copies, others=(lake, memory))
    entry = copies.manifest.slice(2, 1).to_pylist()[0]
    tier, data = fetch_copy(three, entry["key"], entry["nbytes"], entry["digest"])
    assert tier == memory
    assert digest(data) == entry["digest"]


def test_heal_leaves_a_tier_alone_that_gave_the_corpus_up_or_is_read_only(copies: Corpus) -> None:
    disk, key = copies.tier, shard_keys(copies)[2]
    flip(disk, key)
    before = objects(disk)
    data, back = healed(replace(copies, tier=replace(disk, read_only=True)), 2)
    assert (digest(data), back) == (copies.manifest["digest"][2].as_py(), False)
    assert objects(disk) == before
    catalog.unpublish(disk.store, "web", 1)
    before = objects(disk)
    assert not healed(copies, 2)[1]
    assert objects(disk) == before


@pytest.mark.parametrize("error", [CapacityExceeded("full"), Unavailable("away"), Corrupt("damaged")])
def test_heal_on_a_full_or_sick_tier_still_hands_out_the_good_bytes(
    copies: Corpus, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    class Sick(Wrapper):
        def write(
            self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
        ) -> ObjectInfo:
            raise error

    disk, key = copies.tier, shard_keys(copies)[2]
    flip(disk, key)
    with wrapped(disk, Sick(disk.store)):
        data, back = healed(copies, 2)
    assert (digest(data), back) == (copies.manifest["digest"][2].as_py(), False)
    assert f"shard {key} stays bad on tier disk" in caplog.text


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_verify_subsets_are_disjoint_and_together_everything(lake: Tier, n: int) -> None:
    corpus = small(lake, rows=90)
    for key in shard_keys(corpus):
        flip(lake, key)
    parts = [verify(corpus, subset=(k, n)) for k in range(1, n + 1)]
    assert sorted(key for part in parts for key in part.corrupt) == list(verify(corpus).corrupt)
    assert sum(part.checked for part in parts) == len(corpus.contents.named())
    assert sum(part.share for part in parts) == pytest.approx(1)
    assert [verify(corpus, subset=f"{k}/{n}") for k in range(1, n + 1)] == parts
    if n == 7:
        assert sum(part.checked > 0 for part in parts) >= 4


@pytest.mark.parametrize("subset", ["", "0/7", "8/7", f"1/{16**8 + 1}", "1/0", "1", "a/b", (0, 1), (1, 2, 3)])
def test_verify_subset_that_is_none_is_refused(lake: Tier, subset: str) -> None:
    with pytest.raises(UsageError, match="is no part of anything"):
        verify(small(lake), subset=subset)


class BadSector(Wrapper):
    """The medium gives some objects no more, until they are written anew."""

    bad: tuple[str, ...] = ()

    def read(self, key: str) -> bytearray:
        self._look(key)
        return super().read(key)

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        self._look(key)
        super().read_into(key, offset, buffer)

    def write(
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        self.bad = tuple(one for one in self.bad if one != key)
        return super().write(key, buffers, if_absent=if_absent, digest=digest)

    def _look(self, key: str) -> None:
        if key in self.bad:
            raise Unavailable("Input/output error", tier=self.name, key=key)


def test_verify_counts_what_the_medium_cannot_give_and_goes_on(copies: Corpus) -> None:
    flip(copies.tier, shard_keys(copies)[4])
    with wrapped(copies.tier, BadSector(copies.tier.store)) as store:
        store.bad = tuple(shard_keys(copies)[1:3])
        report = verify(copies)
        assert report.unreadable == tuple(copies.manifest["key"].to_pylist()[1:3])
        assert report.corrupt == (copies.manifest["key"][4].as_py(),)
        assert not report.ok
        mended = verify(copies, repair=True)
        assert mended.ok
        assert len(mended.repaired) == 3
        assert verify(copies) == replace(verify(copies), repaired=())
        assert verify(copies).damaged == ()


def test_heal_of_what_the_medium_cannot_give_writes_it_anew(copies: Corpus) -> None:
    with wrapped(copies.tier, BadSector(copies.tier.store)) as store:
        store.bad = (shard_keys(copies)[2],)
        assert healed(copies, 2)[1]
        assert verify(copies).ok
