"""The window feed: reads an order's windows ahead into slots and gathers batches from them.

Invariant: batches hold exactly the rows of the order, lane by lane; at most `Slots.count` blocks are in
memory; a window's slots are free again as soon as its last row was copied.

Windows are read in the order of their first position, over all lanes, because lanes advance in lockstep. A
lane uses one window at a time, so with slots for two windows of each there is always room to read the next
one of the lane that needs it first. A block that the boundaries of lanes cut is read once: its slot is kept
until all of them have used it, one more slot for each boundary. In mode "full" lanes share nothing: each
window reads the blocks of its rows for itself.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from loaders.slots import Batch, Slots
from policies import Order

Int64s = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """A block that a window needs."""

    shard: int
    number: int
    first: int
    """Its first row, which names it."""
    users: int
    """How many lanes of this feed need rows of it."""


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """What to read for a window, and where its rows will be: at positions [start, stop) of `lane`."""

    lane: int
    start: int
    stop: int
    blocks: Sequence[_Block]
    block_of: Int64s
    """For each position, the index of its block in `blocks`."""
    row_of: Int64s
    """For each position, the row within that block."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A window whose blocks are in slots or on their way there."""

    start: int
    stop: int
    slots: Sequence[int]
    reads: Sequence[Future[None]]


@dataclass(slots=True)
class _Shared:
    """The slot of a block that more lanes will ask for."""

    slot: int
    read: Future[None]
    awaited: int
    """By how many lanes."""


def slots_needed(order: Order, lanes: int) -> int:
    """Slots for a feed of so many neighbouring lanes: two windows of each, and one for each boundary.

    Where the order has fewer blocks, there is a slot for each of them; in mode "full", for each window's.
    """
    blocks = int((-(-order.shard_rows // order.block_rows)).sum())
    if order.mode == "full":
        return 2 * lanes * min(order.window_blocks, blocks)
    return min(2 * lanes * order.window_blocks, blocks) + lanes - 1


class WindowFeed:
    """Batches of some lanes of one epoch, from a position on. Use as a context manager; it owns threads.

    Args:
        order: the order.
        slots: memory, at least `slots_needed` of them; no other feed may use it at the same time.
        epoch: the epoch.
        lanes: neighbouring lanes, in the order in which a batch has them.
        start: position where every lane begins.
        stop: position where every lane ends, if it has so many rows.
        threads: how many blocks are read at a time.
    """

    def __init__(
        self, order: Order, slots: Slots, epoch: int, lanes: range, start: int, stop: int, threads: int
    ) -> None:
        self._order, self._slots, self._epoch, self._stop = order, slots, epoch, stop
        self._lane_rows = {lane: order.lane_rows(epoch, lane) for lane in lanes}
        self._shortest = min(self._lane_rows.values())
        self._place = {lane: place for place, lane in enumerate(lanes)}
        self._starts = np.concatenate([[0], np.cumsum(order.shard_rows)])
        self._free = list(range(slots.count))
        self._shared: dict[int, _Shared] = {}  # by first row of a block that boundaries cut
        self._uses = [0] * slots.count  # by slot: windows that use it or will
        # The next window of each lane by its first position: the lockstep order of need.
        self._next = [(start, lane) for lane, rows in self._lane_rows.items() if start < min(stop, rows)]
        heapq.heapify(self._next)
        self._planned: _Plan | None = None  # for the first of those
        self._unread: deque[_Loaded] = deque()  # in the order of their first position
        self._in_use: list[tuple[int, int, _Loaded]] = []  # a heap by last position; the number breaks ties
        # Slot and row of each position of each lane, a ring over positions. Rows that are loaded lie within
        # the rows all slots can hold, shared by the lanes, and one window that reaches beyond.
        ahead = slots.count * order.block_rows // len(self._lane_rows) + 2
        self._ring = min(max(self._lane_rows.values()), ahead + order.window_blocks * order.block_rows) or 1
        self._where = np.zeros((2, len(self._lane_rows), self._ring), np.int32)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tiering-read")
        self.stall_seconds = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading; when this returns, nothing writes to the slots any more. Idempotent."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def batch(self, start: int, stop: int) -> Batch:
        """Rows at positions [start, stop) of every lane, lane by lane; lanes that end before give fewer.

        Must be called with neighbouring ranges, from the first position on.
        """
        if stop <= self._shortest:
            rows = len(self._lane_rows) * (stop - start)
        else:
            rows = sum(self._count(lane, start, stop) for lane in self._lane_rows)
        batch = self._slots.new_batch(rows)
        done = start
        while done < stop:
            while self._next and self._next[0][0] < stop and self._load_next():
                pass
            ready = min(stop, self._next[0][0]) if self._next else stop
            if ready == done:
                raise RuntimeError("the slots of a window feed are fewer than two windows a lane")
            self._wait(ready)
            self._copy(batch, start, stop, done, ready)
            self._release(ready)
            done = ready
        while self._load_next():  # whatever there are free slots for
            pass
        return batch

    def _count(self, lane: int, start: int, stop: int) -> int:
        """How many of the positions [start, stop) the lane has."""
        return max(0, min(stop, self._lane_rows[lane]) - start)

    def _load_next(self) -> bool:
        """Begin to read the window that is needed next; False when there is none, or no room for it."""
        if not self._next:
            return False
        if self._planned is None:
            self._planned = self._plan(*self._next[0])
        plan = self._planned
        if len(plan.blocks) > len(self._free) + sum(block.first in self._shared for block in plan.blocks):
            return False
        slots, reads = zip(*map(self._slot_for, plan.blocks), strict=True)
        loaded = _Loaded(plan.start, plan.stop, slots, reads)
        positions = np.arange(plan.start, plan.stop) % self._ring
        self._where[0, self._place[plan.lane], positions] = np.array(slots)[plan.block_of]
        self._where[1, self._place[plan.lane], positions] = plan.row_of
        self._unread.append(loaded)
        heapq.heappush(self._in_use, (loaded.stop, id(loaded), loaded))
        if plan.stop < min(self._stop, self._lane_rows[plan.lane]):
            heapq.heapreplace(self._next, (plan.stop, plan.lane))
        else:
            heapq.heappop(self._next)
        self._planned = None
        return True

    def _plan(self, position: int, lane: int) -> _Plan:
        window = self._order.window(self._epoch, lane, position)
        block_rows = self._order.block_rows
        begins, ends = window.blocks[:, 0], window.blocks[:, 1]
        shards = np.searchsorted(self._starts, begins, side="right") - 1
        numbers = (begins - self._starts[shards]) // block_rows
        firsts = self._starts[shards] + numbers * block_rows
        before = begins - firsts
        after = np.minimum(firsts + block_rows, self._starts[shards + 1]) - ends
        users = [
            self._users(lane, *cut) if any(cut) else 1
            for cut in zip(before.tolist(), after.tolist(), strict=True)
        ]
        by_row = np.argsort(begins)
        block_of = by_row[np.searchsorted(begins[by_row], window.rows, side="right") - 1]
        passed = position - window.start  # a resume may begin inside of a window
        return _Plan(
            lane,
            position,
            window.stop,
            list(map(_Block, shards.tolist(), numbers.tolist(), firsts.tolist(), users)),
            block_of[passed:],
            (window.rows - firsts[block_of])[passed:],
        )

    def _users(self, lane: int, before: int, after: int) -> int:
        """How many of our lanes need a block of which so many rows come before this lane's or after them."""
        users = 1
        for step, rows in ((-1, before), (1, after)):
            other = lane + step
            while rows > 0 and other in self._lane_rows:
                users += self._lane_rows[other] > 0
                rows -= self._lane_rows[other]
                other += step
        return users

    def _slot_for(self, block: _Block) -> tuple[int, Future[None]]:
        """A slot that holds a block or will, and the read that fills it."""
        shared = self._shared.get(block.first)
        if shared is not None:
            shared.awaited -= 1
            if not shared.awaited:
                del self._shared[block.first]
            return shared.slot, shared.read
        slot = self._free.pop()
        read = self._pool.submit(self._slots.read, block.shard, block.number, slot)
        self._uses[slot] = block.users
        if block.users > 1:
            self._shared[block.first] = _Shared(slot, read, block.users - 1)
        return slot, read

    def _wait(self, ready: int) -> None:
        """Wait for the reads of all windows that begin before `ready`."""
        begun = time.perf_counter()
        while self._unread and self._unread[0].start < ready:
            for read in self._unread.popleft().reads:
                read.result()
        self.stall_seconds += time.perf_counter() - begun

    def _copy(self, batch: Batch, start: int, stop: int, done: int, ready: int) -> None:
        """Copy positions [done, ready) of all lanes into a batch of [start, stop)."""
        positions = np.arange(done, ready) % self._ring
        if (start, stop) == (done, ready) and stop <= self._shortest:
            slots, rows = self._where.take(positions, axis=2).reshape(2, -1).astype(np.int64)
            self._slots.gather(batch, 0, slots, rows)
            return
        to = 0
        for lane, place in self._place.items():
            count = self._count(lane, done, ready)
            if count:
                slots, rows = self._where[:, place].take(positions[:count], axis=1).astype(np.int64)
                self._slots.gather(batch, to + done - start, slots, rows)
            to += self._count(lane, start, stop)

    def _release(self, ready: int) -> None:
        """Give back the slots of all windows that end at `ready` or before."""
        while self._in_use and self._in_use[0][0] <= ready:
            for slot in heapq.heappop(self._in_use)[-1].slots:
                self._uses[slot] -= 1
                if not self._uses[slot]:
                    self._free.append(slot)
