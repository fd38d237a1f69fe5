"""What every mode of the sample order shares: the layout it arranges, and the window it hands out.

Invariant: arguments were checked by `policies.order.Order`; a mode sees epochs >= 0, lanes that exist and
positions inside them. A mode arranges *numbers*: the rows that take part, counted from 0 in stored order.
Only `Layout` knows which rows of the corpus these are.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from policies.order.rowset import RowSet

__all__ = ["Layout", "Mode", "Uses", "Window", "Windows", "covering"]

Int64s = npt.NDArray[np.int64]

_NO_ROWS = np.empty(0, dtype=np.int64)
_NO_BLOCKS = np.empty((0, 2), dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The corpus as an order sees it, and how it is cut.

    starts: int64, shape (shards + 1,): number of each shard's first row that takes part, then the total;
    strictly increasing. begins, ends: int64, shape (shards,): global rows of each shard, half open; all of
    them take part, or those in `kept`. block_rows: rows of a stored block; the last block of a shard may be
    shorter. lanes: slices of an epoch. group_shards: pieces of shards whose blocks are shuffled together.
    window_blocks: blocks whose rows are shuffled together. seed: int in [0, 2**64). lasting: whether a lane
    has the same rows in every epoch.
    """

    starts: Int64s
    begins: Int64s
    ends: Int64s
    kept: RowSet | None
    block_rows: int
    lanes: int
    group_shards: int
    window_blocks: int
    seed: int
    lasting: bool

    @property
    def rows(self) -> int:
        """Rows that take part."""
        return int(self.starts[-1])

    def lane_limits(self, lane: int) -> tuple[int, int]:
        """Return where the lane begins (inclusive) and ends (exclusive) in the row space of an epoch."""
        return lane * self.rows // self.lanes, (lane + 1) * self.rows // self.lanes

    def rows_of(self, numbers: Int64s) -> Int64s:
        """Return the global rows with these numbers; perhaps `numbers` itself."""
        return numbers if self.kept is None else self.kept.select(numbers)

    def numbers_of(self, rows: Int64s) -> Int64s:
        """Return how many rows that take part come before each of `rows`; perhaps `rows` itself."""
        return rows if self.kept is None else self.kept.rank(rows)

    def shards_of(self, numbers: Int64s) -> Int64s:
        """Return the shards that hold these numbers."""
        return np.searchsorted(self.starts, numbers, side="right") - 1

    def blocks(self, shards: Int64s, low: Int64s, high: Int64s) -> tuple[Int64s, Int64s, Int64s]:
        """Cut pieces of shards at the bounds of stored blocks; blocks without a number are left out.

        shards, low, high: equal shapes: numbers [low, high), of that shard and not empty. Returns (piece,
        first, last), one entry a block, piece by piece: index of the piece, numbers [first, last).
        """
        base, begin, end = self.begins[shards], self.rows_of(low), self.rows_of(high - 1) + 1
        first_block = (begin - base) // self.block_rows
        counts = (end - base - 1) // self.block_rows + 1 - first_block
        piece = np.repeat(np.arange(len(counts)), counts)
        block = np.arange(len(piece)) + np.repeat(first_block - (np.cumsum(counts) - counts), counts)
        cut = block * self.block_rows + base[piece]
        first = self.numbers_of(np.maximum(cut, begin[piece]))
        last = self.numbers_of(np.minimum(cut + self.block_rows, end[piece]))
        if self.kept is None:
            return piece, first, last
        filled = first < last
        return piece[filled], first[filled], last[filled]

    def extents(self, first: Int64s, last: Int64s) -> Int64s:
        """Return the global rows [first, past the last) of runs of numbers: int64, shape (runs, 2), new."""
        return np.column_stack((self.rows_of(first), self.rows_of(last - 1) + 1))


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """The unit a reader fills: rows of one lane that are mixed with each other and with nothing else.

    start (inclusive), stop (exclusive): positions in the lane.
    blocks: int64, shape (k, 2): global row numbers [first, past the last) of each block or cut block, in
    block order: what to read. rows: int64, shape (stop - start,): global row number at each position. In the
    modes "none" and "window" over all rows these are the rows of `blocks`; where a subset is kept, a block is
    cut to its first and last kept row of this lane, and `rows` are the kept ones; in mode "full" `blocks` are
    whole stored blocks, ascending, of which `rows` are some. Both arrays are read-only, for windows are
    remembered and shared.
    """

    start: int
    stop: int
    blocks: Int64s
    rows: Int64s

    def __post_init__(self) -> None:
        self.blocks.flags.writeable = self.rows.flags.writeable = False


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Windows of several lanes, joined: what `Window` holds of each, one after the other.

    lanes, starts, stops, block_counts: int64, shape (k,): of each window. blocks: int64, shape (n, 2), as
    there. rows, block_of: int64, shape (m,): global row at each position, and which of `blocks` holds it.
    """

    lanes: Int64s
    starts: Int64s
    stops: Int64s
    block_counts: Int64s
    blocks: Int64s
    rows: Int64s
    block_of: Int64s


@dataclass(frozen=True, slots=True, eq=False)
class Uses:
    """The stretches of a lane in which it uses a shard, by start, ties by block order: int64, shape (uses,).

    starts: where the first window begins that holds a row of it, for a window is read whole before its first
    row is used. stops: where the last such window ends (exclusive).
    """

    shards: Int64s
    starts: Int64s
    stops: Int64s


class Mode(ABC):
    """One way to arrange a layout's rows: pure and seekable, no call depends on another."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    @abstractmethod
    def window(self, epoch: int, lane: int, position: int) -> Window:
        """Return the window that holds this position of the lane; position in [0, rows of the lane)."""

    def windows(self, epoch: int, spans: Sequence[tuple[int, int, int]]) -> Windows:
        """Return the windows that hold positions [start, stop) of each (lane, start, stop), span by span."""
        found, lanes = [], []
        for lane, start, stop in spans:
            while start < stop:
                found.append(self.window(epoch, lane, start))
                lanes.append(lane)
                start = found[-1].stop
        return _joined(lanes, found)

    @abstractmethod
    def uses(self, epoch: int, lane: int) -> Uses:
        """Return the uses of every shard of the lane, one for each."""

    def shards(self, epoch: int, lanes: Sequence[int]) -> Int64s:
        """Return the shards of these lanes (ascending, no repeats), each once, as they are first needed.

        A shard is needed where its use starts. Equal positions go by lane, then by block order.
        """
        uses = [self.uses(epoch, lane) for lane in lanes]
        return first_needed([use.shards for use in uses], [use.starts for use in uses])

    def rows(self, epoch: int, lane: int, start: int, stop: int) -> Int64s:
        """Return the global row numbers at positions [start, stop) of the lane: int64, (stop - start,)."""
        rows = np.empty(stop - start, dtype=np.int64)
        position = start
        while position < stop:
            window = self.window(epoch, lane, position)
            end = min(stop, window.stop)
            rows[position - start : end - start] = window.rows[position - window.start : end - window.start]
            position = end
        return rows


def _joined(lanes: Sequence[int], windows: Sequence[Window]) -> Windows:
    counts = np.array([len(window.blocks) for window in windows], dtype=np.int64)
    block_of = []
    for before, window in zip(np.cumsum(counts) - counts, windows, strict=True):
        by_row = np.argsort(window.blocks[:, 0])
        found = np.searchsorted(window.blocks[by_row, 0], window.rows, side="right") - 1
        block_of.append(before + by_row[found])
    return Windows(
        np.array(lanes, dtype=np.int64),
        np.array([window.start for window in windows], dtype=np.int64),
        np.array([window.stop for window in windows], dtype=np.int64),
        counts,
        np.concatenate([_NO_BLOCKS, *(window.blocks for window in windows)]),
        np.concatenate([_NO_ROWS, *(window.rows for window in windows)]),
        np.concatenate([_NO_ROWS, *block_of]),
    )


def first_needed(shards: Sequence[Int64s], positions: Sequence[Int64s]) -> Int64s:
    """Merge lanes advanced in lockstep: each shard once, by its smallest position, ties by place given.

    shards[k], positions[k]: int64, equal shapes: the shards of one lane and where it first needs them.
    """
    if not shards:
        return np.empty(0, dtype=np.int64)
    merged = np.concatenate(shards)[np.argsort(np.concatenate(positions), kind="stable")]
    _, first = np.unique(merged, return_index=True)
    return merged[np.sort(first)]


def covering(starts: Int64s, begin: int, end: int) -> tuple[int, int]:
    """Return the range [first, last) of the shards with numbers in [begin, end); starts as in `Layout`."""
    first = int(np.searchsorted(starts, begin, side="right")) - 1
    return first, int(np.searchsorted(starts, end, side="left")) if begin < end else first
