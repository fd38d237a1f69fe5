"""The node cache with readers that tell what they will use: exactly what the policies promise."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from loaders import Loader
from loaders.foretold import Foreteller
from policies import Order, replay
from policies.eviction import Merged
from policies.eviction import make as eviction
from tests.corpora import memory_corpus, promised, seen
from tests.tiering.cache_tools import Make, caches_in, held, name_of, outlook, put
from tiering import Corpus, NodeCache
from tiering.cache import Outlook, Registration, numbers_of, registration
from tiering.reader import BlockReader

SHARDS = 20


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with caches_in(tmp_path / "cache") as make_cache:
        yield make_cache


def permuted(seed: int, epochs: int) -> list[list[int]]:
    order = Order([64] * SHARDS, 16, seed, lanes=1)
    return [order.shards(epoch, 0).tolist() for epoch in range(epochs)]


def flat(epochs: Sequence[Sequence[int]]) -> list[int]:
    return [shard for epoch in epochs for shard in epoch]


def register(nodes: NodeCache, *outlooks: Outlook) -> list[Registration]:
    readers = [Registration() for _ in outlooks]
    for reader, told in zip(readers, outlooks, strict=True):
        nodes.foretell(reader, told)
    return readers


def read(nodes: NodeCache, streams: Sequence[Sequence[int]], readers: Sequence[Registration | None]) -> int:
    """Misses while the readers take turns."""
    before = nodes.status().counts.misses
    for turn in zip(*streams, strict=True):
        for reader, number in zip(readers, turn, strict=True):
            put(nodes, number, reader=reader)
    status = nodes.status()
    assert status.used_bytes <= nodes.capacity_bytes
    return status.counts.misses - before


@pytest.mark.parametrize("capacity", [1, 7.5])
def test_cache_of_two_jobs_misses_what_merged_does_and_less_than_pin_and_lru(
    make: Make, tmp_path: Path, capacity: float
) -> None:
    jobs, speeds = [permuted(seed, 2) for seed in (1, 2)], [1.0, 1.0 + 1e-6]  # never at the same time
    streams = [flat(job) for job in jobs]
    merged = Merged[int](int(capacity))
    simulated = [merged.join(s, requests_per_second=v) for s, v in zip(streams, speeds, strict=True)]
    expected = 0
    for turn in zip(*streams, strict=True):
        for one, number in zip(simulated, turn, strict=True):
            if not one.hit(number):
                expected += 1
                one.admit(number, 1)

    nodes = make(capacity, "clairvoyant")
    readers = register(nodes, *(outlook(job, v) for job, v in zip(jobs, speeds, strict=True)))
    assert read(nodes, streams, readers) == expected
    if capacity > 1:
        plain = {
            name: read(make(capacity, name, tmp_path / name), streams, [None] * 2) for name in ("pin", "lru")
        }
        assert expected < 0.9 * min(plain.values()), plain


def test_cache_of_one_rank_of_four_misses_what_belady_does_and_less_than_pin(tmp_path: Path) -> None:
    with memory_corpus(640, 4, 4, format="arrow") as corpus:  # 40 shards
        order = Order(corpus.shard_rows, block_rows=4, seed=3, lanes=4)
        capacity = int(corpus.nbytes * 0.4)
        uses = [order.shards(epoch, order.rank_lanes(1, 4)) for epoch in range(16)]
        sizes = np.array(corpus.manifest["nbytes"])
        few, known = np.concatenate(uses[:4]), np.concatenate(uses)
        missed = {}
        for policy in ("clairvoyant", "pin", "auto"):
            nodes = NodeCache(tmp_path / policy, capacity, policy)
            missed[policy] = misses_of_rank(corpus, order, nodes, uses[:4])
            nodes.close()
        # Belady keeps what the epochs want that come after these, too.
        belady = eviction("belady", capacity, known.tolist()).run(few.tolist(), sizes[few].tolist())[0]
        assert missed["pin"] == replay("pin", few, sizes[few], capacity).misses
        assert missed["auto"] == missed["clairvoyant"] == belady < missed["pin"]


def misses_of_rank(corpus: Corpus, order: Order, nodes: NodeCache, uses: Sequence[np.ndarray]) -> int:
    reader = BlockReader(corpus, cache=nodes)
    foreteller = Foreteller(reader, 1, 4)
    slots = {c.name: memoryview(bytearray(reader.slot_rows(c) * c.row_bytes)) for c in reader.columns}
    for epoch, shards in enumerate(uses):
        assert reader.copies.registration is not None
        reader.copies.registration.begin(epoch)
        foreteller.foretell(order, epoch, 0)
        reader.new_epoch()
        for shard in shards.tolist():
            reader.read(shard, 0, slots)
    return nodes.status().counts.misses


def test_cache_auto_is_pin_for_one_job_and_clairvoyant_for_two_and_says_why(make: Make) -> None:
    nodes, jobs = make(7.5, "auto"), [permuted(seed, 3) for seed in (1, 2)]
    empty = nodes.status()
    assert (empty.decision, empty.bound, empty.readers) == ("pin", None, ())
    assert "nobody has said" in empty.reason
    (first,) = register(nodes, outlook(jobs[0]))
    alone = nodes.status()
    assert (alone.policy, alone.decision, alone.bound) == ("auto", "pin", pytest.approx(7.5 / SHARDS))
    assert alone.reason.startswith("one reader takes each of its shards once an epoch")
    readers = [first, *register(nodes, outlook(jobs[1]))]
    both = nodes.status()
    assert both.decision == "clairvoyant"
    assert both.bound is not None
    assert both.bound > 0.5
    assert both.reason.startswith("2 readers take the shards of one corpus at different times")
    missed = read(nodes, [flat(job) for job in jobs], readers)
    assert missed < 0.9 * read(
        make(7.5, "pin", nodes.path.with_name("pin")), [flat(job) for job in jobs], [None] * 2
    )
    readers.pop()
    nodes.foretell(first, outlook(jobs[0]))
    assert nodes.status().decision == "pin"


def test_cache_auto_that_is_pin_keeps_what_it_has(make: Make) -> None:
    nodes, epochs = make(8.5, "auto"), permuted(1, 3)
    (reader,) = register(nodes, outlook(epochs))
    kept = epochs[0][:8]
    for epoch in epochs:
        before = held(nodes, range(SHARDS))
        read(nodes, [epoch], [reader])
        assert held(nodes, range(SHARDS)) == sorted(kept)
        assert before in ([], sorted(kept))


@pytest.mark.parametrize("policy", ["auto", "clairvoyant"])
def test_cache_gives_up_what_nobody_who_lives_may_use(make: Make, policy: str) -> None:
    nodes = make(4, policy)
    for number in range(100, 104):  # of a job that is gone
        assert put(nodes, number)
    assert not put(nodes, 104)  # nobody is registered: what is here stays
    (reader,) = register(nodes, outlook([[0, 1, 2, 3, 4], [4, 2, 0, 1, 3]]))
    assert [put(nodes, number, reader=reader) for number in range(4)] == [True] * 4
    assert held(nodes, [*range(5), *range(100, 104)]) == [0, 1, 2, 3]
    assert not put(nodes, 100)  # and does not come back, while there is no room


def test_cache_keeps_what_is_known_beyond_the_horizon(make: Make) -> None:
    nodes = make(2, "clairvoyant")
    known = numbers_of([name_of(number) for number in range(6)])
    (reader,) = register(nodes, outlook([[0, 1, 2, 3]], known=known))
    for number in (0, 1):
        assert put(nodes, number, reader=reader)
    assert not put(nodes, 2, reader=reader)  # it is used as late as those that are here: nobody knows when
    assert held(nodes) == [0, 1]


def test_cache_takes_a_reader_that_stands_still_for_late(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, uses = make(1, "clairvoyant"), [1, 2, 3, 4, 5, 1]
    still, quick = register(nodes, outlook([[7, 7]]), outlook([uses]))
    assert put(nodes, 7, reader=still)
    assert not put(nodes, 1, reader=quick)  # used again in 5 seconds, and 7 in 1
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + 60)
    monkeypatch.setattr(registration, "time", later)
    monkeypatch.setattr(nodes._admission.readers, "clock", later.monotonic)
    quick.begin(0)
    assert put(nodes, 1, reader=quick)
    assert held(nodes) == [1]
    assert nodes.status().readers[0].idle_seconds != nodes.status().readers[1].idle_seconds


def test_loaders_of_two_seeds_fetch_less_with_foresight_than_with_pin(tmp_path: Path) -> None:
    fetched = {}
    with memory_corpus(320, 4, 4, format="arrow") as corpus:
        for policy in ("auto", "pin"):
            nodes = NodeCache(tmp_path / policy, int(corpus.nbytes * 0.3), policy)
            loaders = [
                Loader(
                    corpus, 8, seed=seed, cache=nodes, lanes=1, prefetch=1, group_shards=1, window_blocks=2
                )
                for seed in (1, 2)
            ]
            fetched[policy] = 0
            for epoch in range(3):
                rows: list[list[list[int]]] = [[], []]
                for batches in zip(*loaders, strict=True):
                    for found, batch in zip(rows, batches, strict=True):
                        found.append(batch["row"].tolist())
                assert rows == [promised(loader.order, 8, epoch=epoch) for loader in loaders]
                fetched[policy] += sum(loader.stats.bytes_fetched for loader in loaders)
            status = nodes.status()
            assert status.decision == {"auto": "clairvoyant", "pin": "pin"}[policy]
            assert [(one.epoch, one.corpus) for one in status.readers] == [(2, "c")] * 2
            nodes.close()
    assert fetched["auto"] < fetched["pin"], fetched  # by a fifth; speeds are measured


@pytest.mark.parametrize("policy", ["auto", "pin"])
def test_loader_with_a_cache_for_40_percent_fetches_all_and_then_60_percent(
    tmp_path: Path, policy: str
) -> None:
    with memory_corpus(640, 4, 4, format="arrow") as corpus:
        nodes = NodeCache(tmp_path, int(corpus.nbytes * 0.4), policy)
        loader = Loader(corpus, 32, cache=nodes, columns=["row", "pair"], window_blocks=4, lanes=1)
        window_bytes = 4 * corpus.nbytes // (640 // 4)
        fetched = []
        for _ in range(3):
            seen(loader)
            fetched.append(loader.stats.bytes_fetched)
        assert fetched[0] == pytest.approx(corpus.nbytes, abs=window_bytes)
        assert fetched[1:] == pytest.approx([0.6 * corpus.nbytes] * 2, abs=window_bytes)
        assert nodes.status().counts.hit_ratio > 0.2
        nodes.close()
