"""Which rows of which block go to which positions: the windows of a rank's lanes, many planned at a time.

Invariant: windows come in the order of their first position, ties by lane, as lanes advance in lockstep; each
position of each lane from `start` to `stop` is in exactly one piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from loaders.ahead import Spans
from policies import Order
from policies.order.modes import Windows

Int64s = np.ndarray[Any, np.dtype[np.int64]]


class Piece(NamedTuple):
    """Rows of one block that one window needs."""

    lane: int
    """Counted from the first lane of the feed."""
    shard: int
    block: int
    """Its number in the shard."""
    cut: bool
    """Whether other lanes have rows of the block."""
    begin: int
    """Its rows are [begin, end) of the arrays of `Pieces`."""
    end: int
    first: int
    """Number of its first row in the block."""


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """Windows in the order of their need, and what each is read in.

    starts, stops: of each window: positions [start, stop) of its lane. piece_ends: where its pieces end in
    `pieces`. positions: int64: where in its lane each row stands; by piece, ascending by the row's number in
    its block. rows: None where all rows of a piece follow its first one without a gap; else the number of
    each in its block: int64, the shape of `positions`.
    """

    starts: list[int]
    stops: list[int]
    piece_ends: list[int]
    pieces: list[Piece]
    positions: Int64s
    rows: Int64s | None


class PiecePlanner:
    """Plans the windows of neighbouring lanes, chunk by chunk.

    Args:
        order, epoch, lanes: whose windows.
        start, stop: positions where every lane begins and ends, if it has so many rows.
    """

    def __init__(self, order: Order, epoch: int, lanes: range, start: int, stop: int) -> None:
        self._order, self._epoch, self._lanes = order, epoch, lanes
        self._start, self._stop = start, stop
        self._spans = Spans(order, epoch, lanes, start, stop)
        self._bounds = np.concatenate([[0], np.cumsum(order.shard_rows)])

    @property
    def position(self) -> int:
        """Where the next window begins; after the last one, where the longest lane ends."""
        return self._spans.position

    @property
    def lane_rows(self) -> list[int]:
        """How many positions each lane has in the epoch."""
        return self._spans.rows

    def plan(self) -> Pieces | None:
        """The windows that come next; None after the last."""
        spans = self._spans.take()
        if spans is None:
            return None
        windows = self._order.windows(self._epoch, spans)
        self._spans.advance(windows)
        return self._arrange(windows)

    def _arrange(self, windows: Windows) -> Pieces:
        size, bounds = self._order.block_rows, self._bounds
        begins, ends = windows.blocks[:, 0], windows.blocks[:, 1]
        shards = np.searchsorted(bounds, begins, side="right") - 1
        blocks = (begins - bounds[shards]) // size
        zeros = bounds[shards] + blocks * size  # number of each block's first row
        cut = (begins > zeros) | (ends < np.minimum(zeros + size, bounds[shards + 1]))
        lanes = np.repeat(windows.lanes - self._lanes.start, windows.block_counts)
        counts, positions, rows = self._by_block(windows)
        firsts = (
            begins if rows is None else rows[np.minimum(np.cumsum(counts) - counts, len(rows) - 1)]
        ) - zeros
        stops = np.cumsum(counts)

        # A resume may begin inside of a window; a block without a row that is wanted is no piece.
        starts = np.maximum(windows.starts, self._start)
        turn = np.argsort(starts, kind="stable")
        block_counts = windows.block_counts[turn]
        block_ends = np.cumsum(block_counts)
        before = (np.cumsum(windows.block_counts) - windows.block_counts)[turn]
        pieces = np.arange(len(begins)) + np.repeat(before - block_ends + block_counts, block_counts)
        filled = counts[pieces] > 0
        pieces = pieces[filled]
        stands = (lanes, shards, blocks, cut, stops - counts, stops, firsts)
        return Pieces(
            starts[turn].tolist(),
            windows.stops[turn].tolist(),
            np.cumsum(filled)[block_ends - 1].tolist(),
            list(map(Piece, *(each[pieces].tolist() for each in stands))),
            positions,
            None if rows is None else rows - np.repeat(zeros, counts),
        )

    def _by_block(self, windows: Windows) -> tuple[Int64s, Int64s, Int64s | None]:
        """How many rows of each block are wanted; their positions, by block and number; and these.

        The global numbers are left out where nothing is missing between the first row of a block and the
        last.
        """
        lengths = windows.stops - windows.starts
        positions = np.repeat(windows.starts - (np.cumsum(lengths) - lengths), lengths)
        positions += np.arange(len(positions))
        trimmed = bool((windows.starts < self._start).any() or (windows.stops > self._stop).any())
        extents = windows.blocks[:, 1] - windows.blocks[:, 0]
        ends = np.cumsum(extents)
        if int(ends[-1]) == len(positions) and not trimmed:
            by_block = np.empty_like(positions)
            by_block[(ends - extents - windows.blocks[:, 0])[windows.block_of] + windows.rows] = positions
            return extents, by_block, None
        chosen = np.lexsort((windows.rows, windows.block_of))
        wanted = positions[chosen]
        chosen = chosen[(wanted >= self._start) & (wanted < self._stop)]
        counts = np.bincount(windows.block_of[chosen], minlength=len(extents))
        return counts, positions[chosen], windows.rows[chosen]
