"""What to read next: the windows of a rank's lanes in the order of their need, many planned at a time.

Invariant: windows come in the order of their first position, ties by lane, as lanes advance in lockstep;
each position of each lane from `start` to `stop` is in exactly one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np

from policies import Order
from policies.order.modes import Windows

Int64s = np.ndarray[Any, np.dtype[np.int64]]

_ROWS: Final = 1 << 15  # planned at a time: a few ms, and tables that stay in a core's cache
_LANE_ROWS: Final = 1 << 11  # of each lane at least: what a lane costs is not to count


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Windows in the order of their need.

    starts, stops: of each window: positions [start, stop) of its lane. block_ends: where its blocks end in
    what follows. shards, numbers, firsts, users, tickets: of each block: its shard, its number there, its
    first row, how many of the feed's lanes need it, and what stands for it in `Planner.where`.
    """

    starts: list[int]
    stops: list[int]
    block_ends: list[int]
    shards: list[int]
    numbers: list[int]
    firsts: list[int]
    users: list[int]
    tickets: list[int]


class Spans:
    """Which positions of each lane are planned next, so that windows come in the order of their need."""

    def __init__(self, order: Order, epoch: int, lanes: range, start: int, stop: int) -> None:
        self._lanes = lanes
        self.rows = [order.lane_rows(epoch, lane) for lane in lanes]
        """Of each lane, in the epoch."""
        self._ends = [min(stop, rows) for rows in self.rows]
        self._at = [start] * len(lanes)  # where the next window of each lane begins
        self._span = 1  # at first: those rows are wanted at once
        self.most = max(_ROWS // len(lanes), _LANE_ROWS)
        """Positions of a lane that are planned at a time."""

    @property
    def position(self) -> int:
        """Where the next window begins; after the last one, where the longest lane ends."""
        begun = [at for at, end in zip(self._at, self._ends, strict=True) if at < end]
        return min(begun, default=max(self.rows))

    def take(self) -> list[tuple[int, int, int]] | None:
        """Lane, start and stop of what to plan now; None where nothing is left."""
        if all(at >= end for at, end in zip(self._at, self._ends, strict=True)):
            return None
        horizon = self.position + self._span
        self._span = self.most
        return [
            (lane, at, max(at, min(horizon, end)))
            for lane, at, end in zip(self._lanes, self._at, self._ends, strict=True)
        ]

    def advance(self, windows: Windows) -> None:
        """Step behind windows that were planned; those of a lane come one after the other."""
        for lane, stop in zip(windows.lanes.tolist(), windows.stops.tolist(), strict=True):
            self._at[lane - self._lanes.start] = stop


class Planner:
    """Plans the windows of neighbouring lanes, chunk by chunk.

    Args:
        order, epoch, lanes: whose windows.
        start, stop: positions where every lane begins and ends, if it has so many rows.
        slots: how many blocks may be loaded. A chunk is planned when all windows of the one before are.
    """

    def __init__(self, order: Order, epoch: int, lanes: range, start: int, stop: int, slots: int) -> None:
        self._order, self._epoch, self._lanes, self._start = order, epoch, lanes, start
        self._spans = Spans(order, epoch, lanes, start, stop)
        self._rows = self._spans.rows
        self._starts = np.concatenate([[0], np.cumsum(order.shard_rows)])
        window = min(order.window_blocks * order.block_rows, max(self._rows))
        # Loaded rows lie within those all slots can hold, shared by the lanes; behind them comes a chunk, and
        # a window may reach beyond either.
        ring = slots * order.block_rows // len(lanes) + 2 + self._spans.most + 2 * window
        self.ring = min(max(self._rows), ring) or 1
        self.where = np.zeros((2, len(lanes), self.ring), np.int32)
        """Ticket of the block, and row within it, of each position of each lane, modulo `ring`."""
        self.tickets = slots + len(lanes) * (self._spans.most + 2 * window)
        """From 0 to here (exclusive); they come around again when their blocks are gone."""
        self._next_ticket = 0

    @property
    def position(self) -> int:
        """Where the next window begins; after the last one, where the longest lane ends."""
        return self._spans.position

    def plan(self) -> Plan | None:
        """The windows that come next; None after the last."""
        spans = self._spans.take()
        return None if spans is None else self._arrange(spans)

    def _arrange(self, spans: list[tuple[int, int, int]]) -> Plan:
        order, windows = self._order, self._order.windows(self._epoch, spans)
        self._spans.advance(windows)
        begins, ends = windows.blocks[:, 0], windows.blocks[:, 1]
        shards = np.searchsorted(self._starts, begins, side="right") - 1
        numbers = (begins - self._starts[shards]) // order.block_rows
        firsts = self._starts[shards] + numbers * order.block_rows
        before = begins - firsts
        after = np.minimum(firsts + order.block_rows, self._starts[shards + 1]) - ends
        lanes = windows.lanes - self._lanes.start
        users = np.ones(len(firsts), np.int64)
        lane_of = np.repeat(lanes, windows.block_counts)
        cut = (before > 0) | (after > 0) if order.kept is None else np.zeros(0, bool)
        for block in np.flatnonzero(cut).tolist():
            users[block] = self._users(int(lane_of[block]), int(before[block]), int(after[block]))

        tickets = (self._next_ticket + np.arange(len(firsts))) % self.tickets
        self._next_ticket += len(firsts)
        self._note(
            lanes,
            windows.starts,
            windows.stops,
            tickets[windows.block_of],
            windows.rows - firsts[windows.block_of],
        )

        starts = np.maximum(windows.starts, self._start)  # a resume may begin inside of a window
        turn = np.argsort(starts, kind="stable")
        counts = windows.block_counts[turn]
        block_ends = np.cumsum(counts)
        earlier = (np.cumsum(windows.block_counts) - windows.block_counts)[turn]
        blocks = np.arange(len(firsts)) + np.repeat(earlier - block_ends + counts, counts)
        return Plan(
            starts[turn].tolist(),
            windows.stops[turn].tolist(),
            block_ends.tolist(),
            *(each[blocks].tolist() for each in (shards, numbers, firsts, users, tickets)),
        )

    def _note(self, lanes: Int64s, starts: Int64s, stops: Int64s, tickets: Int64s, rows: Int64s) -> None:
        """Write into `where` the positions of windows that come lane by lane."""
        bounds = np.flatnonzero(np.diff(lanes, prepend=-1, append=-1)).tolist()
        done = 0
        for first, last in pairwise(bounds):
            lane, start, stop = int(lanes[first]), int(starts[first]), int(stops[last - 1])
            skipped = max(0, self._start - start)
            done += skipped
            start += skipped
            while start < stop:
                place = start % self.ring
                count = min(stop - start, self.ring - place)
                self.where[0, lane, place : place + count] = tickets[done : done + count]
                self.where[1, lane, place : place + count] = rows[done : done + count]
                start, done = start + count, done + count

    def _users(self, lane: int, before: int, after: int) -> int:
        """How many of our lanes need a block of which so many rows come before this lane's or after them."""
        users = 1
        for step, rows in ((-1, before), (1, after)):
            other = lane + step
            while rows > 0 and 0 <= other < len(self._rows):
                users += self._rows[other] > 0
                rows -= self._rows[other]
                other += step
        return users
