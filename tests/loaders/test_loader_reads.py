"""What the loader reads and fetches: each block once, and through a cache no more than its bound."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders import Loader
from loaders.reads import Reads
from tests.corpora import (
    forget,
    forget_trials,
    has_a_way_past_the_page_cache,
    make_corpus,
    memory_corpus,
    open_below,
    promised,
    seen,
)
from tiering import Corpus, NodeCache, ingest, open_tier
from tiering.errors import Corrupt
from tiering.reader import BlockReader
from tiering.stores import hurry


@pytest.fixture(scope="module")
def corpus() -> Iterator[Corpus]:
    """600 rows in shards of 64, the last one shorter."""
    with memory_corpus(600, 16, 4) as made:
        yield made


@pytest.mark.parametrize(("lanes", "world"), [(1, 1), (4, 1), (12, 1), (12, 3), (60, 1), (600, 1)])
@pytest.mark.parametrize("options", [{}, {"affinity": "lane"}, {"shuffle": "none"}])
def test_loader_reads_each_block_once_an_epoch(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, lanes: int, world: int, options: dict[str, str]
) -> None:
    reads: list[tuple[int, int]] = []
    read = BlockReader.read

    def counting(self: BlockReader, shard: int, block: int, slots: Any) -> None:
        reads.append((shard, block))
        read(self, shard, block, slots)

    monkeypatch.setattr(BlockReader, "read", counting)
    for rank in range(world):
        loader = Loader(corpus, 600 // world, rank=rank, world_size=world, lanes=lanes, **options)
        reads.clear()
        for _ in loader:
            pass
        assert max(Counter(reads).values()) == 1
        if world == 1:
            assert set(reads) == {(row // 64, row % 64 // 16) for row in range(600)}


def test_loader_without_a_cache_fetches_each_block_once(corpus: Corpus) -> None:
    loader = Loader(corpus, 100, columns=["row"], lanes=4)
    blocks = 4 * 9 + 2
    index = 4 * 16 + 4
    for epoch in range(2):
        seen_rows = sum(len(batch["row"]) for batch in loader)
        assert seen_rows == loader.stats.rows == 600
        assert loader.stats.batches == 6
        # The index of each of the ten shards is read in the first epoch alone.
        wanted = blocks * (16 * 8 + 4) + (10 * index if epoch == 0 else 0)
        assert loader.stats.bytes_fetched == loader.stats.bytes_needed == wanted
        assert loader.stats.hit_ratio == loader.stats.bound == 0.0


@pytest.mark.parametrize("kept", [0, 1, 4, 10])
def test_loader_with_a_pin_cache_fetches_all_once_and_then_what_does_not_fit(
    tmp_path: Any, kept: int
) -> None:
    with memory_corpus(640, 16, 4) as corpus:
        sizes = set(corpus.manifest["nbytes"].to_pylist()[:10])
        (shard,) = sizes
        block, index = 4 * (16 * 8 + 4), 4 * 16 + 4
        cache = NodeCache(tmp_path, shard * kept + shard // 2)
        loader = Loader(corpus, 64, columns=["row"], cache=cache, lanes=8)
        assert loader._feeds.reader.stored_bytes == 10 * shard
        for epoch in range(3):
            assert sum(len(batch["row"]) for batch in loader) == 640
            stats = loader.stats
            if epoch == 0:
                assert stats.bytes_fetched == kept * shard + (10 - kept) * (block + index)
                assert stats.bound == 0.0
            else:
                assert stats.bytes_fetched == (10 - kept) * block
                assert stats.bound == pytest.approx(min(1.0, (kept + 0.5) / 10), abs=1e-3)
            assert 0 <= stats.distance_from_bound == stats.bound - stats.hit_ratio
        assert cache.status().shards == kept
        cache.close()


def test_loader_of_one_rank_of_two_stays_below_its_bound(tmp_path: Any) -> None:
    with memory_corpus(640, 16, 4) as corpus, NodeCacheIn(tmp_path, 0.3 * corpus.nbytes) as cache:
        for rank in (0, 1):
            loader = Loader(corpus, 32, rank=rank, world_size=2, cache=cache)
            for _ in range(3):
                seen(loader)
                assert 0 <= loader.stats.hit_ratio <= loader.stats.bound == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("share", [0.3, 2.0])
def test_loader_of_a_full_shuffle_stays_below_its_bound(tmp_path: Any, share: float) -> None:
    with memory_corpus(160, 8, 4) as corpus, NodeCacheIn(tmp_path, share * corpus.nbytes) as cache:
        loader = Loader(corpus, 32, cache=cache, shuffle="full")
        assert loader.stats.bound == 1 - 1 / 8
        for epoch in range(2):
            assert seen(loader) == promised(loader.order, 32, epoch=epoch)
            assert loader.stats.hit_ratio <= loader.stats.bound
        assert (loader.stats.hit_ratio == loader.stats.bound == 1.0) == (share > 1)
        assert loader.stats.hit_ratio > 0


def test_loader_of_a_rank_with_affinity_finds_its_lanes_in_the_cache(tmp_path: Any) -> None:
    with memory_corpus(640, 16, 4) as corpus, NodeCacheIn(tmp_path, 0.6 * corpus.nbytes) as cache:
        loader = Loader(corpus, 32, rank=0, world_size=2, cache=cache, lanes=2, affinity="lane")
        for epoch in range(3):
            seen(loader)
            assert (loader.stats.bytes_fetched == 0) == (epoch > 0)


def test_loader_on_a_warm_cache_knows_what_is_there(tmp_path: Any) -> None:
    with memory_corpus(640, 16, 4) as corpus, NodeCacheIn(tmp_path, 2 * corpus.nbytes) as cache:
        seen(Loader(corpus, 64, cache=cache))
        loader = Loader(corpus, 64, cache=cache)
        assert loader.stats.bound == 1.0
        seen(loader)
        assert loader.stats.bytes_fetched == 0
        assert loader.stats.hit_ratio == 1.0


class NodeCacheIn(NodeCache):
    """A cache that is closed at the end of a block."""

    def __init__(self, path: Any, capacity: float) -> None:
        super().__init__(path, int(capacity))

    def __enter__(self) -> NodeCacheIn:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def test_loader_from_a_cache_and_two_formats_gives_the_same_rows(tmp_path: Any) -> None:
    found = []
    for number, options in enumerate(({}, {"codec": "zstd:1"}, {"format": "arrow"})):
        with (
            memory_corpus(640, 16, 4, **options) as corpus,
            NodeCacheIn(tmp_path / str(number), corpus.nbytes // 2) as cache,
        ):
            loader = Loader(corpus, 64, cache=cache)
            found.append([seen(loader), seen(loader)])
            assert found[-1] == [promised(loader.order, 64, epoch=epoch) for epoch in range(2)]
    # Shards of Arrow hold all columns, and have the rows of Zarr's largest ones here.
    assert found[0] == found[1]


def test_loader_in_threads_shares_one_cache(tmp_path: Any) -> None:
    with memory_corpus(640, 16, 4) as corpus, NodeCacheIn(tmp_path, corpus.nbytes // 2) as cache:
        found: dict[int, list[list[int]]] = {}

        def run(rank: int) -> None:
            found[rank] = seen(Loader(corpus, 16, rank=rank, world_size=4, cache=cache))

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        order = Loader(corpus, 64).order
        assert [found[rank] for rank in range(4)] == [promised(order, 16, rank, 4) for rank in range(4)]
        assert cache.status().used_bytes <= corpus.nbytes // 2


def test_loader_keeps_no_file_open_after_its_loop(tmp_path: Any) -> None:
    corpus = make_corpus(open_tier(tmp_path / "disk", "disk"), 640, 16, 4)
    loader = Loader(corpus, 64)
    most = 0
    for _ in loader:
        most = max(most, open_below(tmp_path))
    assert most > 0
    assert open_below(tmp_path) == 0


@pytest.fixture
def past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each read past the page cache whether it was whole; nothing is read before somebody waits."""
    if not has_a_way_past_the_page_cache(tmp_path):
        pytest.skip(
            "this kernel does not say what is cached, or there is no O_DIRECT here, or all is in memory"
        )
    forget_trials(monkeypatch)
    went: list[bool] = []
    real = hurry._read_direct

    def noting(*arguments: Any) -> bool:
        went.append(real(*arguments))
        return went[-1]

    waited = threading.Event()
    work, haste = Reads._work, Reads._hurry

    def work_when_waited_for(self: Reads) -> None:
        waited.wait(timeout=30)
        work(self)

    def hurry_and_tell(self: Reads) -> None:
        haste(self)
        waited.set()

    monkeypatch.setattr(hurry, "_read_direct", noting)
    monkeypatch.setattr(Reads, "_work", work_when_waited_for)
    monkeypatch.setattr(Reads, "_hurry", hurry_and_tell)
    return went


@pytest.mark.parametrize("options", [{}, {"codec": "zstd:1"}, {"format": "arrow"}])
def test_loader_reads_past_the_page_cache_what_is_waited_for_and_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, past: list[bool], options: dict[str, str]
) -> None:
    monkeypatch.setattr(hurry, "_CACHED_ONE_IN", 4)
    noise = np.random.default_rng(1).integers(0, 1 << 16, (1000, 2000), np.uint16)  # no codec makes it small
    tier = open_tier(tmp_path)
    corpus = ingest({"x": noise}, tier, "c", shard_size="1MiB", block_rows=100, progress=False, **options)
    loader = Loader(corpus, 50, lanes=1)
    for epoch in range(3):
        for path in (tmp_path / "c").rglob("*"):
            if path.is_file():
                forget(path)
        past.clear()
        rows = np.concatenate([batch["x"] for batch in loader])
        assert (rows == noise[loader.order.rows(epoch, 0, 0, 1000)]).all()
        assert all(past)
        assert len(past) <= 8  # of ten blocks; each fourth goes into the page cache
        assert past or epoch  # in later epochs a busy machine decides who waits


@pytest.mark.parametrize("hurried", [True, False])
def test_damage_is_found_whichever_way_a_block_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, past: list[bool], hurried: bool
) -> None:
    monkeypatch.setattr(hurry, "_CACHED_ONE_IN", 1 << 60 if hurried else 1)
    corpus = ingest({"x": np.ones((600, 1000))}, open_tier(tmp_path), "c", block_rows=100, progress=False)
    (path,) = (tmp_path / "c" / key for key in corpus.manifest["key"].to_pylist())
    damaged = bytearray(path.read_bytes())
    damaged[2_000_000] ^= 1
    path.write_bytes(damaged)
    forget(path)
    with pytest.raises(Corrupt, match="no good copy"):
        for _ in Loader(corpus, 50, lanes=1):
            pass
    assert bool(past) == hurried
