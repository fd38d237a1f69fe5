"""What every mode of the sample order shares: the layout it arranges, and the window it hands out.

Invariant: arguments were checked by `policies.order.Order`; a mode sees epochs >= 0, lanes that exist and
positions inside them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Layout", "Mode", "Window", "first_needed"]

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The corpus as an order sees it, and how it is cut.

    starts: int64, shape (shards + 1,): global number of each shard's first row, then the total; strictly
    increasing. block_rows: rows of a stored block; the last block of a shard may be shorter.
    lanes: slices of an epoch. group_shards: pieces of shards whose blocks are shuffled together.
    window_blocks: blocks whose rows are shuffled together. seed: int in [0, 2**64).
    """

    starts: Int64s
    block_rows: int
    lanes: int
    group_shards: int
    window_blocks: int
    seed: int

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return int(self.starts[-1])

    def lane_limits(self, lane: int) -> tuple[int, int]:
        """Return where the lane begins (inclusive) and ends (exclusive) in the row space of an epoch."""
        return lane * self.rows // self.lanes, (lane + 1) * self.rows // self.lanes


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """The unit a reader fills: rows of one lane that are mixed with each other and with nothing else.

    start (inclusive), stop (exclusive): positions in the lane.
    blocks: int64, shape (k, 2): global row numbers [first, past the last) of each block or cut block, in
    block order. rows: int64, shape (stop - start,): global row number at each position; the same rows as
    `blocks`. Both arrays are read-only, for windows are remembered and shared.
    """

    start: int
    stop: int
    blocks: Int64s
    rows: Int64s

    def __post_init__(self) -> None:
        self.blocks.flags.writeable = self.rows.flags.writeable = False


class Mode(ABC):
    """One way to arrange a layout's rows: pure and seekable, no call depends on another."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    @abstractmethod
    def window(self, epoch: int, lane: int, position: int) -> Window:
        """Return the window that holds this position of the lane; position in [0, rows of the lane)."""

    @abstractmethod
    def shards(self, epoch: int, lanes: Sequence[int]) -> Int64s:
        """Return the shards of these lanes (ascending, no repeats), each once, as they are first needed.

        A shard is needed where the first window that holds one of its rows begins, for a window is read whole
        before its first row is used. Equal positions go by lane, then by block order.
        """

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


def first_needed(shards: Sequence[Int64s], positions: Sequence[Int64s]) -> Int64s:
    """Merge lanes advanced in lockstep: each shard once, by its smallest position, ties by place given.

    shards[k], positions[k]: int64, equal shapes: the shards of one lane and where it first needs them.
    """
    if not shards:
        return np.empty(0, dtype=np.int64)
    merged = np.concatenate(shards)[np.argsort(np.concatenate(positions), kind="stable")]
    _, first = np.unique(merged, return_index=True)
    return merged[np.sort(first)]
