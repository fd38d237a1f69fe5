"""The node cache in one process: policies, capacity, fills and what they wait for."""

from __future__ import annotations

import os
import pickle
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from loaders import Loader
from tests.corpora import make_corpus, memory_corpus, promised, seen
from tests.tiering.cache_tools import NBYTES, Make, caches_in, content, files_below, held, name_of, put, shard
from tiering import NodeCache, open_corpus, open_tier
from tiering.cache import cache
from tiering.cache.admission import POLICIES
from tiering.digest import digest
from tiering.errors import ConfigError, Corrupt, NotFound, Unavailable
from tiering.monitor.stats import COUNTERS


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with caches_in(tmp_path / "cache") as make_cache:
        yield make_cache


def test_cache_fills_once_and_gives_any_range(make: Make) -> None:
    nodes, fetched = make(3), list[int]()
    assert [put(nodes, 1, fetched) for _ in range(3)] == [True] * 3
    assert fetched == [1]
    part = bytearray(100)
    nodes.read_into(name_of(1), 77, memoryview(part))
    assert part == shard(1)[77:177]
    status = nodes.status()
    assert (status.used_bytes, status.shards, status.filling) == (NBYTES, 1, 0)
    assert (status.path, status.policy, status.capacity_bytes) == (nodes.path, "pin", 3 * NBYTES)


def test_cache_counts_hits_and_misses(make: Make) -> None:
    nodes = make(1)
    before = COUNTERS.snapshot()["cache"]
    for number in (1, 1, 2):
        put(nodes, number)
    after = COUNTERS.snapshot()["cache"]
    assert (after["hits"] - before["hits"], after["misses"] - before["misses"]) == (1, 2)
    assert after["hit_bytes"] - before["hit_bytes"] == NBYTES


def test_cache_pin_keeps_what_it_has(make: Make) -> None:
    nodes, fetched = make(2.5), list[int]()
    assert [put(nodes, n, fetched) for n in (1, 2, 3, 1, 3)] == [True, True, False, True, False]
    assert fetched == [1, 2]  # what is refused is not fetched
    assert held(nodes) == [1, 2]


def test_cache_lru_evicts_what_was_not_used_for_longest(make: Make) -> None:
    nodes = make(2.5, "lru")
    assert all(put(nodes, number) for number in (1, 2, 1, 3))
    assert held(nodes) == [1, 3]


def test_cache_fifo_evicts_what_came_first_although_it_was_used(make: Make) -> None:
    nodes = make(2.5, "fifo")
    assert all(put(nodes, number) for number in (1, 2, 1, 3))
    assert held(nodes) == [2, 3]


@pytest.mark.parametrize(("policy", "kept"), [("pin", [1, 2]), ("lru", [1, 4]), ("fifo", [3, 4])])
def test_cache_of_a_smaller_capacity_than_last_time_evicts_at_once(
    make: Make, policy: str, kept: list[int]
) -> None:
    for number in (1, 2, 3, 4, 1):
        put(make(4, policy), number)
    smaller = make(2, policy)
    assert smaller.status().used_bytes == 2 * NBYTES
    assert held(smaller) == kept
    assert len(files_below(smaller.path)) == 2


def test_cache_fits_a_smaller_capacity_also_where_another_has_it_open(make: Make) -> None:
    large, small = make(4, "lru"), make(2, "lru")
    assert small.status().shards == 0
    for number in range(4):
        put(large, number)
    assert put(small, 7)
    assert held(small) == [3, 7]


def test_cache_smaller_than_a_shard_keeps_nothing(make: Make) -> None:
    nodes, fetched = make(0.5, "lru"), list[int]()
    assert not put(nodes, 1, fetched)
    assert not fetched
    assert nodes.status().used_bytes == 0


@pytest.mark.parametrize("policy", ["", "newest", "belady"])
def test_cache_policy_that_is_not_known_is_refused(tmp_path: Path, policy: str) -> None:
    with pytest.raises(ConfigError, match="must know the future" if policy == "belady" else "must be one of"):
        NodeCache(tmp_path, 1, policy)


@pytest.mark.parametrize("capacity", [0, -1, "much", "0B"])
def test_cache_capacity_that_is_no_size_is_refused(tmp_path: Path, capacity: str | int) -> None:
    with pytest.raises(ConfigError, match="capacity"):
        NodeCache(tmp_path, capacity)


class Stop(BaseException):
    """Like KeyboardInterrupt."""


@pytest.mark.parametrize("error", [Unavailable("gone"), OSError(5, "bad"), RuntimeError("odd"), Stop()])
def test_cache_passes_on_an_error_of_fetch_and_keeps_nothing_reserved(
    make: Make, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    nodes = make(1)

    def fetch() -> Sequence[bytes]:
        raise error

    with pytest.raises(type(error)) as caught:
        nodes.get(name_of(1), NBYTES, fetch)
    assert caught.value is error
    assert nodes.status().used_bytes == 0
    assert put(nodes, 2)
    assert not caplog.records


def test_cache_refuses_bytes_of_another_digest(make: Make) -> None:
    nodes = make(1)
    with pytest.raises(Corrupt, match="not those of digest"):
        nodes.get(name_of(1), NBYTES, lambda: [shard(2)])
    assert nodes.status().used_bytes == 0
    assert not files_below(nodes.path)
    assert put(nodes, 1)


def test_cache_hashes_nothing_that_was_verified_when_it_was_fetched(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(cache, "digest")
    assert make(1).get(name_of(1), NBYTES, lambda: [shard(1)], verified=True)
    assert content(make(1), 1) == shard(1)


def test_cache_read_of_what_is_not_there_is_not_found(make: Make) -> None:
    with pytest.raises(NotFound):
        content(make(1), 1)


def test_cache_discard_makes_room_and_the_shard_comes_anew(make: Make) -> None:
    nodes, fetched = make(1), list[int]()
    put(nodes, 1, fetched)
    nodes.discard(name_of(1))
    nodes.discard(name_of(2))
    assert nodes.status().used_bytes == 0
    assert put(nodes, 1, fetched)
    assert fetched == [1, 1]


def test_cache_discard_leaves_alone_what_is_just_being_filled(make: Make) -> None:
    nodes = make(1)

    def fetch() -> Sequence[bytes]:
        nodes.discard(name_of(1))
        assert nodes.status().used_bytes == NBYTES
        return [shard(1)]

    assert nodes.get(name_of(1), NBYTES, fetch)
    assert nodes.status().used_bytes == NBYTES


def test_cache_shard_evicted_while_it_is_read_is_read_to_its_end(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, preadv = make(1, "lru"), os.preadv
    put(nodes, 1)

    def evicting(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        monkeypatch.setattr(os, "preadv", preadv)
        assert put(nodes, 2)
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", evicting)
    assert content(nodes, 1) == shard(1)
    assert held(nodes) == [2]


def test_cache_resident_bytes_are_those_of_the_shards_named(make: Make) -> None:
    nodes = make(5)
    for number in range(3):
        put(nodes, number)
    assert nodes.resident_bytes([name_of(0), name_of(1), name_of(0), name_of(9)]) == 2 * NBYTES


def test_cache_fill_by_another_is_waited_for_and_not_repeated(make: Make) -> None:
    nodes, begun, go = make(1), threading.Event(), threading.Event()
    results: list[bool] = []

    def slow() -> Sequence[bytes]:
        begun.set()
        assert go.wait(60)
        return [shard(1)]

    first = threading.Thread(target=lambda: results.append(nodes.get(name_of(1), NBYTES, slow)))
    first.start()
    assert begun.wait(60)
    fetched: list[int] = []
    others = [threading.Thread(target=lambda: results.append(put(nodes, 1, fetched))) for _ in range(4)]
    for thread in others:
        thread.start()
    assert nodes.status().filling == 1
    go.set()
    for thread in (first, *others):
        thread.join()
    assert results == [True] * 5
    assert not fetched


def test_cache_fill_that_takes_too_long_is_not_waited_for(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "WAIT_SECONDS", 0.0)
    nodes, other, fetched = make(2), make(2), list[int]()

    def slow() -> Sequence[bytes]:
        assert not put(other, 1, fetched)
        assert put(other, 2)  # a living fill is not taken for an abandoned one
        assert other.status().filling == 1
        return [shard(1)]

    assert nodes.get(name_of(1), NBYTES, slow)
    assert not fetched
    assert held(nodes) == [1, 2]


def test_cache_pickled_is_the_same_folder_and_carries_no_connection(make: Make) -> None:
    nodes = make(2, "lru")
    put(nodes, 1)
    copy = pickle.loads(pickle.dumps(nodes))
    assert (copy.path, copy.capacity_bytes, copy.policy) == (nodes.path, 2 * NBYTES, "lru")
    assert repr(copy) == repr(nodes)
    assert put(copy, 1, fetched := [])
    assert not fetched
    copy.close()


def test_cache_closed_opens_again_on_use_and_closes_itself(make: Make) -> None:
    nodes = make(2)
    put(nodes, 1)
    nodes.close()
    nodes.close()
    assert held(nodes) == [1]
    assert put(nodes, 1, fetched := [])
    assert not fetched


@pytest.mark.parametrize("policy", ["pin", "lru", "auto", "clairvoyant"])
@pytest.mark.parametrize("shards", [0.5, 1, 1.5])
def test_cache_of_hardly_a_shard_changes_no_row(make: Make, policy: str, shards: float) -> None:
    with memory_corpus(640, 16, 4, format="arrow") as corpus:
        largest = max(corpus.manifest["nbytes"].to_pylist())
        nodes = make(shards * largest / NBYTES, policy)
        loader = Loader(corpus, 64, cache=nodes)
        for epoch in range(2):
            assert seen(loader) == promised(loader.order, 64, epoch=epoch)
            assert nodes.status().used_bytes <= nodes.capacity_bytes
        assert nodes.status().shards == int(shards)


def test_cache_of_two_corpora_at_once_has_one_copy_of_what_they_share(make: Make, tmp_path: Path) -> None:
    lake = open_tier(tmp_path / "lake", "lake")
    made = [make_corpus(lake, rows, 16, 4, name=f"rows-{rows}") for rows in (640, 896)]
    digests = [set(corpus.manifest["digest"].to_pylist()) for corpus in made]
    assert digests[0] < digests[1]
    nodes = make(10**6, "auto")
    loaders = [Loader(corpus, 64, cache=nodes, seed=seed) for seed, corpus in enumerate(made)]
    rows: list[list[list[int]]] = [[], []]
    for batches in zip(*loaders, strict=False):
        for found, batch in zip(rows, batches, strict=True):
            found.append(batch["row"].tolist())
    assert rows == [
        promised(loader.order, 64)[: len(found)] for loader, found in zip(loaders, rows, strict=True)
    ]
    assert {one.corpus for one in nodes.status().readers} == {"rows-640", "rows-896"}
    seen(loaders[1])
    assert nodes.status().shards == len(digests[1])
    assert nodes.status().used_bytes == made[1].nbytes


def test_cache_serves_versions_and_tiers_by_content(make: Make, tmp_path: Path) -> None:
    lake = make_corpus(open_tier(tmp_path / "lake", "lake"), 640, 16, 4)
    other = make_corpus(open_tier(tmp_path / "other", "other"), 640, 16, 4, name="same-rows")
    nodes = make(10**6)
    seen(Loader(lake, 64, cache=nodes))
    loader = Loader(open_corpus(other.tier, "same-rows"), 64, cache=nodes)
    assert seen(loader) == promised(loader.order, 64)
    assert loader.stats.bytes_fetched == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_cache_of_any_policy_holds_its_capacity_with_shards_of_any_size(tmp_path: Path, policy: str) -> None:
    rng = random.Random(policy)
    shards = [rng.randbytes(rng.choice([16, 50, 64, 100])) for _ in range(40)]
    with closing(NodeCache(tmp_path, 300, policy)) as cache:
        for data in rng.choices(shards, k=150):
            cache.get(digest([data]), len(data), lambda data=data: [data])  # type: ignore[misc]
            files = [path for path in (tmp_path / "objects").rglob("*") if path.is_file()]
            assert cache.status().used_bytes == sum(path.stat().st_size for path in files) <= 300
