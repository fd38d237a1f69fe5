"""What to read next: the windows of a rank's lanes in the order of their need, many planned at a time.

Invariant: windows come in the order of their first position, ties by lane, as lanes advance in lockstep;
each position of each lane from `start` to `stop` is in exactly one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from policies import Order

Int64s = np.ndarray[Any, np.dtype[np.int64]]

_ROWS: Final = 1 << 16  # planned at a time: a few ms, and some MiB


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Windows in the order of their need.

    starts, stops: of each window: positions [start, stop) of its lane. block_ends, row_ends: where its blocks
    and rows end in what follows. shards, numbers, firsts, users: of each block: its shard, its number there,
    its first row, and how many of the feed's lanes need it. lanes, positions, block_of, row_of: int64, of
    each row: its place among the feed's lanes, where it stands there, the number of its block in this plan,
    and the row within that block.
    """

    starts: list[int]
    stops: list[int]
    block_ends: list[int]
    row_ends: list[int]
    shards: list[int]
    numbers: list[int]
    firsts: list[int]
    users: list[int]
    lanes: Int64s
    positions: Int64s
    block_of: Int64s
    row_of: Int64s

    def begin(self, window: int) -> tuple[int, int]:
        """Where the blocks and the rows of a window begin."""
        return (self.block_ends[window - 1], self.row_ends[window - 1]) if window else (0, 0)


class Planner:
    """Plans the windows of neighbouring lanes from one position to another, chunk by chunk."""

    def __init__(self, order: Order, epoch: int, lanes: range, start: int, stop: int) -> None:
        self._order, self._epoch, self._lanes, self._start = order, epoch, lanes, start
        self._rows = [order.lane_rows(epoch, lane) for lane in lanes]
        self._ends = [min(stop, rows) for rows in self._rows]
        self._at = [start] * len(lanes)  # where the next window of each lane begins
        self._starts = np.concatenate([[0], np.cumsum(order.shard_rows)])
        self._span = 1  # at first: those rows are wanted at once

    @property
    def position(self) -> int:
        """Where the next window begins; after the last one, where the longest lane ends."""
        begun = [at for at, end in zip(self._at, self._ends, strict=True) if at < end]
        return min(begun, default=max(self._rows))

    def plan(self) -> Plan | None:
        """The windows that come next; None after the last."""
        if all(at >= end for at, end in zip(self._at, self._ends, strict=True)):
            return None
        horizon = self.position + self._span
        self._span = max(1, _ROWS // len(self._lanes))
        spans = [
            (lane, at, max(at, min(horizon, end)))
            for lane, at, end in zip(self._lanes, self._at, self._ends, strict=True)
        ]
        return self._arrange(spans)

    def _arrange(self, spans: list[tuple[int, int, int]]) -> Plan:
        order, windows = self._order, self._order.windows(self._epoch, spans)
        lanes = windows.lanes - self._lanes.start
        starts = np.maximum(windows.starts, self._start)  # a resume may begin inside of a window
        for lane, stop in zip(lanes.tolist(), windows.stops.tolist(), strict=True):
            self._at[lane] = stop
        turn = np.argsort(starts, kind="stable")

        begins, ends = windows.blocks[:, 0], windows.blocks[:, 1]
        shards = np.searchsorted(self._starts, begins, side="right") - 1
        numbers = (begins - self._starts[shards]) // order.block_rows
        firsts = self._starts[shards] + numbers * order.block_rows
        before = begins - firsts
        after = np.minimum(firsts + order.block_rows, self._starts[shards + 1]) - ends
        users = np.ones(len(firsts), np.int64)
        lane_of = np.repeat(lanes, windows.block_counts)
        for block in np.flatnonzero((before > 0) | (after > 0)).tolist():
            users[block] = self._users(int(lane_of[block]), int(before[block]), int(after[block]))

        sizes = windows.stops - windows.starts
        blocks = _ranges(windows.block_counts, turn)
        rows = _ranges(sizes, turn)
        places = np.empty_like(blocks)
        places[blocks] = np.arange(len(blocks))
        positions = _counted(windows.starts[turn], sizes[turn])
        if windows.starts.min(initial=self._start) < self._start:
            kept = positions >= self._start
            rows, positions = rows[kept], positions[kept]
        return Plan(
            starts[turn].tolist(),
            windows.stops[turn].tolist(),
            np.cumsum(windows.block_counts[turn]).tolist(),
            np.cumsum((windows.stops - starts)[turn]).tolist(),
            shards[blocks].tolist(),
            numbers[blocks].tolist(),
            firsts[blocks].tolist(),
            users[blocks].tolist(),
            np.repeat(lanes[turn], (windows.stops - starts)[turn]),
            positions,
            places[windows.block_of[rows]],
            (windows.rows - firsts[windows.block_of])[rows],
        )

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


def _counted(starts: Int64s, counts: Int64s) -> Int64s:
    """``starts[i], starts[i] + 1, ...``, `counts[i]` of them, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1]) + np.repeat(starts - ends + counts, counts)


def _ranges(counts: Int64s, turn: Int64s) -> Int64s:
    """Where the items of groups of `counts` lie, if the groups are taken in the order of `turn`."""
    return _counted((np.cumsum(counts) - counts)[turn], counts[turn])
