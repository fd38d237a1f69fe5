"""Which rows of which block go where in which batch: the windows of a rank's lanes, many planned at a time.

Invariant: windows come in the order of their first position, ties by lane, as lanes advance in lockstep; each
row of each batch is in exactly one piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from loaders.ahead import Spans
from policies import Order

Int64s = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """Windows in the order of their need, and the pieces that each is read in: rows of one block.

    starts, stops: of each window: positions [start, stop) of its lane. piece_ends: where its pieces end in
    what follows. shards, blocks, cut: of each piece: its shard, the number of its block there, and whether
    other lanes have rows of that. begins, ends: its rows are [begin, end) of the arrays below.
    rows, batches, places: int64, shape (rows,): number of each row in its block, ascending in a piece; number
    of its batch, from 0; its row there.
    """

    starts: list[int]
    stops: list[int]
    piece_ends: list[int]
    shards: list[int]
    blocks: list[int]
    cut: list[bool]
    begins: list[int]
    ends: list[int]
    rows: Int64s
    batches: Int64s
    places: Int64s


class PiecePlanner:
    """Plans the windows of neighbouring lanes, chunk by chunk.

    Args:
        order, epoch, lanes: whose windows.
        start, stop: positions where every lane begins and ends, if it has so many rows.
        step: positions of a batch; its rows come lane by lane.
    """

    def __init__(self, order: Order, epoch: int, lanes: range, start: int, stop: int, step: int) -> None:
        self._order, self._epoch, self._lanes = order, epoch, lanes
        self._start, self._stop, self._step = start, stop, step
        self._spans = Spans(order, epoch, lanes, start, stop)
        self._bounds = np.concatenate([[0], np.cumsum(order.shard_rows)])
        self.batches = -(-(stop - start) // step)
        """How many batches there are."""
        # Of the last batch alone some lanes may have fewer positions than others.
        last = max(0, self.batches - 1) * step + start
        self._last = np.cumsum([0, *(max(0, min(stop, rows) - last) for rows in self._spans.rows)])

    @property
    def position(self) -> int:
        """Where the next window begins; after the last one, where the longest lane ends."""
        return self._spans.position

    def rows_of(self, batch: int) -> int:
        """Rows of a batch."""
        return int(self._last[-1]) if batch == self.batches - 1 else len(self._lanes) * self._step

    def plan(self) -> Pieces | None:
        """The windows that come next; None after the last."""
        spans = self._spans.take()
        return None if spans is None else self._arrange(spans)

    def _arrange(self, spans: list[tuple[int, int, int]]) -> Pieces:
        order, windows = self._order, self._order.windows(self._epoch, spans)
        self._spans.advance(windows)
        lengths = windows.stops - windows.starts
        window_of = np.repeat(np.arange(len(lengths)), lengths)
        positions = np.arange(len(window_of)) + (windows.starts - (np.cumsum(lengths) - lengths))[window_of]
        by_row = _by_block_and_row(windows.blocks, windows.block_of, windows.rows)
        wanted = positions[by_row]
        by_row = by_row[(wanted >= self._start) & (wanted < self._stop)]

        begins = windows.blocks[:, 0]
        shards = np.searchsorted(self._bounds, begins, side="right") - 1
        blocks = (begins - self._bounds[shards]) // order.block_rows
        firsts = self._bounds[shards] + blocks * order.block_rows
        lasts = np.minimum(firsts + order.block_rows, self._bounds[shards + 1])
        cut = (begins > firsts) | (windows.blocks[:, 1] < lasts)
        block_of = windows.block_of[by_row]
        lanes = windows.lanes[window_of[by_row]] - self._lanes.start
        batches, places = np.divmod(positions[by_row] - self._start, self._step)
        places += np.where(batches == self.batches - 1, self._last[lanes], lanes * self._step)
        counts = np.bincount(block_of, minlength=len(begins))
        ends = np.cumsum(counts)

        # A resume may begin inside of a window. Blocks without a row that is wanted are no pieces.
        starts = np.maximum(windows.starts, self._start)
        turn = np.argsort(starts, kind="stable")
        before = np.cumsum(windows.block_counts) - windows.block_counts
        order_of_pieces = np.concatenate(
            [np.arange(before[w], before[w] + windows.block_counts[w]) for w in turn.tolist()]
        )
        filled = counts[order_of_pieces] > 0
        piece_ends = np.cumsum(filled)[np.cumsum(windows.block_counts[turn]) - 1]
        pieces = order_of_pieces[filled]
        return Pieces(
            starts[turn].tolist(),
            windows.stops[turn].tolist(),
            piece_ends.tolist(),
            *(each[pieces].tolist() for each in (shards, blocks, cut, ends - counts, ends)),
            windows.rows[by_row] - firsts[block_of],
            batches,
            places,
        )


def _by_block_and_row(blocks: Int64s, block_of: Int64s, rows: Int64s) -> Int64s:
    """The order that sorts rows by block, and by number within it."""
    lengths = blocks[:, 1] - blocks[:, 0]
    ends = np.cumsum(lengths)
    if ends[-1] > len(rows):  # rows are missing between others
        return np.lexsort((rows, block_of))
    places = (ends - lengths - blocks[:, 0])[block_of] + rows
    by_row = np.empty(len(rows), np.int64)
    by_row[places] = np.arange(len(rows))
    return by_row
