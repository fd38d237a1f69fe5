from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from policies import replay
from policies.eviction import NAMES, make
from policies.prefetch import Fetch, Integrated, Lookahead, Prefetcher, Ring
from tests.policies.prefetch_model import RuleWatcher, Watcher

SIZES = st.lists(st.integers(0, 5), min_size=8, max_size=8)
FUTURE = st.lists(st.integers(0, 7), min_size=1, max_size=30)
AHEAD = st.sampled_from([0, 1, 3, 8, 1000])


def integrated(future: list[int], **options: object) -> Integrated[int]:
    return Integrated(future, 1, **{"capacity_bytes": 2, "slots": 1, "lookahead": 100, **options})  # type: ignore[arg-type]


def ring(future: list[int], capacity_bytes: int, *, name: str = "pin", **options: object) -> Ring[int]:
    cache = make(name, capacity_bytes, future)
    return Ring(future, 1, cache, **{"slots": 1, "lookahead": 1, **options})  # type: ignore[arg-type]


def begun(prefetcher: Prefetcher[int]) -> list[int]:
    return [fetch.item for fetch in prefetcher.start(0.0)]


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    FUTURE,
    SIZES,
    st.integers(0, 14),
    st.integers(1, 4),
    AHEAD,
    st.integers(0, 3),
    st.integers(0, 1 << 20),
    st.booleans(),
)
@example([2, 1, 2, 1, 0, 0, 3, 1], [2, 3, 5, 2], 12, 4, 1000, 0, 85, True)  # evicted, and needed soon
@example([1, 1, 0, 1], [0, 5], 4, 4, 1000, 0, 2370, True)  # passed by, and needed soon
def test_integrated_keeps_the_four_rules_and_the_capacity(
    future: list[int],
    sizes: list[int],
    capacity: int,
    slots: int,
    ahead: int,
    spare: int,
    seed: int,
    shrinks: bool,
) -> None:
    nbytes = [sizes[item] for item in future]
    watcher = RuleWatcher(future, nbytes, capacity, slots, ahead, min(spare, slots - 1), seed)
    watcher.shrinks = shrinks
    watcher.run()
    stats = watcher.prefetcher.stats
    assert stats.peak_bytes <= (14 if shrinks else capacity)
    assert (stats.requests, stats.requested_bytes) == (len(future), sum(nbytes))
    assert (stats.fetches, stats.fetched_bytes) == (watcher.fetches, watcher.fetched_bytes)
    assert (stats.failures, stats.wasted_bytes) == (watcher.failures, watcher.wasted_bytes)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    FUTURE, SIZES, st.integers(0, 14), st.integers(1, 4), AHEAD, st.sampled_from(NAMES), st.integers(0, 99)
)
def test_ring_fetches_no_more_than_a_replay_and_keeps_the_capacity(
    future: list[int], sizes: list[int], capacity: int, slots: int, ahead: int, name: str, seed: int
) -> None:
    nbytes = [sizes[item] for item in future]
    prefetcher = Ring(future, nbytes, make(name, capacity, future), slots=slots, lookahead=ahead)
    watcher = Watcher(prefetcher, future, nbytes, seed)
    watcher.run()
    stats = prefetcher.stats
    assert stats.peak_bytes <= capacity
    assert stats.fetches == watcher.fetches
    counted = replay(name, future, nbytes, prefetcher.cache_bytes)
    assert stats.fetches <= counted.misses
    if not ahead:
        assert (stats.fetches, stats.fetched_bytes) == (counted.misses, counted.miss_bytes)
    assert stats.wasted_bytes == 0


def test_integrated_keeps_the_four_rules_in_a_long_run() -> None:
    dice = Random(3)
    future = [dice.randrange(12) for _ in range(600)]
    RuleWatcher(future, [1 + item % 3 for item in future], 9, 3, 1000, 0, seed=1).run()


def test_integrated_fetches_in_the_order_of_need_within_slots_and_lookahead() -> None:
    assert begun(integrated([1, 2, 3, 4], capacity_bytes=9, slots=9, lookahead=3)) == [1, 2, 3]
    assert begun(integrated([1, 2, 3, 4], capacity_bytes=9, slots=2)) == [1, 2]
    assert begun(integrated([1, 2, 1, 4], capacity_bytes=9, slots=9)) == [1, 2, 4]


def test_integrated_without_lookahead_fetches_on_demand() -> None:
    prefetcher = integrated([1, 2], lookahead=0)
    assert begun(prefetcher) == []
    assert not prefetcher.use(1, 0.0)
    assert prefetcher.start(0.0) == [Fetch(1, 1, [], demand=True, kept=True)]
    prefetcher.arrived(1, 5.0)
    assert prefetcher.use(1, 5.0)
    stats = prefetcher.stats
    assert (stats.waits, stats.stall_seconds, stats.demand_fetches, stats.fetch_seconds) == (1, 5.0, 1, 5.0)


def test_integrated_evicts_what_is_never_used_again_then_the_farthest() -> None:
    prefetcher = integrated([1, 2, 3, 4, 3, 2, 5], capacity_bytes=3, slots=3)
    assert begun(prefetcher) == [1, 2, 3]
    for item in (1, 2, 3):
        prefetcher.arrived(item, 1.0)
    assert prefetcher.use(1, 1.0)
    assert begun(prefetcher) == []  # 2 and 3 are needed before 4, and 1 is being read
    assert prefetcher.use(2, 2.0)
    assert prefetcher.start(2.0) == [Fetch(4, 1, [1], demand=False, kept=True)]
    prefetcher.arrived(4, 3.0)
    assert prefetcher.use(3, 3.0)
    assert begun(prefetcher) == []  # all is needed before 5
    assert prefetcher.use(4, 4.0)
    assert prefetcher.use(3, 5.0)
    assert prefetcher.start(5.0) == [Fetch(5, 1, [4], demand=False, kept=True)]


@pytest.mark.parametrize("prefetcher", [integrated([7], capacity_bytes=0), ring([7], 0)])
def test_prefetcher_passes_by_a_cache_without_room(prefetcher: Prefetcher[int]) -> None:
    assert begun(prefetcher) == []
    assert not prefetcher.use(7, 0.0)
    assert prefetcher.start(0.0) == [Fetch(7, 1, [], demand=True, kept=False)]
    prefetcher.arrived(7, 1.0)
    assert prefetcher.use(7, 1.0)
    assert (prefetcher.stats.written_bytes, prefetcher.stats.peak_bytes) == (0, 0)


def test_prefetcher_keeps_slots_for_demand() -> None:
    future = list(range(9))
    prefetcher = integrated(future, capacity_bytes=9, slots=3, demand_slots=1)
    assert begun(prefetcher) == [0, 1]
    prefetcher.failed(0, 0.0)
    assert begun(prefetcher) == [0]
    prefetcher.failed(0, 0.0)
    assert not prefetcher.use(0, 0.0)
    assert [fetch.demand for fetch in prefetcher.start(0.0)] == [True]
    assert not prefetcher.use(0, 0.0)
    assert begun(prefetcher) == []
    assert begun(integrated(future, capacity_bytes=9, slots=8)) == [0, 1, 2, 3, 4, 5, 6]


def test_prefetcher_tries_again_what_failed() -> None:
    prefetcher = integrated([1, 2, 3], capacity_bytes=3, slots=3)
    assert begun(prefetcher) == [1, 2, 3]
    prefetcher.arrived(1, 0.0)
    prefetcher.failed(2, 2.0)
    assert prefetcher.stats.used_bytes == 2
    assert begun(prefetcher) == [2]
    stats = prefetcher.stats
    assert (stats.fetches, stats.failures, stats.written_bytes, stats.fetch_seconds) == (3, 1, 3, 2.0)


def test_integrated_shrinks_from_the_farthest_use_and_counts_what_was_prefetched_for_nothing() -> None:
    prefetcher = integrated([1, 2, 3, 1], capacity_bytes=3, slots=3)
    assert begun(prefetcher) == [1, 2, 3]
    for item in (1, 2, 3):
        prefetcher.arrived(item, 0.0)
    assert prefetcher.use(1, 0.0)
    assert prefetcher.use(2, 0.0)
    assert prefetcher.resize(1) == [1, 3]  # 1 was read already, 3 was not, 2 is being read
    assert (prefetcher.stats.wasted_bytes, prefetcher.stats.used_bytes) == (1, 1)
    assert not prefetcher.use(3, 0.0)
    assert prefetcher.start(0.0) == [Fetch(3, 1, [2], demand=True, kept=True)]


def test_ring_shrinks_to_half_of_the_capacity_and_counts_what_was_prefetched_for_nothing() -> None:
    prefetcher = ring([1, 2, 3], 6, slots=3, lookahead=2)
    assert begun(prefetcher) == [1, 2]
    for item in (1, 2):
        prefetcher.arrived(item, 0.0)
    assert prefetcher.use(1, 0.0)
    assert prefetcher.resize(2) == [2]
    assert (prefetcher.stats.wasted_bytes, prefetcher.stats.used_bytes, prefetcher.cache_bytes) == (1, 1, 1)


def test_ring_shrinks_around_what_is_being_read() -> None:
    prefetcher = ring([1, 2, 1, 3], 6, lookahead=2)
    for item in (1, 2, 1):
        while fetched := begun(prefetcher):
            prefetcher.arrived(fetched[0], 0.0)
        assert prefetcher.use(item, 0.0)
    assert sorted(prefetcher.resize(0)) == [2, 3]  # 1 is read from the cache
    assert prefetcher.stats.used_bytes == 1
    assert not prefetcher.use(3, 0.0)
    assert prefetcher.stats.used_bytes == 0


def test_ring_shrinks_around_what_the_reader_waits_for() -> None:
    prefetcher = ring([1, 2], 6, lookahead=0)
    assert not prefetcher.use(1, 0.0)
    assert begun(prefetcher) == [1]
    assert prefetcher.resize(0) == []
    prefetcher.arrived(1, 0.0)
    assert prefetcher.use(1, 0.0)
    assert not prefetcher.use(2, 0.0)
    assert prefetcher.stats.used_bytes == 0


@settings(derandomize=True, max_examples=100, deadline=None)
@given(FUTURE, SIZES, st.sampled_from(NAMES), st.integers(0, 99))
def test_ring_keeps_within_a_capacity_that_changes(
    future: list[int], sizes: list[int], name: str, seed: int
) -> None:
    nbytes = [sizes[item] for item in future]
    prefetcher = Ring(future, nbytes, make(name, 14, future), slots=2, lookahead=Lookahead(3))
    watcher = Watcher(prefetcher, future, nbytes, seed)
    watcher.shrinks = True
    watcher.run()
    assert prefetcher.stats.peak_bytes <= 14
    assert prefetcher.stats.requests == len(future)


def test_integrated_wants_one_size_for_an_item() -> None:
    with pytest.raises(ValueError, match="sizes must be the same for every request of an item"):
        Integrated([1, 2, 1], [5, 5, 6], 10, lookahead=0)


def test_ring_gives_the_cache_what_was_read_and_names_victims_with_the_next_fetch() -> None:
    prefetcher = ring([1, 2, 3, 4], 4, name="fifo", slots=2)
    assert (prefetcher.cache_bytes, begun(prefetcher)) == (2, [1])
    for item in (1, 2, 3):
        prefetcher.arrived(item, 0.0)
        assert prefetcher.use(item, 0.0)
        assert prefetcher.start(0.0) == [Fetch(item + 1, 1, [], demand=False, kept=True)]
    prefetcher.arrived(4, 0.0)
    assert prefetcher.use(4, 0.0)
    assert prefetcher.stats.used_bytes == 3 + 0  # 2 and 3 in the cache, 4 in the ring


def test_ring_fetches_again_what_the_cache_evicted_and_the_lookahead_needs() -> None:
    prefetcher = ring([1, 2, 3, 4, 1, 5], 4, name="fifo", slots=2, lookahead=100)
    assert begun(prefetcher) == [1, 2]
    for item in (1, 2):
        prefetcher.arrived(item, 0.0)
        assert prefetcher.use(item, 0.0)
    for item in (3, 4):  # 1 is in the cache, and 5 has to wait for room
        assert begun(prefetcher) == [item]
        prefetcher.arrived(item, 0.0)
        assert prefetcher.use(item, 0.0)
    assert prefetcher.start(0.0) == [Fetch(1, 1, [1], demand=False, kept=True)]  # 3 has driven it out


def test_ring_keeps_what_the_cache_refuses_as_long_as_the_lookahead_needs_it() -> None:
    future = [8, 9, 1, 2, 1, 2]  # 8 and 9 fill the cache
    prefetcher = ring(future, 4, lookahead=100)
    for item in future:
        while fetched := begun(prefetcher):
            prefetcher.arrived(fetched[0], 0.0)
        assert prefetcher.use(item, 0.0)
    assert prefetcher.stats.fetches == 4


@pytest.mark.parametrize("make_one", [lambda: integrated([1, 2]), lambda: ring([1, 2], 4)])
def test_prefetcher_refuses_what_cannot_be(make_one: object) -> None:
    prefetcher = make_one()  # type: ignore[operator]
    with pytest.raises(ValueError, match="request 0 is for 2, and 1 was foretold"):
        prefetcher.use(2, 0.0)
    for report in (prefetcher.arrived, prefetcher.failed):
        with pytest.raises(ValueError, match="item 1 is not in flight"):
            report(1, 0.0)
    prefetcher.start(0.0)
    prefetcher.arrived(1, 0.0)
    prefetcher.use(1, 0.0)
    prefetcher.start(0.0)
    prefetcher.arrived(2, 0.0)
    prefetcher.use(2, 0.0)
    with pytest.raises(ValueError, match="request 2 is for 2, and nothing more was foretold"):
        prefetcher.use(2, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "slots must be at least 1"),
        ({"lookahead": -1}, "lookahead must be at least 0"),
        ({"slots": 2, "demand_slots": 2}, "demand_slots must be below 2"),
        ({"capacity_bytes": -1}, "capacity_bytes must be at least 0"),
    ],
)
def test_integrated_refuses_arguments_out_of_range(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        integrated([1], **options)
