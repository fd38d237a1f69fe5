"""Which rows of which corpus go to which positions of a mixture: windows of all corpora, planned together.

Invariant: windows come in the order of their first position in the mixture, ties by lane; each position of
each lane from `start` to `stop` is in exactly one piece, and no window reaches over more than `most`
positions. Rows of a corpus that is drawn seldom lie further apart: its windows are cut into parts, each of
which is read when it is needed, so that memory is that of the windows, whatever the weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from loaders.pieces import Pieces, Wanted, arrange, ascending, shard_bounds
from policies import Mixture, Order
from policies.order.modes import Windows

Int64s = np.ndarray[Any, np.dtype[np.int64]]
_ROWS: Final = 1 << 15  # planned at a time: a few ms, and tables that stay in a core's cache
_LANE_ROWS: Final = 1 << 11  # of each lane at least: what a lane costs is not to count
_SLACK: Final = 8  # an eighth more than the windows: a lane's own share drifts by some rows


def window_positions(order: Order) -> int:
    """Positions of the largest window of a lane."""
    window = order.window_blocks if order.mode == "full" else order.window_blocks * order.block_rows
    return min(window, -(-len(order) // order.lanes))


def most_positions(mixture: Mixture) -> int:
    """Over how many positions of the mixture a part of a window reaches at most.

    As many as all corpora's windows have together: those that are mixed as their windows are large fit whole.
    """
    positions = sum(map(window_positions, mixture.orders))
    return positions + positions // _SLACK + 1


def mixture_ahead(mixture: Mixture, step: int) -> int:
    """How many batches of `step` positions a feed fills at a time: twice `most_positions`, and two more."""
    return -(-2 * most_positions(mixture) // step) + 2


def blocks_kept(order: Order, lanes: int) -> int:
    """Blocks that parts of windows of so many lanes share: those of a window, and one at its lane's end."""
    blocks = int((-(-order.shard_rows // order.block_rows)).sum())
    return lanes * (min(order.window_blocks, blocks) + 1) + 1


class MixedPlanner:
    """Plans windows of neighbouring lanes of a mixture, chunk by chunk.

    Args:
        mixture, lanes: whose windows.
        start, stop: positions where every lane begins and ends.
        step: positions that are wanted first.
    """

    def __init__(self, mixture: Mixture, lanes: range, start: int, stop: int, step: int) -> None:
        self._mixture, self._lanes, self._stop = mixture, lanes, stop
        self._orders = mixture.orders
        self._bounds = list(map(shard_bounds, self._orders))
        self._rows = np.array([[order.lane_rows(0, lane) for lane in lanes] for order in self._orders])
        # By corpus and lane: rows drawn before `position`, and before those that are not planned.
        self._drawn = np.array([mixture.drawn(lane, start) for lane in lanes]).T.copy()
        self._planned = self._drawn.copy()
        self._position, self._span = start, step
        self._most = most_positions(mixture)
        # No further than what is read ahead: of small corpora that would be many epochs.
        self._chunk = max(step, min(max(_ROWS // len(lanes), _LANE_ROWS), 2 * self._most))
        self.epochs = (self._drawn // self._rows).max(axis=1).tolist()
        """Of each corpus, the furthest one that was begun, or will be with the next row."""

    @property
    def position(self) -> int:
        """Windows that begin before have been planned."""
        return self._position

    @property
    def lane_rows(self) -> list[int]:
        """Where each lane ends: all at once."""
        return [self._stop] * len(self._lanes)

    def plan(self) -> Pieces | None:
        """The windows that come next; None after the last."""
        wanted: list[Wanted] = []
        while not wanted and self._position < self._stop:
            horizon = min(self._position + self._span, self._stop)
            corpora = self._mixture.corpora(self._lanes, self._position, horizon)
            for corpus in range(len(self._orders)):
                self._drawn[corpus] += np.count_nonzero(corpora == corpus, axis=1)
                wanted += self._of(corpus, horizon)
            self._position, self._span = horizon, self._chunk
        return arrange(wanted) if wanted else None

    def _of(self, corpus: int, horizon: int) -> Iterator[Wanted]:
        """Windows of a corpus that begin before the horizon."""
        planned, drawn = self._planned[corpus], self._drawn[corpus]
        spans: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for lane in np.flatnonzero(planned < drawn).tolist():
            rows, number, stop = int(self._rows[corpus, lane]), int(planned[lane]), int(drawn[lane])
            while number < stop:
                epoch, first = divmod(number, rows)
                last = min(rows, first + stop - number)
                spans[epoch].append((self._lanes[lane], first, last))
                number += last - first
        for epoch in sorted(spans):
            self.epochs[corpus] = max(self.epochs[corpus], epoch)
            yield self._cut(corpus, epoch, self._orders[corpus].windows(epoch, spans[epoch]), horizon)

    def _cut(self, corpus: int, epoch: int, windows: Windows, horizon: int) -> Wanted:
        """What of these windows is not planned yet, in parts that do not reach too far; of an epoch."""
        order, planned = self._orders[corpus], self._planned[corpus]
        lanes = windows.lanes - self._lanes.start
        lengths = windows.stops - windows.starts
        begins = windows.starts + epoch * self._rows[corpus, lanes]  # rows of the lane before, of all epochs
        numbers = ascending(begins, lengths)
        window_of = np.repeat(np.arange(len(lanes)), lengths)
        positions = self._mixture.positions(corpus, windows.lanes[window_of], numbers)
        skipped = np.maximum(planned[lanes] - begins, 0)
        firsts = positions[np.cumsum(lengths) - lengths + skipped]  # of what is wanted of each window
        lasts = positions[np.cumsum(lengths) - 1]
        if not skipped.any() and int(lasts.max()) < self._stop and (lasts - firsts < self._most).all():
            planned[lanes] = begins + lengths  # of several windows of a lane the last one counts
            return Wanted(
                corpus,
                self._bounds[corpus],
                order.block_rows,
                lanes,
                firsts,
                lasts + 1,
                windows.block_counts,
                np.zeros(len(lanes), bool),
                windows.blocks,
                windows.block_of,
                windows.rows,
                positions,
            )
        turns = (positions - firsts[window_of]) // self._most

        wanted = np.flatnonzero((positions < self._stop) & (numbers >= (begins + skipped)[window_of]))
        new = (np.diff(window_of[wanted], prepend=-1) != 0) | (np.diff(turns[wanted], prepend=-1) != 0)
        heads = wanted[new]  # the first row of each part
        part_of = np.cumsum(new) - 1
        late = positions[heads] >= horizon  # the last parts of the last window of a lane
        planned[lanes] = begins + lengths
        later = heads[late][::-1]  # the first one counts
        planned[lanes[window_of[later]]] = numbers[later]

        wanted, part_of = wanted[~late[part_of]], part_of[~late[part_of]]
        heads = heads[~late]
        of = window_of[heads]
        part_of = np.searchsorted(np.flatnonzero(~late), part_of)
        sizes = np.bincount(part_of, minlength=len(heads))
        block_counts = windows.block_counts[of]
        before = np.cumsum(windows.block_counts) - windows.block_counts
        moved = np.cumsum(block_counts) - block_counts - before[of]
        return Wanted(
            corpus,
            self._bounds[corpus],
            order.block_rows,
            lanes[of],
            positions[heads],
            positions[wanted[np.cumsum(sizes) - 1]] + 1,
            block_counts,
            (sizes < lengths[of]) & (order.mode != "full"),
            windows.blocks[ascending(before[of], block_counts)],
            windows.block_of[wanted] + moved[part_of],
            windows.rows[wanted],
            positions[wanted],
        )
