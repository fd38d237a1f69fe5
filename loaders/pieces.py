"""Which rows of which block go to which positions: the windows of a rank's lanes, many planned at a time.

Invariant: windows come in the order of their first position, ties by lane, as lanes advance in lockstep; each
position of each lane from `start` to `stop` is in exactly one piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from loaders.ahead import Spans
from policies import Order

Int64s = np.ndarray[Any, np.dtype[np.int64]]


class Piece(NamedTuple):
    """Rows of one block that one window needs."""

    source: int
    """Which of the feed's corpora has the block."""
    lane: int
    """Counted from the first lane of the feed."""
    shard: int
    block: int
    """Its number in the shard."""
    cut: bool
    """Whether other lanes have rows of the block, or other pieces of this lane."""
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


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """Rows that windows of one order need; where they are cut, each part is a window of its own.

    source: number of the corpus. bounds: row where each shard begins, then the total. block_rows: of a stored
    block. lanes, starts, stops, block_counts: int64, shape (k,): of each window: its lane, counted from the
    first one of the feed; positions of the feed; how many of `blocks` it may need. parts: bool, shape (k,):
    whether it is a part of a window. blocks: int64, shape (n, 2): global rows of each block, half open.
    block_of, rows, positions: int64, shape (m,), window by window: of each row that is wanted.
    """

    source: int
    bounds: Int64s
    block_rows: int
    lanes: Int64s
    starts: Int64s
    stops: Int64s
    block_counts: Int64s
    parts: np.ndarray[Any, np.dtype[np.bool_]]
    blocks: Int64s
    block_of: Int64s
    rows: Int64s
    positions: Int64s


class Plans(Protocol):
    """What a feed asks for the windows to read."""

    @property
    def position(self) -> int:
        """Windows that begin before have been planned; after the last one, where the longest lane ends."""
        ...

    @property
    def lane_rows(self) -> list[int]:
        """Position at which each lane ends, if the feed does not end before."""
        ...

    def plan(self) -> Pieces | None:
        """The windows that come next, one or more; None after the last."""
        ...


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
        self._bounds = shard_bounds(order)

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
        positions = ascending(windows.starts, windows.stops - windows.starts)
        block_of, rows = windows.block_of, windows.rows
        # A resume may begin inside of a window.
        starts = np.maximum(windows.starts, self._start)
        if bool((windows.starts < self._start).any() or (windows.stops > self._stop).any()):
            wanted = np.flatnonzero((positions >= self._start) & (positions < self._stop))
            block_of, rows, positions = block_of[wanted], rows[wanted], positions[wanted]
        return arrange(
            [
                Wanted(
                    0,
                    self._bounds,
                    self._order.block_rows,
                    windows.lanes - self._lanes.start,
                    starts,
                    windows.stops,
                    windows.block_counts,
                    np.zeros(len(starts), bool),
                    windows.blocks,
                    block_of,
                    rows,
                    positions,
                )
            ]
        )


def shard_bounds(order: Order) -> Int64s:
    """Row where each shard begins, then the total."""
    return np.concatenate([[0], np.cumsum(order.shard_rows)])


def ascending(starts: Int64s, lengths: Int64s) -> Int64s:
    """Numbers ``[start, start + length)`` of each, one after the other."""
    numbers = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    numbers += np.arange(len(numbers))
    return numbers


def arrange(wanted: Sequence[Wanted]) -> Pieces:
    """The pieces that bring these rows to their positions, in the order of their need."""
    counts, stands, positions, rows = [], [], [], []
    for each in wanted:
        begins, ends = each.blocks[:, 0], each.blocks[:, 1]
        shards = np.searchsorted(each.bounds, begins, side="right") - 1
        blocks = (begins - each.bounds[shards]) // each.block_rows
        zeros = each.bounds[shards] + blocks * each.block_rows  # number of each block's first row
        cut = (begins > zeros) | (ends < np.minimum(zeros + each.block_rows, each.bounds[shards + 1]))
        cut |= np.repeat(each.parts, each.block_counts)
        some, places, numbers = _by_block(each)
        if numbers is None:
            firsts = begins - zeros
        else:
            firsts = numbers[np.minimum(np.cumsum(some) - some, len(numbers) - 1)] - zeros
            numbers -= np.repeat(zeros, some)
        lanes = np.repeat(each.lanes, each.block_counts)
        counts.append(some)
        stands.append((np.full(len(lanes), each.source), lanes, shards, blocks, cut, firsts))
        positions.append(places)
        rows.append(numbers)
    if any(numbers is not None for numbers in rows):
        rows = [
            ascending(stand[-1], some) if numbers is None else numbers
            for numbers, stand, some in zip(rows, stands, counts, strict=True)
        ]
    sizes = _joined(counts)
    sources, lanes, shards, blocks, cut, firsts = map(_joined, zip(*stands, strict=True))
    starts, stops, block_counts = (
        _joined([getattr(each, name) for each in wanted]) for name in ("starts", "stops", "block_counts")
    )

    turn = np.lexsort((_joined([each.lanes for each in wanted]), starts))
    before = (np.cumsum(block_counts) - block_counts)[turn]
    pieces = ascending(before, block_counts[turn])
    filled = sizes[pieces] > 0  # a block without a row that is wanted is no piece
    block_ends = np.cumsum(block_counts[turn])
    pieces = pieces[filled]
    ends = np.cumsum(sizes)
    columns = (sources, lanes, shards, blocks, cut, ends - sizes, ends, firsts)
    return Pieces(
        starts[turn].tolist(),
        stops[turn].tolist(),
        np.cumsum(filled)[block_ends - 1].tolist(),
        list(map(Piece, *(each[pieces].tolist() for each in columns))),
        _joined(positions),
        None if rows[0] is None else _joined(rows),
    )


def _by_block(wanted: Wanted) -> tuple[Int64s, Int64s, Int64s | None]:
    """How many rows of each block are wanted; their positions, by block and number; and these, new.

    The global numbers are left out where nothing is missing between the first row of a block and the last.
    """
    positions, begins = wanted.positions, wanted.blocks[:, 0]
    extents = wanted.blocks[:, 1] - begins
    ends = np.cumsum(extents)
    if int(ends[-1]) == len(positions):
        by_block = np.empty_like(positions)
        by_block[(ends - extents - begins)[wanted.block_of] + wanted.rows] = positions
        return extents, by_block, None
    chosen = np.lexsort((wanted.rows, wanted.block_of))
    counts = np.bincount(wanted.block_of, minlength=len(extents))
    return counts, positions[chosen], wanted.rows[chosen]


def _joined(arrays: Sequence[Any]) -> Any:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
