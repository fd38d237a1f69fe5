"""Mode "none": rows in stored order, cut into equal contiguous lanes; every epoch is the same."""

from collections.abc import Sequence

import numpy as np

from policies.modes.base import Int64s, Mode, Window, first_needed

__all__ = ["Stored"]


class Stored(Mode):
    """Lane l of L is the rows [l*N//L, (l+1)*N//L). A window is `window_blocks` blocks of one shard."""

    def window(self, epoch: int, lane: int, position: int) -> Window:  # noqa: ARG002 (every epoch is the same)
        """Return the window at `position`: counted from the shard's start, cut by the lane's ends."""
        layout = self.layout
        begin, end = layout.lane_limits(lane)
        row = begin + position
        shard = int(np.searchsorted(layout.starts, row, side="right")) - 1
        shard_begin, shard_end = int(layout.starts[shard]), int(layout.starts[shard + 1])
        window_rows = layout.window_blocks * layout.block_rows
        window_begin = row - (row - shard_begin) % window_rows
        first, last = max(begin, window_begin), min(end, shard_end, window_begin + window_rows)
        cuts = np.arange(first - (first - shard_begin) % layout.block_rows, last, layout.block_rows)
        blocks = np.column_stack((np.maximum(cuts, first), np.minimum(cuts + layout.block_rows, last)))
        return Window(first - begin, last - begin, blocks, np.arange(first, last))

    def shards(self, epoch: int, lanes: Sequence[int]) -> Int64s:  # noqa: ARG002 (every epoch is the same)
        """Return the shards in stored order within each lane."""
        shards, positions = [], []
        for lane in lanes:
            begin, end = self.layout.lane_limits(lane)
            if begin < end:
                first = int(np.searchsorted(self.layout.starts, begin, side="right")) - 1
                last = int(np.searchsorted(self.layout.starts, end, side="left"))
                shards.append(np.arange(first, last))
                positions.append(np.maximum(self.layout.starts[first:last] - begin, 0))
        return first_needed(shards, positions)

    def rows(self, epoch: int, lane: int, start: int, stop: int) -> Int64s:  # noqa: ARG002 (every epoch is the same)
        """Return a range: nothing to look up."""
        begin, _ = self.layout.lane_limits(lane)
        return np.arange(begin + start, begin + stop)
