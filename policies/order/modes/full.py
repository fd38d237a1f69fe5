"""Mode "full": an exact pseudo-random permutation of all rows, computed; for tiers with cheap random reads.

The order of an epoch, frozen for ever (k(...) is `policies.order.permute.derive`, F is `Feistel`,
N the rows):

1. With `affinity="global"`, position p of lane l of L is number F(k(seed, FULL, epoch), N)(l*N//L + p).
2. With `affinity="lane"`, lane l has the numbers [b, e) = [l*N//L, (l+1)*N//L) in every epoch, and its
   position p is number b + F(k(seed, FULL, epoch, l), e - b)(p).

A window is `window_blocks` positions, so it needs no more blocks than a window of any other mode, but each
block for about one row: the blocks are listed whole. Memory O(1) in rows and shards, O(shards) for `shards`.
"""

from collections.abc import Sequence

import numpy as np

from policies.order.feistel import Feistel
from policies.order.modes.base import Int64s, Mode, Uses, Window, covering
from policies.order.permute import derive

__all__ = ["Full"]

_FULL = 4  # domain of `derive`
_CHUNK = 1 << 16  # positions looked at together by a search for shards, up to a whole window
_NEVER = np.iinfo(np.int64).max


class Full(Mode):
    """Every row anywhere; see the module for the definition."""

    def window(self, epoch: int, lane: int, position: int) -> Window:
        """Return the run of positions at `position` and the whole blocks that hold its rows."""
        layout = self.layout
        begin, end = layout.lane_limits(lane)
        start = position - position % layout.window_blocks
        stop = min(end - begin, start + layout.window_blocks)
        numbers = self._numbers(epoch, lane, start, stop)
        shards, rows = layout.shards_of(numbers), layout.rows_of(numbers)
        first = rows - (rows - layout.begins[shards]) % layout.block_rows
        last = np.minimum(first + layout.block_rows, layout.ends[shards])
        return Window(start, stop, np.unique(np.column_stack((first, last)), axis=0), rows)

    def uses(self, epoch: int, lane: int) -> Uses:
        """Return the shards by first use, each to its last: the lane is walked from both ends."""
        begin, end = self.layout.lane_limits(lane)
        size = self.layout.window_blocks
        first, last = self._met(epoch, [lane], 1), -self._met(epoch, [lane], -1)
        shards = _in_order(first)
        stops = np.minimum((last[shards] + 1) * size, end - begin)
        return Uses(shards, first[shards] * size, stops)

    def shards(self, epoch: int, lanes: Sequence[int]) -> Int64s:
        """Return the shards by first use in any of the lanes; within a window in stored order.

        Lanes are walked together until no shard is missing. With S shards of equal size that takes about
        S log S positions, and never more than the lanes have; memory O(S).
        """
        return _in_order(self._met(epoch, lanes, 1))

    def rows(self, epoch: int, lane: int, start: int, stop: int) -> Int64s:
        """Return the permutation's images: no window is made."""
        return self.layout.rows_of(self._numbers(epoch, lane, start, stop))

    def _numbers(self, epoch: int, lane: int, start: int, stop: int) -> Int64s:
        layout = self.layout
        begin, end = layout.lane_limits(lane)
        if start == stop:
            return np.empty(0, dtype=np.int64)
        if layout.lasting:
            return Feistel(derive(layout.seed, _FULL, epoch, lane), end - begin).slice(start, stop) + begin
        return Feistel(derive(layout.seed, _FULL, epoch), layout.rows).slice(begin + start, begin + stop)

    def _met(self, epoch: int, lanes: Sequence[int], way: int) -> Int64s:
        """Return when each shard is first met (way 1) or, negated, last met (way -1): int64, shape (shards,).

        A time is the number of the window times the lanes, plus the lane's place among them; _NEVER where a
        shard is not met.
        """
        layout = self.layout
        met = np.full(len(layout.begins), _NEVER)
        limits = [layout.lane_limits(lane) for lane in lanes]
        longest = max((end - begin for begin, end in limits), default=0)
        missing = np.arange(len(met)) if not layout.lasting else self._held(limits)
        size = -(-_CHUNK // layout.window_blocks) * layout.window_blocks  # whole windows: all of one time
        for chunk in range(0, longest, size)[::way]:
            for place, (lane, (begin, end)) in enumerate(zip(lanes, limits, strict=True)):
                positions = np.arange(chunk, min(chunk + size, end - begin))
                shards = layout.shards_of(self._numbers(epoch, lane, chunk, chunk + len(positions)))
                times = way * (positions // layout.window_blocks * len(lanes) + place)
                fresh = met[shards] > times
                np.minimum.at(met, shards[fresh], times[fresh])
            missing = missing[met[missing] == _NEVER]
            if not missing.size:
                break
        return met

    def _held(self, limits: Sequence[tuple[int, int]]) -> Int64s:
        """Return the shards with numbers in any of these limits."""
        held = [np.arange(*covering(self.layout.starts, *limit)) for limit in limits]
        return np.unique(np.concatenate(held)) if held else np.empty(0, dtype=np.int64)


def _in_order(met: Int64s) -> Int64s:
    """Return the shards that are met, by time, ties by number."""
    return np.argsort(met, kind="stable")[: np.count_nonzero(met != _NEVER)]
