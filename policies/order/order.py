"""The sample order: which row stands at which position of which lane in which epoch.

Invariant: in every epoch each row stands at exactly one position of exactly one lane, and where it stands is
a pure function of (shard rows, kept rows, block_rows, seed, mode, lanes, group_shards, window_blocks,
affinity, epoch), the same on every platform and in every version. Lanes are cut before ranks are known:
whoever reads k rows of each of the L lanes at step s reads the same set, with any number of ranks that
divides L.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from policies.checks import one_of, whole
from policies.order.forecast import Forecast, forecast
from policies.order.modes import MODES, Layout, Mode, Window, Windows
from policies.order.rowset import Keep, RowSet, equal, row_set

__all__ = ["Order"]

_WINDOW_BLOCKS = 64  # of all lanes together, where the caller names no number
_MOST_ROWS = 1 << 60
_AFFINITIES = ("global", "lane")


class Order:
    """The order of a corpus's rows, cut into lanes: immutable, seekable, picklable, safe to share by threads.

    shard_rows: rows of each shard in stored order, a sequence or array of ints >= 1; shards may differ.
    block_rows: rows of a stored block; a shard's last block may be short. seed: int in [0, 2**64).
    mode: "none" (stored order), "window" (shards permuted; blocks permuted within `group_shards` shards;
    rows permuted within `window_blocks` blocks) or "full" (all rows permuted). lanes: equal slices of an
    epoch. window_blocks: None means 64 // lanes, at least 1; in mode "full", that many rows. affinity:
    "global" (rows are dealt to lanes anew each epoch) or "lane" (a lane has the same rows in every epoch, in
    another order). keep: the rows that take part, all by default: a bool mask, ascending row numbers, or
    half-open ranges of them, shape (k, 2). The exact definition stands in the modules of `modes`.
    Raises ValueError for any other argument. Time O(shards); memory 8 bytes a shard, up to 48 more in use,
    and the kept rows as `rowset` says.
    """

    __slots__ = ("_bounds", "_layout", "_mode", "_name", "_shards")

    def __init__(
        self,
        shard_rows: Sequence[int] | npt.NDArray[np.integer],
        block_rows: int = 1024,
        seed: int = 7,
        mode: str = "window",
        lanes: int = 8,
        group_shards: int = 8,
        window_blocks: int | None = None,
        affinity: str = "global",
        keep: Keep | None = None,
    ) -> None:
        one_of("mode", mode, MODES, example="window")
        one_of("affinity", affinity, _AFFINITIES, example="global")
        lanes = whole("lanes", lanes, least=1, below=1 << 32, example=8)
        if window_blocks is None:
            window_blocks = max(1, _WINDOW_BLOCKS // lanes)
        self._name = mode
        self._bounds = _starts(np.asarray(shard_rows))
        kept = None if keep is None else row_set(keep, int(self._bounds[-1]))
        self._shards, starts = _pruned(self._bounds, kept)
        self._layout = Layout(
            starts=starts,
            begins=self._bounds[:-1] if self._shards is None else self._bounds[self._shards],
            ends=self._bounds[1:] if self._shards is None else self._bounds[self._shards + 1],
            kept=kept,
            block_rows=whole("block_rows", block_rows, least=1, example=1024),
            lanes=lanes,
            group_shards=whole("group_shards", group_shards, least=1, example=8),
            window_blocks=whole("window_blocks", window_blocks, least=1, example=8),
            seed=whole("seed", seed, least=0, below=1 << 64, example=7),
            lasting=affinity == "lane",
        )
        self._mode: Mode = MODES[mode](self._layout)

    @property
    def block_rows(self) -> int:
        """Rows of a stored block."""
        return self._layout.block_rows

    @property
    def seed(self) -> int:
        """The seed of every shuffle."""
        return self._layout.seed

    @property
    def mode(self) -> str:
        """The name of the mode."""
        return self._name

    @property
    def lanes(self) -> int:
        """Lanes an epoch is cut into."""
        return self._layout.lanes

    @property
    def group_shards(self) -> int:
        """Pieces of shards whose blocks are permuted together."""
        return self._layout.group_shards

    @property
    def window_blocks(self) -> int:
        """Blocks whose rows are permuted together, resolved."""
        return self._layout.window_blocks

    @property
    def affinity(self) -> str:
        """Whether rows are dealt to lanes anew each epoch ("global") or once and for all ("lane")."""
        return "lane" if self._layout.lasting else "global"

    @property
    def shard_rows(self) -> npt.NDArray[np.int64]:
        """Rows of each shard in stored order, kept or not: int64, shape (shards,)."""
        return np.diff(self._bounds)

    @property
    def kept(self) -> RowSet | None:
        """The rows that take part; None for all."""
        return self._layout.kept

    def fingerprint(self) -> dict[str, int | str]:
        """Return what defines the order, but for shard rows and kept rows: json-able, by the names here."""
        return {
            "block_rows": self.block_rows,
            "seed": self.seed,
            "mode": self.mode,
            "lanes": self.lanes,
            "group_shards": self.group_shards,
            "window_blocks": self.window_blocks,
            "affinity": self.affinity,
        }

    def lane_rows(self, epoch: int, lane: int) -> int:
        """Return how many positions the lane has in the epoch; lanes of one epoch differ by one row at most.

        Raises ValueError for an epoch below 0 or a lane outside [0, lanes).
        """
        _epoch(epoch)
        begin, end = self._layout.lane_limits(self._lane(lane))
        return end - begin

    def rank_lanes(self, rank: int, world_size: int) -> range:
        """Return the lanes of a rank: a run of neighbours, so that few shards are cut between ranks.

        Raises ValueError where world_size does not divide the lanes or rank is outside [0, world_size).
        """
        world_size = whole("world_size", world_size, least=1, example=1)
        if self.lanes % world_size:
            raise ValueError(
                f"world_size must divide the {self.lanes} lanes, not be {world_size}; e.g. lanes={world_size}"
            )
        rank = whole("rank", rank, least=0, below=world_size, example=0)
        share = self.lanes // world_size
        return range(rank * share, (rank + 1) * share)

    def rows(self, epoch: int, lane: int, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Return the global row numbers at positions [start, stop) of the lane: int64, (stop - start,), new.

        Time O(stop - start + window), wherever start is. Raises ValueError for an epoch below 0, a lane
        outside [0, lanes) or positions outside [0, lane_rows(epoch, lane)].
        """
        most = self.lane_rows(epoch, lane)
        start = whole("start", start, least=0, below=most + 1, example=0)
        stop = whole("stop", stop, least=start, below=most + 1, example=most)
        return self._mode.rows(_epoch(epoch), self._lane(lane), start, stop)

    def window(self, epoch: int, lane: int, position: int) -> Window:
        """Return the window that holds this position of the lane: what to read whole, and its rows in order.

        The next window begins at the position where this one stops. Raises ValueError for an epoch below 0, a
        lane outside [0, lanes) or a position outside [0, lane_rows(epoch, lane)).
        """
        most = self.lane_rows(epoch, lane)
        position = whole("position", position, least=0, below=most, example=0)
        return self._mode.window(_epoch(epoch), self._lane(lane), position)

    def windows(self, epoch: int, spans: Sequence[tuple[int, int, int]]) -> Windows:
        """Return the windows that hold positions [start, stop) of each (lane, start, stop), span by span.

        The same as `window` gives one by one, for a fraction of the time. Memory O(windows x rows of the
        largest). Raises ValueError for an epoch below 0, a lane outside [0, lanes) or positions outside
        [0, lane_rows(epoch, lane)].
        """
        checked = []
        for lane, start, stop in spans:
            most = self.lane_rows(epoch, lane)
            start = whole("start", start, least=0, below=most + 1, example=0)
            checked.append((int(lane), start, whole("stop", stop, least=start, below=most + 1, example=most)))
        return self._mode.windows(_epoch(epoch), checked)

    def shards(self, epoch: int, lanes: int | Iterable[int]) -> npt.NDArray[np.int64]:
        """Return the shards in the order they are first needed when these lanes advance in lockstep.

        Shard numbers, each once: int64, new. A lane needs a shard at the start of the first window that holds
        one of its rows; equal positions go by lane, then by the order of blocks. Raises ValueError for an
        epoch below 0 or a lane outside [0, lanes).
        """
        return self._numbered(self._mode.shards(_epoch(epoch), self._distinct(lanes)))

    def future(self, epoch: int, lanes: int | Iterable[int], epochs: int = 2) -> Forecast:
        """Return when these lanes use which shards in epochs [epoch, epoch + epochs), and when again.

        lanes: those of a rank (`rank_lanes`), or of all ranks that share a cache. Time as for `shards` of
        each lane and epoch; memory O(uses), about 100 bytes each while they are sorted. Raises ValueError for
        an epoch below 0, a lane outside [0, lanes) or fewer than 1 epochs.
        """
        epochs = whole("epochs", epochs, least=1, example=2)
        clock = -(-self._layout.rows // self.lanes)
        uses = forecast(self._mode, clock, range(_epoch(epoch), epoch + epochs), self._distinct(lanes))
        return replace(uses, shards=self._numbered(uses.shards))

    def __len__(self) -> int:
        """Rows that take part."""
        return self._layout.rows

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Order):
            return NotImplemented
        return (
            self.fingerprint() == other.fingerprint()
            and np.array_equal(self._bounds, other._bounds)
            and equal(self._layout.kept, other._layout.kept)
        )

    def __hash__(self) -> int:
        return hash((len(self), len(self._bounds), *self.fingerprint().values()))

    def __repr__(self) -> str:
        parameters = ", ".join(f"{name}={value!r}" for name, value in self.fingerprint().items())
        rows = f"{len(self)} rows" if self._layout.kept is None else f"{len(self)} of {self._bounds[-1]} rows"
        return f"Order(<{len(self._bounds) - 1} shards, {rows}>, {parameters})"

    def __reduce__(self) -> tuple[type["Order"], tuple[object, ...]]:
        # The arguments alone: what was remembered on the way can be computed again.
        return Order, (self.shard_rows, *self.fingerprint().values(), self._layout.kept)

    def _distinct(self, lanes: int | Iterable[int]) -> list[int]:
        numbers = lanes if isinstance(lanes, Iterable) else [lanes]
        return sorted({self._lane(lane) for lane in numbers})

    def _numbered(self, shards: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the corpus's numbers of shards that were counted without the pruned ones."""
        return shards if self._shards is None else self._shards[shards]

    def _lane(self, lane: int) -> int:
        return whole("lane", lane, least=0, below=self.lanes, example=0)


def _epoch(epoch: int) -> int:
    return whole("epoch", epoch, least=0, example=0)


def _starts(rows: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Return the number of each shard's first row, then the total."""
    example = "for example shard_rows=[4096, 4096, 1000]"
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise ValueError(
            f"shard_rows must be a flat sequence of ints, not {rows.dtype} of shape {rows.shape}; {example}"
        )
    if rows.size and not 1 <= rows.min() <= rows.max() <= _MOST_ROWS // rows.size:
        raise ValueError(
            f"shard_rows must be at least 1 each, 2**60 in all, not {rows.min()} to {rows.max()}; {example}"
        )
    starts = np.zeros(rows.size + 1, dtype=np.int64)
    np.cumsum(rows, dtype=np.int64, out=starts[1:])
    return starts


def _pruned(
    bounds: npt.NDArray[np.int64], kept: RowSet | None
) -> tuple[npt.NDArray[np.int64] | None, npt.NDArray[np.int64]]:
    """Return the shards with a kept row, None for all; how many kept rows come before each, then in all."""
    if kept is None:
        return None, bounds
    before = kept.rank(bounds)
    shards = np.flatnonzero(np.diff(before))
    return shards, np.append(before[shards], before[-1])
