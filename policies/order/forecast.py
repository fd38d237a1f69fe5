"""The future of a sample order: which shards its lanes use when, and when again.

Invariant: known from the order alone, exactly, before a byte is read. A cache that keeps a shard from the
start of a use to its stop never fetches it twice within that use; one that evicts the shard with the furthest
next use first is clairvoyant (Belady: A study of replacement algorithms, IBM Systems Journal 5, 1966).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from policies.order.modes import Mode

__all__ = ["NEVER", "Forecast", "forecast"]

Int64s = npt.NDArray[np.int64]

NEVER: Final = int(np.iinfo(np.int64).max)


@dataclass(frozen=True, slots=True, eq=False)
class Forecast:
    """Uses of shards by lanes that advance in lockstep, in the order they begin: int64, shape (uses,).

    Times are positions of a lane: an epoch begins `clock` after the one before, the rows of the longest lane,
    so that the forecasts of all ranks have one clock. shards: numbers; a shard comes once for each epoch and
    lane with a piece of it. starts: when its rows are first needed. stops: when its last row was used
    (exclusive). nexts: when the shard's next use in this forecast starts, perhaps before this one stops;
    NEVER if it has none.
    """

    clock: int
    shards: Int64s
    starts: Int64s
    stops: Int64s
    nexts: Int64s


def forecast(mode: Mode, clock: int, epochs: Sequence[int], lanes: Sequence[int]) -> Forecast:
    """Return the uses of these lanes (ascending, no repeats) in consecutive epochs, the first at time 0."""
    uses = [(turn * clock, mode.uses(epoch, lane)) for turn, epoch in enumerate(epochs) for lane in lanes]
    none = np.empty(0, dtype=np.int64)
    shards = np.concatenate([none, *(use.shards for _, use in uses)])
    starts = np.concatenate([none, *(use.starts + begin for begin, use in uses)])
    stops = np.concatenate([none, *(use.stops + begin for begin, use in uses)])
    order = np.argsort(starts, kind="stable")
    shards, starts, stops = shards[order], starts[order], stops[order]
    nexts = np.full(len(shards), NEVER)
    by_shard = np.argsort(shards, kind="stable")
    again = np.flatnonzero(shards[by_shard][1:] == shards[by_shard][:-1])
    nexts[by_shard[again]] = starts[by_shard[again + 1]]
    return Forecast(clock, shards, starts, stops, nexts)
