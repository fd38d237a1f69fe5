"""The window feed: reads an order's windows ahead into slots and gathers batches from them.

Invariant: batches hold exactly the rows of the order, lane by lane; at most `Slots.count` blocks are in
memory; a window's slots are free again as soon as its last row was copied.

Windows are read in the order of their first position, over all lanes, because lanes advance in lockstep. A
lane uses one window at a time, so with slots for two windows of each there is always room to read the next
one of the lane that needs it first. A block that the boundaries of lanes cut is read once: its slot is kept
until all of them have used it, one more slot for each boundary. In mode "full", and of a subset of the rows,
lanes share nothing: each window reads the blocks of its rows for itself.

The caller's thread does little more than gather: planning and reading are work of the threads of
`loaders.reads`, unless it would have to wait for them.
"""

from __future__ import annotations

import heapq

import numpy as np

from loaders.ahead import Plan, Planner
from loaders.feed import ReadingFeed
from loaders.reads import Job, Reading
from loaders.slots import Batch, Slots
from policies import Order


def slots_needed(order: Order, lanes: int) -> int:
    """Slots for a feed of so many neighbouring lanes: two windows of each, and one for each boundary.

    Where the order has fewer blocks, there is a slot for each of them; in mode "full", or with a subset of
    the rows, for each window's.
    """
    blocks = int((-(-order.shard_rows // order.block_rows)).sum())
    if order.mode == "full" or order.kept is not None:
        return 2 * lanes * min(order.window_blocks, blocks)
    return min(2 * lanes * order.window_blocks, blocks) + lanes - 1


class WindowFeed(ReadingFeed):
    """Batches of some lanes of one epoch, from a position on. Use as a context manager; it owns threads.

    Args:
        order: the order.
        slots: memory, at least `slots_needed` of them; no other feed may use it at the same time.
        epoch: the epoch.
        lanes: neighbouring lanes, in the order in which a batch has them.
        start: position where every lane begins.
        stop: position where every lane ends, if it has so many rows.
        threads: the most that read blocks ahead; None for as many as help.
    """

    def __init__(
        self, order: Order, slots: Slots, epoch: int, lanes: range, start: int, stop: int, threads: int | None
    ) -> None:
        super().__init__(slots.read, start, threads)
        self._slots = slots
        self._lane_rows = [order.lane_rows(epoch, lane) for lane in lanes]
        self._shortest = min(self._lane_rows)
        self._end = max(stop, max(self._lane_rows))

        # Of whoever puts reads.
        self._planner = Planner(order, epoch, lanes, start, stop, slots.count)
        self._plan: Plan | None = None
        self._taken = 0  # windows of the plan whose reads were put
        # By first row of a block that boundaries cut: its slot, and how many lanes will still ask for it.
        self._shared: dict[int, list[int]] = {}

        # Given by one to the other. What windows use up to a position is complete when all that begin before
        # it were put, so the caller never takes a list that still grows.
        self._free = list(range(slots.count))
        self._uses = [0] * slots.count  # by slot: windows that use it or will
        self._used: dict[int, list[int]] = {}  # by the position where windows end: their slots
        self._ends: list[int] = []  # a heap of those positions
        self._slot_of = np.zeros(self._planner.tickets, np.int32)

    def batch(self, start: int, stop: int) -> Batch:
        """Rows at positions [start, stop) of every lane, lane by lane; lanes that end before give fewer.

        Must be called with neighbouring ranges, from the first position on.
        """
        if stop <= self._shortest:
            rows = len(self._lane_rows) * (stop - start)
        else:
            rows = sum(self._count(lane, start, stop) for lane in range(len(self._lane_rows)))
        batch = self._slots.new_batch(rows)
        done = start
        while done < stop:
            if self._ready < stop:
                self._load_until(stop)
            ready = min(stop, self._ready)
            if ready == done:
                raise RuntimeError("the slots of a window feed are fewer than two windows a lane")
            self._wait(ready)
            self._copy(batch, start, stop, done, ready)
            self._release(ready)
            done = ready
        return batch

    def _count(self, lane: int, start: int, stop: int) -> int:
        """How many of the positions [start, stop) the lane has."""
        return max(0, min(stop, self._lane_rows[lane]) - start)

    def _load_next(self) -> bool:
        plan, first = self._plan, self._taken
        if plan is None or first == len(plan.starts):
            plan, first = self._planner.plan(), 0
            self._plan, self._taken = plan, first
            if plan is None:
                self._ready = self._end
                return False
            self._ready = plan.starts[0]
        first_block = plan.block_ends[first - 1] if first else 0
        slots: list[int] = []
        put: list[tuple[Reading, list[Job]]] = []
        last, end = first, first_block
        while last < len(plan.starts):
            blocks = range(end, plan.block_ends[last])
            if len(blocks) > len(self._free) + sum(plan.firsts[block] in self._shared for block in blocks):
                break
            if not put or put[-1][0].position != plan.starts[last]:
                put.append((Reading(plan.starts[last]), []))
            slots += [self._slot_for(plan, block, put[-1][1]) for block in blocks]
            self._keep_until(plan.stops[last], slots[end - first_block :])
            last, end = last + 1, blocks.stop
        if last == first:
            return False
        self._slot_of[plan.tickets[first_block:end]] = slots
        for reading, jobs in put:
            self._reads.put(reading, jobs)
            self._unread.append(reading)
        self._taken = last
        self._ready = plan.starts[last] if last < len(plan.starts) else self._planner.position
        return True

    def _slot_for(self, plan: Plan, block: int, jobs: list[Job]) -> int:
        """A slot that holds a block or will, after one more of `jobs`."""
        users, first = plan.users[block], plan.firsts[block]
        if users > 1 and first in self._shared:
            shared = self._shared[first]
            shared[1] -= 1
            if not shared[1]:
                del self._shared[first]
            return shared[0]
        slot = self._free.pop()
        self._uses[slot] = users
        if users > 1:
            self._shared[first] = [slot, users - 1]
        jobs.append((plan.shards[block], plan.numbers[block], slot))
        return slot

    def _keep_until(self, position: int, slots: list[int]) -> None:
        """Note that a window that ends at `position` uses these slots."""
        known = self._used.get(position)
        if known is None:
            self._used[position] = slots
            heapq.heappush(self._ends, position)
        else:
            known += slots

    def _copy(self, batch: Batch, start: int, stop: int, done: int, ready: int) -> None:
        """Copy positions [done, ready) of all lanes into a batch of [start, stop)."""
        planner, place = self._planner, done % self._planner.ring
        if place + ready - done <= planner.ring:
            tickets, rows = planner.where[:, :, place : place + ready - done]
        else:
            tickets, rows = planner.where.take(np.arange(done, ready) % planner.ring, axis=2)
        if (start, stop) == (done, ready) and stop <= self._shortest:
            self._slots.gather(batch, 0, self._slot_of[tickets.reshape(-1)], rows.reshape(-1))
            return
        to = 0
        for lane in range(len(self._lane_rows)):
            count = self._count(lane, done, ready)
            if count:
                slots = self._slot_of[tickets[lane, :count]]
                self._slots.gather(batch, to + done - start, slots, rows[lane, :count])
            to += self._count(lane, start, stop)

    def _release(self, ready: int) -> None:
        """Give back the slots of all windows that end at `ready` or before."""
        free = []
        while self._ends and self._ends[0] <= ready:
            for slot in self._used.pop(heapq.heappop(self._ends)):
                self._uses[slot] -= 1
                if not self._uses[slot]:
                    free.append(slot)
        if free:
            self._free += free
            self._reads.poke()
