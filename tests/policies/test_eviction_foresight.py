"""Foresight: the decisions of `Merged`, made from nothing but what is resident and where readers are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Order
from policies.eviction import Merged, make
from policies.eviction.foresight import LATER, Course, Future, choose_victims, soonest
from policies.eviction.merged import Reader

NONE = np.empty(0, np.uint64)


def ids(*items: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(items, np.uint64)


def future(uses: list[int], known: list[int] | None = None) -> Future:
    return Future(ids(*uses), ids(*(known or [])))


class Shared:
    """A cache of some readers by foresight alone; keeps no state but content and positions."""

    def __init__(self, capacity_bytes: int, futures: list[list[int]], speeds: list[float]) -> None:
        self.capacity_bytes = capacity_bytes
        self.held: dict[int, int] = {}
        self.misses = [0] * len(futures)
        self._futures = [future(uses) for uses in futures]
        self._speeds = speeds
        self._done = [0] * len(futures)

    def request(self, reader: int, item: int, nbytes: int) -> None:
        self._done[reader] += 1
        if item in self.held:
            return
        self.misses[reader] += 1
        courses = [Course(*each) for each in zip(self._futures, self._done, self._speeds, strict=True)]
        (wait,) = soonest(courses, ids(item)).tolist()
        sizes = np.array([*self.held.values()], np.int64)
        excess = int(sizes.sum()) + nbytes - self.capacity_bytes
        if nbytes <= self.capacity_bytes and (excess <= 0 or wait < np.inf):
            victims = choose_victims(soonest(courses, ids(*self.held)), sizes, excess, wait)
            if victims is not None:
                for victim in [list(self.held)[place] for place in victims]:
                    del self.held[victim]
                self.held[item] = nbytes


def by_time(futures: list[list[int]], speeds: list[float]) -> Iterator[tuple[int, int]]:
    """Reader and item of each request, each reader at its even speed."""
    times = [
        ((number + 1) / speed, reader, item)
        for reader, (uses, speed) in enumerate(zip(futures, speeds, strict=True))
        for number, item in enumerate(uses)
    ]
    return ((reader, item) for _time, reader, item in sorted(times))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 9), max_size=60),
    st.integers(0, 12),
)
def test_foresight_of_one_reader_misses_what_belady_misses(uses: list[int], capacity: int) -> None:
    shared = Shared(capacity, [uses], [1.0])
    belady = make("belady", capacity, uses)
    for item in uses:
        shared.request(0, item, 1)
    assert shared.misses[0] == belady.run(uses, [1] * len(uses))[0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 12), max_size=40), min_size=1, max_size=3),
    st.integers(0, 12),
    st.data(),
)
def test_foresight_misses_what_merged_misses(
    futures: list[list[int]], capacity: int, data: st.DataObject
) -> None:
    # Speeds by which no two readers need different items at the same time, where anything may be evicted.
    speeds = [1.0, 0.7310585, 1.6180339][: len(futures)]
    nbytes = [data.draw(st.integers(1, 3)) for _ in range(13)]
    shared, merged = Shared(capacity, futures, speeds), Merged[int](capacity)
    readers: list[Reader[int]] = [
        merged.join(uses, requests_per_second=speed) for uses, speed in zip(futures, speeds, strict=True)
    ]
    misses = [0] * len(futures)
    for reader, item in by_time(futures, speeds):
        shared.request(reader, item, nbytes[item])
        if not readers[reader].hit(item):
            misses[reader] += 1
            readers[reader].admit(item, nbytes[item])
        assert sum(shared.held.values()) <= capacity
    assert shared.misses == misses


def test_foresight_of_two_jobs_is_worth_what_merged_is() -> None:
    futures = [
        np.concatenate([Order([64] * 60, 16, seed, lanes=1).shards(epoch, 0) for epoch in range(3)]).tolist()
        for seed in (1, 2)
    ]
    shared = Shared(24, futures, [1.0, 1.0])
    for reader, item in by_time(futures, [1.0, 1.0]):
        shared.request(reader, item, 1)
    pinned = Shared(24, [[], []], [1.0, 1.0])  # nothing foretold: comes in while there is room
    for reader, item in by_time(futures, [1.0, 1.0]):
        pinned.request(reader, item, 1)
    assert sum(shared.misses) < 0.75 * sum(pinned.misses)


def test_future_says_when_each_item_is_used_next() -> None:
    told = future([5, 7, 5, 9], known=[1])
    assert len(told) == 4
    assert told.look(ids(5, 7, 9, 1, 4), 0)[0].tolist() == [0, 1, 3, 1 << 62, 1 << 62]
    assert told.look(ids(5, 7, 9), 2)[0].tolist() == [2, 1 << 62, 3]
    assert told.look(ids(9), 9)[0].tolist() == [1 << 62]
    assert told.knows(ids(5, 1, 4)).tolist() == [True, True, False]


def test_future_without_uses_knows_what_it_knows() -> None:
    told = future([], known=[3, 2])
    assert soonest([Course(told)], ids(3, 4)).tolist() == [LATER, np.inf]
    assert soonest([Course(future([]))], ids(3)).tolist() == [np.inf]


def test_what_is_in_the_middle_of_its_use_waits_no_time() -> None:
    told = Future(ids(5, 7, 5, 9, 5), ids(), np.array([2, 1, 3, 9, 9]))
    in_use = [told.look(ids(5, 7, 9, 4), done)[1].tolist() for done in range(4)]
    assert in_use == [
        [False, False, False, False],
        [True, False, False, False],
        [True, False, False, False],
        [True, False, False, False],
    ]
    assert told.look(ids(5, 7, 9, 4), 4)[1].tolist() == [False, False, True, False]
    waits = soonest([Course(told, 2, 1.0)], ids(5, 7, 9))
    assert waits.tolist() == [0, LATER, 2]
    assert choose_victims(waits, np.array([1, 1, 1]), 3, 0.0) is None


def test_soonest_of_all_readers_counts_by_their_speeds() -> None:
    slow, fast = future([1, 2, 3]), future([9, 9, 9, 9, 3])
    both = [Course(slow, 0, 1.0), Course(fast, 0, 10.0)]
    assert soonest(both, ids(1, 3, 9)).tolist() == pytest.approx([1, 0.5, 0.1])
    assert soonest([both[0], Course(fast, 0, 0.0)], ids(3)).tolist() == [3]  # as fast as the other


def test_soonest_of_a_reader_that_stands_still_is_later() -> None:
    assert soonest([Course(future([1]), 0, 2.0, late_seconds=60.0)], ids(1)).tolist() == [60.5]


@pytest.mark.parametrize(
    ("excess", "wait", "leave"),
    [
        (0, 0.0, []),
        (-5, 0.0, []),
        (1, 0.0, [2]),
        (6, 0.0, [2, 0]),
        (6, 3.0, None),
        (99, 0.0, None),
        (5, 8.9, [2]),
    ],
)
def test_victims_are_the_last_used_that_suffice(excess: int, wait: float, leave: list[int] | None) -> None:
    chosen = choose_victims(np.array([3.0, 1.0, 9.0]), np.array([5, 5, 5]), excess, wait)
    assert (None if chosen is None else chosen.tolist()) == leave


def test_victims_used_equally_late_leave_in_their_order() -> None:
    waits = np.array([np.inf, LATER, np.inf])
    assert choose_victims(waits, np.array([1, 1, 1]), 2).tolist() == [0, 2]  # type: ignore[union-attr]
    assert choose_victims(waits, np.array([1, 1, 1]), 3, LATER) is None
