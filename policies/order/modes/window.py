"""Mode "window": shards permuted over the corpus, blocks in a group of shards, rows in a window of blocks.

The order of an epoch, frozen for ever (k(...) is `policies.order.permute.derive`, by which a permutation is
keyed):

1. The S shards are permuted by k(seed, SHARDS, epoch). Their rows, in that order, are the permuted row space
   of N rows.
2. Lane l of L is its positions [l*N//L, (l+1)*N//L). A lane is a run of pieces: whole shards, cut at the
   lane's ends. With `affinity="lane"` step 1 is keyed by k(seed, DEALT) instead, so that a lane has the same
   pieces in every epoch, and these are permuted by k(seed, PIECES, epoch, l).
3. A lane's pieces are taken in groups of `group_shards`. Each piece is cut at the multiples of `block_rows`
   from its shard's start. The blocks of group g, listed piece by piece, are permuted by k(seed, BLOCKS,
   epoch, l, g).
4. The permuted blocks of a group are cut in windows of `window_blocks`. The rows of window w, listed block by
   block, are permuted by k(seed, ROWS, epoch, l, g, w).

So a lane reads from `group_shards` shards at a time and holds `window_blocks` blocks. Memory: O(shards) for
an epoch's shard order and that of the lanes in use, O(blocks of a group) and O(rows of a window) for each of
these.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from policies.order.memo import Memo
from policies.order.modes.base import Int64s, Layout, Mode, Uses, Window, Windows, covering
from policies.order.permute import UInt64s, derive, derive_array, permutation, permutations

__all__ = ["Windowed"]

_SHARDS, _BLOCKS, _ROWS, _DEALT, _PIECES = 1, 2, 3, 5, 6  # domains of `derive`; 4 is that of mode "full"
_NONE = np.empty(0, dtype=np.int64)
_EPOCHS_KEPT = 2  # the one in training and the one that prefetch looks into
_DEAL_BLOCKS = 1 << 18  # blocks dealt at once by `shards`: a few MiB, and few enough calls for 10^6 shards


@dataclass(frozen=True, slots=True, eq=False)
class _Space:
    """The permuted row space. shards: int64 (S,), by rank. starts: int64 (S + 1,), first position of each."""

    shards: Int64s
    starts: Int64s


@dataclass(frozen=True, slots=True, eq=False)
class _Lane:
    """The pieces of a lane in the order they are taken.

    shards: int64 (pieces,). starts: int64 (pieces + 1,), first position of each in the lane, then its rows.
    cut: the piece whose shard begins in the lane before, and `skip`: how many of its numbers lie there.
    """

    shards: Int64s
    starts: Int64s
    cut: int
    skip: int


@dataclass(frozen=True, slots=True, eq=False)
class _Deal:
    """Permuted blocks of consecutive groups of a lane, in the order they are taken: int64, shape (blocks,).

    piece: number of the block's piece among the pieces dealt. first, last: its numbers, half open.
    stop: rows of the blocks up to and with this one: its end in the lane, counted from the first group dealt.
    """

    piece: Int64s
    first: Int64s
    last: Int64s
    stop: Int64s


class Windowed(Mode):
    """The two-level shuffle for tiers that read blocks; see the module for the definition."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        # Twice the lanes: a reader and a prefetcher may stand in different windows of each.
        self._spaces: Memo[int, _Space] = Memo(_EPOCHS_KEPT)
        self._lanes: Memo[tuple[int, int], _Lane] = Memo(2 * layout.lanes)
        self._groups: Memo[tuple[int, int, int], _Deal] = Memo(2 * layout.lanes)
        self._windows: Memo[tuple[int, int, int, int], Window] = Memo(2 * layout.lanes)

    def window(self, epoch: int, lane: int, position: int) -> Window:
        """Return the window at `position`: some searches and, where not remembered, one permutation."""
        group, deal, group_start = self._group(epoch, lane, position)
        place = int(np.searchsorted(deal.stop, position - group_start, side="right"))
        number = place // self.layout.window_blocks
        return self._windows.get(
            (epoch, lane, group, number),
            lambda: self._window((epoch, lane, group, number), deal, group_start),
        )

    def windows(self, epoch: int, spans: Sequence[tuple[int, int, int]]) -> Windows:
        """Return the windows of many lanes: all their rows are permuted together."""
        size = self.layout.window_blocks
        self._deal_together(epoch, spans)
        found: list[tuple[int, int, int, int, int]] = []  # lane, key, windows [low, high), start of the group
        blocks = [(_NONE, _NONE, _NONE)]
        for lane, start, stop in spans:
            while start < stop:
                group, deal, group_start = self._group(epoch, lane, start)
                limits = (start - group_start, stop - group_start - 1)
                low, high = deal.stop.searchsorted(limits, side="right").tolist()
                low, high = low // size, min(high, len(deal.stop) - 1) // size + 1
                taken = slice(low * size, high * size)
                blocks.append((deal.first[taken], deal.last[taken], deal.stop[taken]))
                key = derive(self.layout.seed, _ROWS, epoch, lane, group)
                found.append((lane, key, low, high, group_start))
                start = group_start + int(blocks[-1][2][-1])
        first, last, stops = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        lanes, low, high, begins = (
            np.array([(lane, low, high, begin) for lane, _, low, high, begin in found], np.int64)
            .reshape(-1, 4)
            .T
        )
        keys = np.array([key for _, key, *_ in found], np.uint64)
        counts = high - low
        ends = np.cumsum(counts)
        sizes = np.full(int(ends[-1]) if len(ends) else 0, size)
        sizes[ends - 1] = [len(part) for part, _, _ in blocks[1:]] - (counts - 1) * size
        numbers = np.arange(len(sizes)) - np.repeat(ends - counts - low, counts)
        return self._permuted(
            np.repeat(lanes, counts),
            stops[np.cumsum(sizes) - 1] + np.repeat(begins, counts),
            sizes,
            derive_array(np.repeat(keys, counts), numbers.astype(np.uint64)),
            first,
            last,
        )

    def uses(self, epoch: int, lane: int) -> Uses:
        """Return the shards by the first window that holds them: O(blocks of the lane), memory O(shards)."""
        pieces = self._lane(epoch, lane)
        shards, starts, stops = [pieces.shards[:0]], [pieces.starts[:0]], [pieces.starts[:0]]
        for first, last in self._runs(pieces):
            met, begins, ends = self._stretches(epoch, lane, first, last)
            rank = first * self.layout.group_shards
            shards.append(pieces.shards[rank + met])
            starts.append(begins + pieces.starts[rank])
            stops.append(ends + pieces.starts[rank])
        return Uses(np.concatenate(shards), np.concatenate(starts), np.concatenate(stops))

    def _space(self, epoch: int) -> _Space:
        if self.layout.lasting:
            return self._spaces.get(0, lambda: self._permute_shards(derive(self.layout.seed, _DEALT)))
        return self._spaces.get(epoch, lambda: self._permute_shards(derive(self.layout.seed, _SHARDS, epoch)))

    def _permute_shards(self, key: int) -> _Space:
        bounds = self.layout.starts
        shards = permutation(key, len(bounds) - 1)
        starts = np.zeros_like(bounds)
        np.cumsum(bounds[shards + 1] - bounds[shards], out=starts[1:])
        return _Space(shards, starts)

    def _lane(self, epoch: int, lane: int) -> _Lane:
        return self._lanes.get((epoch, lane), lambda: self._cut_lane(epoch, lane))

    def _cut_lane(self, epoch: int, lane: int) -> _Lane:
        """Cut the lane from the permuted row space and, where it keeps its pieces, permute them."""
        space = self._space(epoch)
        begin, end = self.layout.lane_limits(lane)
        first, last = covering(space.starts, begin, end)
        shards = space.shards[first:last]
        starts = np.clip(space.starts[first : last + 1], begin, end) - begin
        skip = begin - int(space.starts[first])
        if not self.layout.lasting:
            return _Lane(shards, starts, 0, skip)
        order = permutation(derive(self.layout.seed, _PIECES, epoch, lane), len(shards))
        starts[1:] = np.cumsum(np.diff(starts)[order])
        return _Lane(shards[order], starts, int(np.argmin(order)) if len(order) else 0, skip)

    def _window(self, place: tuple[int, int, int, int], deal: _Deal, group_start: int) -> Window:
        """Permute the rows of the window at `place`: (epoch, lane, group, window of the group)."""
        number = place[-1]
        taken = slice(number * self.layout.window_blocks, (number + 1) * self.layout.window_blocks)
        first, last, stop = deal.first[taken], deal.last[taken], group_start + int(deal.stop[taken][-1])
        lengths = last - first
        count = int(lengths.sum())
        numbers = np.arange(count) + np.repeat(first - (np.cumsum(lengths) - lengths), lengths)
        numbers = numbers[permutation(derive(self.layout.seed, _ROWS, *place), count)]
        return Window(stop - count, stop, self.layout.extents(first, last), self.layout.rows_of(numbers))

    def _group(self, epoch: int, lane: int, position: int) -> tuple[int, _Deal, int]:
        """Return the group at `position`, its blocks, and where it begins in the lane."""
        pieces, size = self._lane(epoch, lane), self.layout.group_shards
        group = (int(np.searchsorted(pieces.starts, position, side="right")) - 1) // size
        deal = self._groups.get(
            (epoch, lane, group), lambda: self._deal(epoch, [(lane, group, group + 1)])[0]
        )
        return group, deal, int(pieces.starts[group * size])

    def _permuted(
        self, lanes: Int64s, stops: Int64s, counts: Int64s, keys: UInt64s, first: Int64s, last: Int64s
    ) -> Windows:
        """Permute the rows of each window: its lane, end, number of blocks and key; numbers of the blocks."""
        lengths = last - first
        ends = np.concatenate([[0], np.cumsum(lengths)])
        windows = np.cumsum(counts)
        sizes = ends[windows] - ends[windows - counts]
        order = np.arange(0)
        if sizes.size:
            order = permutations(keys, sizes) + np.repeat(ends[windows - counts], sizes)
        block_of = np.repeat(np.arange(len(first)), lengths)[order]
        rows = self.layout.rows_of(order + (first - ends[:-1])[block_of])
        return Windows(lanes, stops - sizes, stops, counts, self.layout.extents(first, last), rows, block_of)

    def _deal_together(self, epoch: int, spans: Sequence[tuple[int, int, int]]) -> None:
        """Deal the groups in which these spans begin, where they are not known."""
        size = self.layout.group_shards
        unknown = []
        for lane, start, stop in spans:
            group = (int(np.searchsorted(self._lane(epoch, lane).starts, start, side="right")) - 1) // size
            if start < stop and (epoch, lane, group) not in self._groups:
                unknown.append((lane, group, group + 1))
        for (lane, group, _), deal in zip(unknown, self._deal(epoch, unknown), strict=True):
            self._groups.put((epoch, lane, group), deal)

    def _deal(self, epoch: int, runs: Sequence[tuple[int, int, int]]) -> list[_Deal]:
        """Cut the pieces of each (lane, first group, last group) into blocks and permute each group's."""
        layout, size = self.layout, self.layout.group_shards
        shards, low, rows, keys = [_NONE], [_NONE], [_NONE], [_NONE.view(np.uint64)]
        for lane, first_group, last_group in runs:
            pieces, begin = self._lane(epoch, lane), first_group * size
            shards.append(pieces.shards[begin : last_group * size])
            low.append(layout.starts[shards[-1]])
            if 0 <= pieces.cut - begin < len(low[-1]):
                low[-1][pieces.cut - begin] += pieces.skip
            rows.append(np.diff(pieces.starts[begin : begin + len(low[-1]) + 1]))
            groups = np.arange(first_group, last_group, dtype=np.uint64)
            keys.append(derive_array(derive(layout.seed, _BLOCKS, epoch, lane), groups))
        if not runs:
            return []
        all_low = np.concatenate(low)
        piece, first, last = layout.blocks(np.concatenate(shards), all_low, all_low + np.concatenate(rows))

        counts = np.bincount(piece, minlength=len(all_low))
        before = np.cumsum([len(one) for one in low])  # pieces before those of each run
        groups = np.concatenate([np.arange(begin, end, size) for begin, end in pairwise(before.tolist())])
        sizes = np.add.reduceat(counts, groups)
        order = permutations(np.concatenate(keys), sizes) + np.repeat(np.cumsum(sizes) - sizes, sizes)
        piece, first, last = piece[order], first[order], last[order]
        stop = np.concatenate([[0], np.cumsum(last - first)])
        cuts = np.concatenate([[0], np.cumsum(counts)])[before].tolist()
        return [
            _Deal(piece[a:b] - begin, first[a:b], last[a:b], stop[a + 1 : b + 1] - stop[a])
            for begin, (a, b) in zip(before.tolist(), pairwise(cuts), strict=False)
        ]

    def _runs(self, pieces: _Lane) -> Iterator[tuple[int, int]]:
        """Yield runs [first, last) of a lane's groups that can be dealt at once in bounded memory."""
        layout = self.layout
        if not len(pieces.shards):
            return
        most = (layout.ends[pieces.shards] - layout.begins[pieces.shards]) // layout.block_rows + 2
        blocks = np.add.reduceat(most, np.arange(0, len(most), layout.group_shards))
        first = 0
        while first < len(blocks):
            ahead = np.maximum.accumulate(blocks[first : first + _DEAL_BLOCKS])
            padded = ahead * np.arange(1, len(ahead) + 1)
            last = first + max(1, int(np.searchsorted(padded, _DEAL_BLOCKS, side="right")))
            yield first, last
            first = last

    def _stretches(self, epoch: int, lane: int, first: int, last: int) -> tuple[Int64s, Int64s, Int64s]:
        """Return the pieces of groups [first, last) as they are met, and the stretch of windows of each.

        Pieces and positions [start, stop) are counted from the first of these groups.
        """
        (deal,) = self._deal(epoch, [(lane, first, last)])
        size = self.layout.window_blocks
        place = np.arange(len(deal.piece))
        met = np.full(int(deal.piece.max()) + 1, len(place))
        left = np.zeros_like(met)
        np.minimum.at(met, deal.piece, place)
        np.maximum.at(left, deal.piece, place)
        pieces = np.argsort(met)
        met, left = met[pieces], left[pieces]
        group_of = deal.piece // self.layout.group_shards
        group_begin = np.searchsorted(group_of, group_of[met])
        group_end = np.searchsorted(group_of, group_of[met], side="right")
        starts = deal.stop - (deal.last - deal.first)
        opening = met - (met - group_begin) % size
        closing = np.minimum(left - (left - group_begin) % size + size, group_end) - 1
        return pieces, starts[opening], deal.stop[closing]
