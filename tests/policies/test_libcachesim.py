"""Misses on generated traces beside libCacheSim, in one process. It is GPL: a tool of these tests alone."""

from collections.abc import Callable

import numpy as np
import pytest

from policies import replay
from policies.eviction.belady import Belady, next_uses

libcachesim = pytest.importorskip(
    "libcachesim", reason="libcachesim has wheels for Linux on x86-64 alone", exc_type=ImportError
)

pytestmark = pytest.mark.no_cover  # long traces, several times slower under the tracer

ITEMS, REQUESTS = 1000, 8000
PARTS = (0.2, 0.4, 0.7)
Trace = tuple[list[int], list[int], int]


def zipf(alpha: float, largest: int) -> Trace:
    """Requests with a few favourites; sizes in [1, largest]; and the bytes of all items."""
    random = np.random.default_rng(7)
    chances = np.arange(1.0, ITEMS + 1) ** -alpha
    ids = random.choice(random.permutation(ITEMS), REQUESTS, p=chances / chances.sum())
    sizes = random.integers(1, largest, ITEMS, endpoint=True)
    return ids.tolist(), sizes[ids].tolist(), int(sizes.sum())


def permutations() -> Trace:
    """What one job asks for: in every epoch each item once."""
    random = np.random.default_rng(7)
    ids = np.concatenate([random.permutation(ITEMS) for _ in range(REQUESTS // ITEMS)])
    return ids.tolist(), [1] * REQUESTS, ITEMS


TRACES: dict[str, Callable[[], Trace]] = {
    "zipf-1.0": lambda: zipf(1.0, 1),
    "zipf-0.7": lambda: zipf(0.7, 1),
    "zipf-0.9-sizes": lambda: zipf(0.9, 9),
    "permutations": permutations,
}


def misses(name: str, trace: Trace, capacity: int) -> int:
    """What libCacheSim counts."""
    cache = getattr(libcachesim, name)(capacity, hashpower=11)
    request = libcachesim.Request()
    count = 0
    ids, sizes, _ = trace
    for now, (item, nbytes, again) in enumerate(zip(ids, sizes, next_uses(ids), strict=True)):
        request.obj_id, request.obj_size, request.clock_time = item + 1, nbytes, now
        request.next_access_vtime = again
        count += not cache.get(request)
    return count


@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize(
    ("name", "theirs"),
    [("fifo", "FIFO"), ("lru", "LRU"), ("clock", "Clock"), ("sieve", "Sieve"), ("lfu", "LFU"),
     ("s3fifo", "S3FIFO"), ("arc", "ARC")],
)  # fmt: skip
def test_replay_misses_exactly_as_libcachesim_does(name: str, theirs: str, trace: str) -> None:
    made = TRACES[trace]()
    for capacity in (int(made[2] * part) for part in PARTS):
        assert replay(name, *made[:2], capacity).misses == misses(theirs, made, capacity)


@pytest.mark.parametrize("trace", ["zipf-1.0", "zipf-0.7", "permutations"])
def test_lirs_misses_exactly_as_libcachesim_does(trace: str) -> None:
    """One size, and room for 200 items and more, so that the queue, a hundredth of the room, holds two.

    libCacheSim refuses items larger than the queue, which are most in a cache for shards; where the queue
    holds one item, a hit on it evicts that item there.
    """
    made = TRACES[trace]()
    for capacity in (int(made[2] * part) for part in PARTS):
        assert replay("lirs", *made[:2], capacity).misses == misses("LIRS", made, capacity)


@pytest.mark.parametrize("trace", TRACES)
def test_belady_that_must_admit_misses_exactly_as_libcachesim_does_and_else_no_more(trace: str) -> None:
    """libCacheSim's admits what is never used again; ours may refuse it, and so be better."""
    made = TRACES[trace]()
    for capacity in (int(made[2] * part) for part in PARTS):
        theirs = misses("Belady", made, capacity)
        assert Belady(capacity, made[0], must_admit=True).run(*made[:2])[0] == theirs
        assert replay("belady", *made[:2], capacity).misses <= theirs


@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize(
    ("name", "theirs"), [("gdsf", "GDSF"), ("wtinylfu", "WTinyLFU"), ("belady-size", "BeladySize")]
)
def test_replay_misses_at_most_one_in_a_hundred_more_than_libcachesim(
    name: str, theirs: str, trace: str
) -> None:
    """GDSF: of items with one priority the one touched longest ago leaves; there, as the hash has it.

    W-TinyLFU: uses are counted exactly and not by a sketch, only a clearly more frequent item displaces
    another, the window adapts, and an item larger than the window is not refused. Belady-Size: all items are
    compared, not a sample, and an item may be refused.
    """
    made = TRACES[trace]()
    for capacity in (int(made[2] * part) for part in PARTS):
        assert replay(name, *made[:2], capacity).misses <= misses(theirs, made, capacity) * 1.01
