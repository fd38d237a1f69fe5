"""Mode "none": rows in stored order, cut into equal contiguous lanes; every epoch is the same."""

import numpy as np

from policies.order.modes.base import Int64s, Mode, Uses, Window, covering

__all__ = ["Stored"]


class Stored(Mode):
    """Lane l of L is the rows [l*N//L, (l+1)*N//L). A window is `window_blocks` blocks of one shard."""

    def window(self, epoch: int, lane: int, position: int) -> Window:  # noqa: ARG002 (every epoch is the same)
        """Return the window at `position`: counted from the shard's start, cut by the lane's ends."""
        layout = self.layout
        begin, end = layout.lane_limits(lane)
        number = np.array([begin + position])
        shard = layout.shards_of(number)
        row, base = layout.rows_of(number), layout.begins[shard]
        window_rows = layout.window_blocks * layout.block_rows
        opening = row - (row - base) % window_rows
        closing = np.minimum(opening + window_rows, layout.ends[shard])
        low = np.maximum(layout.numbers_of(opening), begin)
        high = np.minimum(layout.numbers_of(closing), end)
        _, first, last = layout.blocks(shard, low, high)
        rows = layout.rows_of(np.arange(first[0], last[-1]))
        return Window(int(low[0]) - begin, int(high[0]) - begin, layout.extents(first, last), rows)

    def uses(self, epoch: int, lane: int) -> Uses:  # noqa: ARG002 (every epoch is the same)
        """Return the shards in stored order: no window reaches beyond its shard."""
        begin, end = self.layout.lane_limits(lane)
        first, last = covering(self.layout.starts, begin, end)
        bounds = np.clip(self.layout.starts[first : last + 1], begin, end) - begin
        return Uses(np.arange(first, last), bounds[:-1], bounds[1:])

    def rows(self, epoch: int, lane: int, start: int, stop: int) -> Int64s:  # noqa: ARG002 (every epoch is the same)
        """Return a range: nothing to look up."""
        begin, _ = self.layout.lane_limits(lane)
        return self.layout.rows_of(np.arange(begin + start, begin + stop))
