"""The window feed: reads an order's windows ahead into slots and gathers batches from them.

Invariant: batches hold exactly the rows of the order, lane by lane; at most `Slots.count` blocks are in
memory; a window's slots are free again as soon as its last row was copied.

Windows are read in the order of their first position, over all lanes, because lanes advance in lockstep. At
most one window a lane is in use at a time, so twice the lanes' windows in slots is enough to always read one
window of each lane ahead, and never to wait for a slot that cannot become free. A block that the boundary of
two lanes cuts is read once: its slot is kept for the second lane, one more slot for each boundary.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

import numpy as np

from loaders.slots import Batch, Slots
from policies import Order

Int64s = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A window whose blocks are in slots or on their way there."""

    start: int
    stop: int
    slots: Sequence[int]
    slot_of: Int64s
    """For each position of the window, the slot of its row."""
    row_of: Int64s
    """For each position of the window, the row within that slot."""
    reads: Sequence[Future[None]]


def slots_needed(lanes: int, window_blocks: int) -> int:
    """Slots for a feed of so many lanes: two windows of each, and one for each boundary between them."""
    return 2 * lanes * window_blocks + lanes - 1


class WindowFeed:
    """Batches of some lanes of one epoch, from a position on. Use as a context manager; it owns threads.

    Args:
        order: the order.
        slots: memory, at least `slots_needed` of them.
        epoch: the epoch.
        lanes: numbers of the lanes, in the order in which a batch has them.
        position: where every lane begins.
        threads: how many blocks are read at a time.
    """

    def __init__(
        self, order: Order, slots: Slots, epoch: int, lanes: Sequence[int], position: int, threads: int
    ) -> None:
        self._order, self._slots, self._epoch = order, slots, epoch
        self._lanes = lanes
        self._ends = {lane: order.lane_rows(epoch, lane) for lane in lanes}
        self._starts = np.concatenate([[0], np.cumsum(order.shard_rows)])
        self._free = list(range(slots.count))
        self._shared: dict[int, tuple[int, Future[None]]] = {}  # by first row of a cut block
        self._uses: dict[int, int] = {}  # by slot: windows that use it or will
        self._loaded: dict[int, deque[Loaded]] = {lane: deque() for lane in lanes}
        # The next window of each lane by its first position: the lockstep order of need.
        self._next = [(position, lane) for lane in lanes if position < self._ends[lane]]
        heapq.heapify(self._next)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tiering-read")
        self.stall_seconds = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def batch(self, start: int, stop: int) -> Batch:
        """Rows at positions [start, stop) of every lane, lane by lane; lanes that end before give fewer.

        Must be called with neighbouring ranges, from the first position on.
        """
        counts = [max(0, min(stop, self._ends[lane]) - start) for lane in self._lanes]
        offsets = dict(zip(self._lanes, np.concatenate([[0], np.cumsum(counts)]).tolist(), strict=False))
        gather = _Gather(self._slots, sum(counts), start, stop, offsets)
        for lane, windows in self._loaded.items():
            for window in windows:
                gather.add(lane, window)
        while self._next and self._next[0][0] < stop:
            loaded = self._load_next()
            if loaded is None:  # no slot is free: finish what is here, and free its slots
                self._wait_and_copy(gather, stop)
                loaded = self._load_next()
            if loaded is None:
                raise RuntimeError("the slots of a window feed are fewer than two windows a lane")
            gather.add(*loaded)
        self._wait_and_copy(gather, stop)
        self.prefetch()
        return gather.batch

    def prefetch(self) -> None:
        """Begin to read whatever there are free slots for."""
        while self._load_next() is not None:
            pass

    def _load_next(self) -> tuple[int, Loaded] | None:
        """Begin to read the window that is needed next; None when there is none, or no room for it."""
        if not self._next:
            return None
        position, lane = self._next[0]
        window = self._order.window(self._epoch, lane, position)
        blocks = window.blocks
        if len(blocks) > len(self._free):
            return None
        shards = np.searchsorted(self._starts, blocks[:, 0], side="right") - 1
        numbers = (blocks[:, 0] - self._starts[shards]) // self._order.block_rows
        firsts = self._starts[shards] + numbers * self._order.block_rows
        ends = np.minimum(firsts + self._order.block_rows, self._starts[shards + 1])
        waiting = self._waiting_lanes(lane, blocks[:, 0] > firsts, blocks[:, 1] < ends)
        slots, reads = [], []
        for shard, number, first, wait in zip(
            shards.tolist(), numbers.tolist(), firsts.tolist(), waiting, strict=True
        ):
            slot, read = self._slot_for(shard, number, first, wait=wait)
            slots.append(slot)
            reads.append(read)
        by_row = np.argsort(blocks[:, 0])
        which = by_row[np.searchsorted(blocks[by_row, 0], window.rows, side="right") - 1]
        passed = position - window.start  # a resume may begin inside of a window
        loaded = Loaded(
            position,
            window.stop,
            slots,
            np.array(slots, np.int64)[which][passed:],
            (window.rows - firsts[which])[passed:],
            reads,
        )
        self._loaded[lane].append(loaded)
        heapq.heappop(self._next)
        if window.stop < self._ends[lane]:
            heapq.heappush(self._next, (window.stop, lane))
        return lane, loaded

    def _waiting_lanes(self, lane: int, cut_before: Int64s, cut_after: Int64s) -> list[bool]:
        """For each block of a window, whether a neighbouring lane of ours needs it too."""
        if min(self._ends.values()) < self._order.block_rows:  # more than two lanes may share a block
            return [False] * len(cut_before)
        before, after = lane - 1 in self._ends, lane + 1 in self._ends
        waiting: list[bool] = ((cut_before & before) | (cut_after & after)).tolist()
        return waiting

    def _slot_for(self, shard: int, number: int, first: int, *, wait: bool) -> tuple[int, Future[None]]:
        """A slot that holds a block or will, and the read that fills it."""
        if first in self._shared:
            return self._shared.pop(first)
        slot = self._free.pop()
        read = self._pool.submit(self._slots.read, shard, number, slot)
        if wait:
            self._shared[first] = slot, read
        self._uses[slot] = 2 if wait else 1
        return slot, read

    def _give(self, slot: int) -> None:
        self._uses[slot] -= 1
        if not self._uses[slot]:
            self._free.append(slot)

    def _wait_and_copy(self, gather: _Gather, stop: int) -> None:
        begun = time.perf_counter()
        for window in gather.windows:
            for read in window.reads:
                read.result()
        self.stall_seconds += time.perf_counter() - begun
        gather.copy()
        for windows in self._loaded.values():
            while windows and windows[0].stop <= stop:
                for slot in windows.popleft().slots:
                    self._give(slot)


class _Gather:
    """Collects where the rows of a batch lie, and copies them in as few calls as possible."""

    def __init__(self, slots: Slots, rows: int, start: int, stop: int, offsets: dict[int, int]) -> None:
        self._slots, self._start, self._stop, self._offsets = slots, start, stop, offsets
        self.batch = slots.new_batch(rows)
        self.windows: list[Loaded] = []
        self._slot_of = np.empty(rows, np.int64)
        self._row_of = np.empty(rows, np.int64)
        self._ranges: list[tuple[int, int]] = []

    def add(self, lane: int, window: Loaded) -> None:
        """Note the rows of `window` that belong to the batch."""
        start, stop = max(self._start, window.start), min(self._stop, window.stop)
        if start >= stop:
            return
        to = self._offsets[lane] + start - self._start
        inside = slice(start - window.start, stop - window.start)
        self._slot_of[to : to + stop - start] = window.slot_of[inside]
        self._row_of[to : to + stop - start] = window.row_of[inside]
        self._ranges.append((to, to + stop - start))
        self.windows.append(window)

    def copy(self) -> None:
        """Copy all rows noted since the last call; their blocks must have been read."""
        for start, stop in _joined(self._ranges):
            self._slots.gather(self.batch, start, self._slot_of[start:stop], self._row_of[start:stop])
        self._ranges.clear()
        self.windows.clear()


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Touching ranges as one."""
    ordered = sorted(ranges)
    cuts = [i + 1 for i, (left, right) in enumerate(pairwise(ordered)) if left[1] != right[0]]
    bounds = [0, *cuts, len(ordered)]
    return [(ordered[a][0], ordered[b - 1][1]) for a, b in pairwise(bounds)] if ordered else []
