"""The feed against the order itself, over slots that hold row numbers: sharing, resumes, errors."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loaders.slots import Batch
from loaders.window import WindowFeed, slots_needed
from policies import Order
from tiering.errors import Unavailable


class RowSlots:
    """Slots whose rows are global row numbers; remembers what was read."""

    def __init__(self, order: Order, count: int) -> None:
        self.count = count
        self.reads: list[tuple[int, int]] = []
        self.read_one = threading.Semaphore(0)
        self.gathers = 0
        self._order = order
        self._starts = np.concatenate([[0], np.cumsum(order.shard_rows)])
        self._memory = np.full((count, order.block_rows), -1)

    def slot_rows(self, column: str) -> int:
        return self._order.block_rows

    def read(self, shard: int, block: int, slot: int) -> None:
        self.reads.append((shard, block))
        first = self._starts[shard] + block * self._order.block_rows
        self._memory[slot] = np.arange(first, first + self._order.block_rows)
        self.read_one.release()

    def new_batch(self, rows: int) -> Batch:
        return {"row": np.full(rows, -2)}

    def gather(
        self, batch: Batch, start: int, slots: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]
    ) -> None:
        self.gathers += 1
        batch["row"][start : start + len(rows)] = self._memory[slots, rows]


def feed_of(
    order: Order, slots: RowSlots, lanes: range, start: int = 0, stop: int | None = None, threads: int = 2
) -> WindowFeed:
    longest = max(order.lane_rows(0, lane) for lane in lanes)
    return WindowFeed(order, slots, 0, lanes, start, longest if stop is None else stop, threads)


def expected(order: Order, lanes: range, start: int, stop: int) -> list[int]:
    rows: list[int] = []
    for lane in lanes:
        most = order.lane_rows(0, lane)
        rows += order.rows(0, lane, min(start, most), min(stop, most)).tolist()
    return rows


@st.composite
def orders(draw: st.DrawFn) -> Order:
    return Order(
        draw(st.lists(st.integers(1, 40), min_size=1, max_size=8)),
        block_rows=draw(st.sampled_from([1, 2, 3, 5, 8, 64])),
        seed=draw(st.integers(0, 2**64 - 1)),
        mode=draw(st.sampled_from(["window", "none"])),
        lanes=draw(st.sampled_from([1, 2, 3, 4, 6, 12])),
        group_shards=draw(st.integers(1, 3)),
        window_blocks=draw(st.sampled_from([1, 2, 3, 10**15])),
        affinity=draw(st.sampled_from(["global", "lane"])),
    )


@settings(max_examples=250, deadline=None)
@given(order=orders(), data=st.data())
def test_feed_gives_the_rows_of_the_order_and_reads_each_block_once(
    order: Order, data: st.DataObject
) -> None:
    world = data.draw(st.sampled_from([w for w in (1, 2, 3, 4, 6, 12) if order.lanes % w == 0]))
    lanes = order.rank_lanes(data.draw(st.integers(0, world - 1)), world)
    longest = max(order.lane_rows(0, lane) for lane in lanes)
    start = data.draw(st.integers(0, longest))
    slots = RowSlots(order, slots_needed(order, len(lanes)))
    wanted: list[int] = []
    position = start
    with feed_of(order, slots, lanes, start, threads=data.draw(st.integers(1, 3))) as feed:
        while position < longest:
            stop = min(longest, position + data.draw(st.integers(1, 50)))
            batch = feed.batch(position, stop)["row"].tolist()
            assert batch == expected(order, lanes, position, stop)
            wanted += batch
            position = stop
    assert max(Counter(slots.reads).values(), default=1) == 1
    starts = np.concatenate([[0], np.cumsum(order.shard_rows)])
    shards = np.searchsorted(starts, np.array(wanted, np.int64), side="right") - 1
    needed = {
        (s, (r - int(starts[s])) // order.block_rows) for s, r in zip(shards.tolist(), wanted, strict=True)
    }
    assert needed <= set(slots.reads)
    if not start:
        assert needed == set(slots.reads)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shard_rows=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    block_rows=st.sampled_from([1, 3, 8, 64]),
    lanes=st.sampled_from([1, 3, 4]),
    window_blocks=st.sampled_from([1, 3, 10**15]),
    start=st.integers(0, 9),
)
def test_feed_gives_the_rows_of_a_full_shuffle_too(
    shard_rows: list[int], block_rows: int, lanes: int, window_blocks: int, start: int
) -> None:
    order = Order(shard_rows, block_rows, mode="full", lanes=lanes, window_blocks=window_blocks)
    longest = max(order.lane_rows(0, lane) for lane in range(lanes))
    slots = RowSlots(order, slots_needed(order, lanes))
    with feed_of(order, slots, range(lanes), min(start, longest)) as feed:
        for position in range(start, longest, 7):
            stop = min(longest, position + 7)
            assert feed.batch(position, stop)["row"].tolist() == expected(order, range(lanes), position, stop)


def test_feed_reads_nothing_beyond_its_stop() -> None:
    order = Order([64], block_rows=4, mode="none", lanes=2, window_blocks=1)
    slots = RowSlots(order, slots_needed(order, 2))
    with feed_of(order, slots, range(2), stop=8) as feed:
        feed.batch(0, 8)
    assert sorted(slots.reads) == [(0, block) for block in (0, 1, 8, 9)]


def test_feed_gathers_a_batch_of_many_lanes_at_once() -> None:
    order = Order([4096], block_rows=16, lanes=64)
    slots = RowSlots(order, slots_needed(order, 64))
    with feed_of(order, slots, range(64)) as feed:
        for position in range(0, 64, 4):
            feed.batch(position, position + 4)
    assert slots.gathers == 16


def test_feed_reads_one_window_of_each_lane_ahead() -> None:
    order = Order([256], block_rows=8, mode="none", lanes=2, window_blocks=2)
    slots = RowSlots(order, slots_needed(order, 2))
    with feed_of(order, slots, range(2)) as feed:
        feed.batch(0, 1)
        assert all(slots.read_one.acquire(timeout=60) for _ in range(8))
    assert sorted(slots.reads) == [(0, block) for block in (0, 1, 2, 3, 16, 17, 18, 19)]


def test_feed_with_too_few_slots_says_so() -> None:
    order = Order([64], block_rows=4, lanes=1, window_blocks=4)
    with (
        feed_of(order, RowSlots(order, 3), range(1)) as feed,
        pytest.raises(RuntimeError, match="fewer than two windows"),
    ):
        feed.batch(0, 8)


def test_feed_passes_on_the_error_of_a_read_and_leaves_no_thread() -> None:
    order = Order([64], block_rows=4, lanes=1)

    class Broken(RowSlots):
        def read(self, shard: int, block: int, slot: int) -> None:
            raise Unavailable("gone", tier="lake")

    with (
        pytest.raises(Unavailable, match="gone"),
        feed_of(order, Broken(order, slots_needed(order, 1)), range(1)) as feed,
    ):
        feed.batch(0, 8)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tiering-read")]


def test_closed_feed_reads_no_more() -> None:
    order = Order([64], block_rows=4, lanes=1, window_blocks=1)
    slots = RowSlots(order, slots_needed(order, 1))
    feed = feed_of(order, slots, range(1))
    feed.batch(0, 4)
    feed.close()
    feed.close()
    seen = len(slots.reads)
    with pytest.raises((RuntimeError, CancelledError)):
        feed.batch(4, 64)
    assert len(slots.reads) == seen


def test_slots_needed_is_two_windows_a_lane_and_one_for_each_boundary() -> None:
    order = Order([1000] * 7, block_rows=10, lanes=8, window_blocks=3)
    assert slots_needed(order, 8) == 2 * 8 * 3 + 7
    assert slots_needed(order, 2) == 2 * 2 * 3 + 1


def test_slots_needed_is_no_more_than_there_are_blocks() -> None:
    order = Order([25, 7], block_rows=10, lanes=4, window_blocks=10**15)
    assert slots_needed(order, 4) == 4 + 3


def test_slots_needed_of_a_full_shuffle_are_those_of_every_window_for_itself() -> None:
    order = Order([64], block_rows=16, mode="full", lanes=4, window_blocks=8)
    assert slots_needed(order, 4) == 2 * 4 * 4
    with feed_of(order, RowSlots(order, slots_needed(order, 4)), range(4)) as feed:
        assert feed.batch(0, 16)["row"].tolist() == expected(order, range(4), 0, 16)
