"""Mode "window": shards permuted over the corpus, blocks in a group of shards, rows in a window of blocks.

The order of an epoch, frozen for ever (k(...) is `policies.permute.derive`, and a permutation is keyed by
it):

1. The S shards are permuted by k(seed, SHARDS, epoch). Their rows, in that order, are the permuted row space
   of N rows.
2. Lane l of L is its positions [l*N//L, (l+1)*N//L). A lane is a run of pieces: whole shards, cut at the
   lane's ends.
3. A lane's pieces are taken in groups of `group_shards`. Each piece is cut at the multiples of `block_rows`
   from its shard's start. The blocks of group g, listed piece by piece, are permuted by k(seed, BLOCKS,
   epoch, l, g).
4. The permuted blocks of a group are cut in windows of `window_blocks`. The rows of window w, listed block by
   block, are permuted by k(seed, ROWS, epoch, l, g, w).

So a lane reads from `group_shards` shards at a time and holds `window_blocks` blocks. Memory: O(shards) for
an epoch's shard order, O(blocks of a group) and O(rows of a window) for each lane in use.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from policies.memo import Memo
from policies.modes.base import Int64s, Layout, Mode, Window, first_needed
from policies.permute import derive, derive_array, permutation, permutations

__all__ = ["Windowed"]

_SHARDS, _BLOCKS, _ROWS = 1, 2, 3  # domains of `derive`
_EPOCHS_KEPT = 2  # the one in training and the one that prefetch looks into
_DEAL_BLOCKS = 1 << 18  # blocks dealt at once by `shards`: a few MiB, and few enough calls for 10^6 shards


@dataclass(frozen=True, slots=True, eq=False)
class _Epoch:
    """The permuted row space. shards: int64 (S,), by rank. starts: int64 (S + 1,), first position of each."""

    shards: Int64s
    starts: Int64s


@dataclass(frozen=True, slots=True, eq=False)
class _Deal:
    """Permuted blocks of consecutive groups of a lane, in the order they are taken: int64, shape (blocks,).

    piece: number of the block's piece among the pieces dealt. first, last: its global rows, half open.
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
        self._epochs: Memo[int, _Epoch] = Memo(_EPOCHS_KEPT)
        self._groups: Memo[tuple[int, int, int], _Deal] = Memo(2 * layout.lanes)
        self._windows: Memo[tuple[int, int, int, int], Window] = Memo(2 * layout.lanes)

    def window(self, epoch: int, lane: int, position: int) -> Window:
        """Return the window at `position`: some searches and, where not remembered, one permutation."""
        layout = self.layout
        space = self._epoch(epoch)
        begin, end = layout.lane_limits(lane)
        rank, _ = _ranks(space, begin, end)
        group = (
            int(np.searchsorted(space.starts, begin + position, side="right")) - 1 - rank
        ) // layout.group_shards
        deal = self._groups.get((epoch, lane, group), lambda: self._deal(epoch, lane, group, group + 1))
        group_start = max(0, int(space.starts[rank + group * layout.group_shards]) - begin)
        number = int(np.searchsorted(deal.stop, position - group_start, side="right")) // layout.window_blocks
        return self._windows.get(
            (epoch, lane, group, number),
            lambda: self._window((epoch, lane, group, number), deal, group_start),
        )

    def shards(self, epoch: int, lanes: Sequence[int]) -> Int64s:
        """Return the shards by the first window that holds them: O(blocks of the lanes), memory O(shards)."""
        space = self._epoch(epoch)
        shards, positions = [], []
        for lane in lanes:
            begin, end = self.layout.lane_limits(lane)
            if begin == end:
                continue
            first_rank, last_rank = _ranks(space, begin, end)
            for first, last in self._runs(space.starts[first_rank : last_rank + 1]):
                pieces, starts = self._first_windows(epoch, lane, first, last)
                rank = first_rank + first * self.layout.group_shards
                shards.append(space.shards[rank + pieces])
                positions.append(starts + max(0, int(space.starts[rank]) - begin))
        return first_needed(shards, positions)

    def _epoch(self, epoch: int) -> _Epoch:
        return self._epochs.get(epoch, lambda: self._permute_shards(epoch))

    def _permute_shards(self, epoch: int) -> _Epoch:
        bounds = self.layout.starts
        shards = permutation(derive(self.layout.seed, _SHARDS, epoch), len(bounds) - 1)
        starts = np.zeros_like(bounds)
        np.cumsum(bounds[shards + 1] - bounds[shards], out=starts[1:])
        return _Epoch(shards, starts)

    def _window(self, place: tuple[int, int, int, int], deal: _Deal, group_start: int) -> Window:
        """Permute the rows of the window at `place`: (epoch, lane, group, window of the group)."""
        number = place[-1]
        taken = slice(number * self.layout.window_blocks, (number + 1) * self.layout.window_blocks)
        first, last, stop = deal.first[taken], deal.last[taken], group_start + int(deal.stop[taken][-1])
        lengths = last - first
        count = int(lengths.sum())
        rows = np.arange(count) + np.repeat(first - (np.cumsum(lengths) - lengths), lengths)
        rows = rows[permutation(derive(self.layout.seed, _ROWS, *place), count)]
        return Window(stop - count, stop, np.column_stack((first, last)), rows)

    def _deal(self, epoch: int, lane: int, first_group: int, last_group: int) -> _Deal:
        """Cut the pieces of groups [first_group, last_group) into blocks and permute each group's."""
        layout = self.layout
        space = self._epoch(epoch)
        begin, end = layout.lane_limits(lane)
        first_rank, last_rank = _ranks(space, begin, end)
        ranks = slice(
            first_rank + first_group * layout.group_shards,
            min(last_rank, first_rank + last_group * layout.group_shards),
        )
        shards, starts = space.shards[ranks], space.starts[ranks]
        base = layout.starts[shards]
        low = np.maximum(begin - starts, 0)  # rows of its own shard that a piece covers: [low, high)
        high = np.minimum(layout.starts[shards + 1] - base, end - starts)
        first_block = low // layout.block_rows
        counts = (high - 1) // layout.block_rows + 1 - first_block
        piece = np.repeat(np.arange(len(counts)), counts)
        block = np.arange(len(piece)) + np.repeat(first_block - (np.cumsum(counts) - counts), counts)
        first = np.maximum(block * layout.block_rows, low[piece]) + base[piece]
        last = np.minimum((block + 1) * layout.block_rows, high[piece]) + base[piece]

        sizes = np.add.reduceat(counts, np.arange(0, len(counts), layout.group_shards))
        keys = derive_array(
            derive(layout.seed, _BLOCKS, epoch, lane), np.arange(first_group, last_group, dtype=np.uint64)
        )
        order = permutations(keys, sizes) + np.repeat(np.cumsum(sizes) - sizes, sizes)
        piece, first, last = piece[order], first[order], last[order]
        return _Deal(piece, first, last, np.cumsum(last - first))

    def _runs(self, starts: Int64s) -> Iterator[tuple[int, int]]:
        """Yield runs [first, last) of a lane's groups that can be dealt at once in bounded memory.

        starts: of the lane's shards in the permuted row space, and the end of the last.
        """
        most = np.diff(starts) // self.layout.block_rows + 2
        blocks = np.add.reduceat(most, np.arange(0, len(most), self.layout.group_shards))
        first = 0
        while first < len(blocks):
            ahead = np.maximum.accumulate(blocks[first : first + _DEAL_BLOCKS])
            padded = ahead * np.arange(1, len(ahead) + 1)
            last = first + max(1, int(np.searchsorted(padded, _DEAL_BLOCKS, side="right")))
            yield first, last
            first = last

    def _first_windows(self, epoch: int, lane: int, first: int, last: int) -> tuple[Int64s, Int64s]:
        """Return the pieces of groups [first, last) as they are met, and where the window of each begins.

        Pieces and positions are counted from the first of these groups.
        """
        deal = self._deal(epoch, lane, first, last)
        count = len(deal.piece)
        place = np.arange(count)
        met = np.full(int(deal.piece.max()) + 1, count)
        np.minimum.at(met, deal.piece, place)
        pieces = np.argsort(met)
        met = met[pieces]
        group_of = deal.piece // self.layout.group_shards
        group_begin = np.searchsorted(group_of, group_of[met])
        starts = deal.stop - (deal.last - deal.first)
        return pieces, starts[met - (met - group_begin) % self.layout.window_blocks]


def _ranks(space: _Epoch, begin: int, end: int) -> tuple[int, int]:
    """Return the ranks [first, last) of the shards with rows at positions [begin, end); begin < end."""
    return (
        int(np.searchsorted(space.starts, begin, side="right")) - 1,
        int(np.searchsorted(space.starts, end, side="left")),
    )
