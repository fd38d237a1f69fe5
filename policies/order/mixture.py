"""Several corpora mixed in exact proportion: which row of which stands at which position of which lane.

Invariant: all lanes advance in lockstep, and the rows of steps [0, s) hold every corpus in its proportion to
within one row, for every s at once; where a row stands is a pure function of (orders, weights), and the state
of a reader is one number, its position.

The draws of all lanes are one sequence, `schedule.chairman` repeated without end, of which step p
is the draws [p*L, (p+1)*L). Frozen for ever: let T = W / gcd(W, L), the steps after which the draws of a step
are the same again, and write p = b*T + t with 0 <= t < T. Lane l takes the draw at place (l + b + r_t) mod L
of the step, with r_t = (t * 0x9E3779B9 mod 2**32) * L >> 32. So after W*L / gcd(W, L) steps each lane has
taken each draw equally often; until then its own shares drift by some rows. The rows that lane l draws of a
corpus are those of lane l of the corpus's order, epoch after epoch: a rank reads its own lanes of every
corpus, and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd

import numpy as np
import numpy.typing as npt

from policies.checks import whole
from policies.order.order import Order
from policies.order.schedule import chairman, whole_weights

__all__ = ["Draws", "Mixture"]

Int64s = npt.NDArray[np.int64]

_GOLDEN = 0x9E3779B9  # 2**32 over the golden ratio: turns that no short rhythm of the draws falls in with
_MOST_ENTRIES = 1 << 24  # of the table, 6 bytes each
_MOST_POSITION = 1 << 50


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """Rows at consecutive positions of a lane, position by position: int64, shape (positions,) each.

    corpora: index of the order. epochs: of that corpus. rows: global row number in that corpus.
    """

    corpora: Int64s
    epochs: Int64s
    rows: Int64s


class Mixture:
    """An endless sequence of rows of several orders: immutable, seekable, picklable, safe to share.

    orders: one a corpus, of equally many lanes, each with at least a row a lane. weights: the share of each
    in the draws, in any unit, above 0; floats count as the decimals they print as. A lane that has drawn all
    of its rows of a corpus goes on with that corpus's next epoch. Raises ValueError for other orders, and for
    weights that are not in the proportion of whole numbers of sum W <= 65,536 with lcm(W, lanes) <= 2**24.
    A seek costs no walking; memory 6 * lcm(W, lanes) bytes beside the orders.
    """

    __slots__ = ("_before", "_corpora", "_earlier", "_orders", "_steps", "_weights")

    def __init__(self, orders: Sequence[Order], weights: Sequence[float | Fraction]) -> None:
        self._orders = tuple(orders)
        self._weights = whole_weights(weights)
        _check(self._orders, self._weights)
        lanes, count, total = self.lanes, len(self._orders), sum(self._weights)
        self._steps = total // gcd(total, lanes)
        steps = np.arange(self._steps)
        turns = (steps * _GOLDEN % (1 << 32)) * lanes >> 32
        places = (np.arange(lanes)[:, None] + turns) % lanes + steps * lanes
        # By place of the first step's lane and by step: the corpus, and how often the row held it before.
        self._corpora = chairman(self._weights)[places % total].astype(np.uint16)
        self._earlier = np.empty(self._corpora.shape, dtype=np.int32)
        taken = np.zeros((2 * lanes + 1, count), dtype=np.int64)
        for lane, corpora in enumerate(self._corpora):
            sizes = np.bincount(corpora, minlength=count)
            order = np.argsort(corpora, kind="stable")
            self._earlier[lane, order] = steps - np.repeat(np.cumsum(sizes) - sizes, sizes)
            taken[lane + 1] = taken[lane + lanes + 1] = sizes
        self._before = np.cumsum(taken, axis=0)

    @property
    def orders(self) -> tuple[Order, ...]:
        """The order of each corpus."""
        return self._orders

    @property
    def weights(self) -> tuple[Fraction, ...]:
        """The share of each corpus in the draws; they add up to 1."""
        return tuple(Fraction(weight, sum(self._weights)) for weight in self._weights)

    @property
    def lanes(self) -> int:
        """Lanes of the mixture, and of each order."""
        return self._orders[0].lanes

    def rank_lanes(self, rank: int, world_size: int) -> range:
        """Return the lanes of a rank, as `Order.rank_lanes` does."""
        return self._orders[0].rank_lanes(rank, world_size)

    def places(self, lane: int, position: int) -> list[tuple[int, int]]:
        """Return where the lane stands before this position: of each corpus its epoch and position in that.

        With `Order.window` and `Order.future` of the corpus it says what to read next. Raises ValueError for
        a lane outside [0, lanes) or a position outside [0, 2**50).
        """
        lane = whole("lane", lane, least=0, below=self.lanes, example=0)
        position = whole("position", position, least=0, below=_MOST_POSITION, example=0)
        block, step = divmod(position, self._steps)
        counts = self._drawn(lane, np.array(block), np.arange(len(self._orders)))
        row = self._corpora[(lane + block) % self.lanes, :step]
        counts += np.bincount(row, minlength=len(counts))
        return [
            divmod(int(count), order.lane_rows(0, lane))
            for count, order in zip(counts, self._orders, strict=True)
        ]

    def rows(self, lane: int, start: int, stop: int) -> Draws:
        """Return what stands at positions [start, stop) of the lane, new arrays.

        Raises ValueError for a lane outside [0, lanes) or positions outside [0, 2**50).
        """
        lane = whole("lane", lane, least=0, below=self.lanes, example=0)
        start = whole("start", start, least=0, below=_MOST_POSITION, example=0)
        stop = whole("stop", stop, least=start, below=_MOST_POSITION, example=start + 256)
        block, step = np.divmod(np.arange(start, stop), self._steps)
        held = (lane + block) % self.lanes
        corpora = self._corpora[held, step].astype(np.int64)
        numbers = self._drawn(lane, block, corpora) + self._earlier[held, step]
        epochs, rows = np.empty_like(numbers), np.empty_like(numbers)
        for corpus in np.unique(corpora).tolist():
            at = np.flatnonzero(corpora == corpus)
            epochs[at], rows[at] = _endless(self._orders[corpus], lane, int(numbers[at[0]]), len(at))
        return Draws(corpora, epochs, rows)

    def fingerprint(self) -> dict[str, object]:
        """Return what defines the mixture, but for shard rows and kept rows: json-able."""
        return {"weights": list(self._weights), "orders": [order.fingerprint() for order in self._orders]}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mixture):
            return NotImplemented
        return self._weights == other._weights and self._orders == other._orders

    def __hash__(self) -> int:
        return hash((*self._weights, *self._orders))

    def __repr__(self) -> str:
        rows = ", ".join(str(len(order)) for order in self._orders)
        return f"Mixture(<{len(self._orders)} orders of {rows} rows>, weights={self._weights})"

    def __reduce__(self) -> tuple[type["Mixture"], tuple[object, ...]]:
        return Mixture, (self._orders, self._weights)

    def _drawn(self, lane: int, block: Int64s, corpora: Int64s) -> Int64s:
        """Return how many rows of `corpora` the lane took in the first `block` times `_steps` steps."""
        rounds, rest = np.divmod(block, self.lanes)
        drawn: Int64s = self._before[lane + rest, corpora] - self._before[lane, corpora]
        drawn += rounds * self._before[self.lanes, corpora]
        return drawn


def _endless(order: Order, lane: int, first: int, count: int) -> tuple[Int64s, Int64s]:
    """Return epoch and row of draws [first, first + count) of a lane that begins anew after each epoch."""
    most = order.lane_rows(0, lane)  # the same in every epoch
    epochs = np.arange(first, first + count) // most
    parts = []
    for epoch in range(first // most, (first + count - 1) // most + 1):
        start, stop = max(first - epoch * most, 0), min(first + count - epoch * most, most)
        parts.append(order.rows(epoch, lane, start, stop))
    return epochs, np.concatenate(parts)


def _check(orders: Sequence[Order], weights: Sequence[int]) -> None:
    if len(orders) != len(weights):
        raise ValueError(f"weights must be one for each of {len(orders)} orders, not {len(weights)}")
    for number, order in enumerate(orders):
        if order.lanes != orders[0].lanes:
            raise ValueError(
                f"orders must have equally many lanes, not {orders[0].lanes} and {order.lanes}; "
                f"for example lanes={orders[0].lanes} in each"
            )
        if len(order) < order.lanes:
            raise ValueError(
                f"orders[{number}] must have a row for each of {order.lanes} lanes, not {len(order)} rows; "
                "for example lanes=1"
            )
    total, lanes = sum(weights), orders[0].lanes
    if total // gcd(total, lanes) * lanes > _MOST_ENTRIES:
        raise ValueError(
            f"weights that add up to {total} need too large a table for {lanes} lanes; round them, for "
            f"example weights={[max(1, round(weight * 100 / total)) for weight in weights]}"
        )
