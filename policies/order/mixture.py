"""Several corpora mixed in exact proportion: which row of which stands at which position of which lane.

Invariant: all lanes advance in lockstep, and the rows of steps [0, s) hold every corpus in its proportion to
within one row, for every s at once; where a row stands is a pure function of (orders, weights, changes), and
the state of a reader is one number, its position.

Which corpus is drawn where, `turns` says. The rows that lane l draws of a corpus are those of lane l of the
corpus's order, epoch after epoch: a rank reads its own lanes of every corpus, and nothing else. Where weights
change, turns begin anew, and proportions hold from there on; each lane goes on in each corpus with the row
after the last one it drew.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from policies.checks import whole
from policies.order.forecast import NEVER
from policies.order.memo import Memo
from policies.order.order import Order
from policies.order.schedule import whole_weights
from policies.order.turns import MOST_ENTRIES, Turns, entries

__all__ = ["Draws", "Mixture"]

Int64s = npt.NDArray[np.int64]

_MOST_POSITION = 1 << 50
_TABLES_KEPT = 4  # those in use are of one or two phases


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
    in the draws, in any unit; floats count as the decimals they print as; a corpus of weight 0 rests.
    changes: other weights from a position of the lanes on, until the next change. A lane that has drawn all
    of its rows of a corpus goes on with that corpus's next epoch. Raises ValueError for other orders, for
    positions outside [1, 2**50), and for weights that are not in the proportion of whole numbers of sum
    W <= 65,536 with lcm(W, lanes) <= 2**24. A seek costs no walking; memory 10 * lcm(W, lanes) bytes beside
    the orders, for at most 4 kinds of weights at a time.
    """

    __slots__ = ("_counts", "_orders", "_starts", "_tables", "_weights")

    def __init__(
        self,
        orders: Sequence[Order],
        weights: Sequence[float | Fraction],
        changes: Mapping[int, Sequence[float | Fraction]] | None = None,
    ) -> None:
        later = {
            whole("changes", position, least=1, below=_MOST_POSITION, example=1000): some
            for position, some in (changes or {}).items()
        }
        self._orders = tuple(orders)
        self._starts = [0, *sorted(later)]
        self._weights = [_whole(weights), *(_whole(later[start]) for start in self._starts[1:])]
        _check(self._orders, self._weights)
        self._tables: Memo[tuple[int, ...], Turns] = Memo(_TABLES_KEPT)
        # By phase and lane: rows of each corpus drawn before.
        self._counts = np.zeros((len(self._starts), self.lanes, len(self._orders)), dtype=np.int64)
        for phase, start in enumerate(self._starts[1:]):
            turns, steps = self._turns(phase), start - self._starts[phase]
            drawn = [turns.drawn(lane, steps) for lane in range(self.lanes)]
            self._counts[phase + 1] = self._counts[phase] + np.array(drawn)
        self._turns(0)

    @property
    def orders(self) -> tuple[Order, ...]:
        """The order of each corpus."""
        return self._orders

    @property
    def weights(self) -> tuple[Fraction, ...]:
        """The share of each corpus in the draws, before any change; they add up to 1."""
        return _shares(self._weights[0])

    @property
    def changes(self) -> dict[int, tuple[Fraction, ...]]:
        """The shares from each of these positions on, ascending."""
        return {start: _shares(weights) for start, weights in self._later().items()}

    @property
    def lanes(self) -> int:
        """Lanes of the mixture, and of each order."""
        return self._orders[0].lanes

    def rank_lanes(self, rank: int, world_size: int) -> range:
        """Return the lanes of a rank, as `Order.rank_lanes` does."""
        return self._orders[0].rank_lanes(rank, world_size)

    def drawn(self, lane: int, position: int) -> Int64s:
        """Return how many rows of each corpus the lane drew before this position: int64, shape (orders,).

        Raises ValueError for a lane outside [0, lanes) or a position outside [0, 2**50).
        """
        lane = whole("lane", lane, least=0, below=self.lanes, example=0)
        position = whole("position", position, least=0, below=_MOST_POSITION, example=0)
        phase = int(np.searchsorted(self._starts, position, side="right")) - 1
        counts: Int64s = self._counts[phase, lane] + self._turns(phase).drawn(
            lane, position - self._starts[phase]
        )
        return counts

    def places(self, lane: int, position: int) -> list[tuple[int, int]]:
        """Return where the lane stands before this position: of each corpus its epoch and position in that.

        With `Order.window` and `Order.future` of the corpus it says what to read next. Raises ValueError for
        a lane outside [0, lanes) or a position outside [0, 2**50).
        """
        return [
            divmod(count, order.lane_rows(0, lane))
            for count, order in zip(self.drawn(lane, position).tolist(), self._orders, strict=True)
        ]

    def corpora(self, lanes: Sequence[int], start: int, stop: int) -> npt.NDArray[np.uint16]:
        """Return which corpus each lane draws at positions [start, stop): uint16, (len(lanes), stop - start).

        Raises ValueError for lanes outside [0, lanes) or positions outside [0, 2**50).
        """
        for lane in lanes:
            whole("lanes", lane, least=0, below=self.lanes, example=0)
        rows = np.array(lanes, dtype=np.int64)[:, None]
        parts = [self._turns(phase).corpora(rows, steps) for phase, steps in self._phases(start, stop)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def rows(self, lane: int, start: int, stop: int) -> Draws:
        """Return what stands at positions [start, stop) of the lane, new arrays.

        Raises ValueError for a lane outside [0, lanes) or positions outside [0, 2**50).
        """
        lane = whole("lane", lane, least=0, below=self.lanes, example=0)
        found = []
        for phase, steps in self._phases(start, stop):
            corpora, numbers = self._turns(phase).draws(lane, steps)
            found.append((corpora, numbers + self._counts[phase, lane, corpora]))
        corpora, numbers = (np.concatenate(parts) for parts in zip(*found, strict=True))
        epochs, rows = np.empty_like(numbers), np.empty_like(numbers)
        for corpus in np.unique(corpora).tolist():
            at = np.flatnonzero(corpora == corpus)
            epochs[at], rows[at] = _endless(self._orders[corpus], lane, int(numbers[at[0]]), len(at))
        return Draws(corpora, epochs, rows)

    def positions(self, corpus: int, lanes: npt.ArrayLike, numbers: npt.ArrayLike) -> Int64s:
        """Return where lanes draw rows of a corpus: int64, the shape both arrays are broadcast to.

        numbers: how many rows of the corpus the lane draws before that one, epoch after epoch, in [0, 2**50).
        Where a corpus rests for ever before it comes that far, `policies.order.NEVER`. Raises ValueError for
        a corpus, a lane or a number that does not exist.
        """
        corpus = whole("corpus", corpus, least=0, below=len(self._orders), example=0)
        lane, number = np.broadcast_arrays(_within("lanes", lanes, self.lanes), _within("numbers", numbers))
        found = np.full(lane.shape, NEVER)
        if not found.size:
            return found
        counts = self._counts[:, :, corpus]
        first, last = int(number.min()), int(number.max())
        for phase, start in enumerate(self._starts):
            if not self._weights[phase][corpus] or counts[phase].min() > last:
                continue
            if phase + 1 < len(self._starts) and counts[phase + 1].max() <= first:
                continue
            within = number >= counts[phase, lane]
            if phase + 1 < len(self._starts):
                within &= number < counts[phase + 1, lane]
            some = lane[within]
            steps = self._turns(phase).steps(corpus, some, number[within] - counts[phase, some])
            found[within] = steps + start
        return found

    def fingerprint(self) -> dict[str, object]:
        """Return what defines the mixture, but for shard rows and kept rows: json-able."""
        changes = [[start, list(weights)] for start, weights in self._later().items()]
        return {
            "weights": list(self._weights[0]),
            "orders": [order.fingerprint() for order in self._orders],
            **({"changes": changes} if changes else {}),
        }

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mixture):
            return NotImplemented
        mine = (self._weights, self._starts, self._orders)
        return mine == (other._weights, other._starts, other._orders)

    def __hash__(self) -> int:
        return hash((*self._weights, *self._starts, *self._orders))

    def __repr__(self) -> str:
        rows = ", ".join(str(len(order)) for order in self._orders)
        text = f"Mixture(<{len(self._orders)} orders of {rows} rows>, weights={list(self._weights[0])}"
        changes = {start: list(weights) for start, weights in self._later().items()}
        return f"{text}, changes={changes})" if changes else f"{text})"

    def __reduce__(self) -> tuple[type["Mixture"], tuple[object, ...]]:
        return Mixture, (self._orders, self._weights[0], self._later())

    def _later(self) -> dict[int, tuple[int, ...]]:
        return dict(zip(self._starts[1:], self._weights[1:], strict=True))

    def _turns(self, phase: int) -> Turns:
        """Return the turns of a phase."""
        weights = self._weights[phase]
        return self._tables.get(weights, lambda: Turns(weights, self.lanes))

    def _phases(self, start: int, stop: int) -> Iterator[tuple[int, Int64s]]:
        """Yield the phases that hold positions [start, stop), at least one, and their steps among these."""
        start = whole("start", start, least=0, below=_MOST_POSITION, example=0)
        stop = whole("stop", stop, least=start, below=_MOST_POSITION, example=start + 256)
        phase = int(np.searchsorted(self._starts, start, side="right")) - 1
        for begin, end in zip(self._starts[phase:], [*self._starts[phase + 1 :], stop], strict=True):
            yield phase, np.arange(start, min(end, stop)) - begin
            phase, start = phase + 1, end
            if start >= stop:
                return


def _endless(order: Order, lane: int, first: int, count: int) -> tuple[Int64s, Int64s]:
    """Return epoch and row of draws [first, first + count) of a lane that begins anew after each epoch."""
    most = order.lane_rows(0, lane)  # the same in every epoch
    epochs = np.arange(first, first + count) // most
    parts = []
    for epoch in range(first // most, (first + count - 1) // most + 1):
        start, stop = max(first - epoch * most, 0), min(first + count - epoch * most, most)
        parts.append(order.rows(epoch, lane, start, stop))
    return epochs, np.concatenate(parts)


def _within(name: str, values: npt.ArrayLike, below: int = _MOST_POSITION) -> Int64s:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be whole numbers, not {array.dtype}; e.g. {name}=0")
    if array.size and not 0 <= array.min() <= array.max() < below:
        raise ValueError(f"{name} must be in [0, {below}), not {array.min()} to {array.max()}")
    return array.astype(np.int64)


def _shares(weights: Sequence[int]) -> tuple[Fraction, ...]:
    return tuple(Fraction(weight, sum(weights)) for weight in weights)


def _whole(weights: Sequence[float | Fraction]) -> tuple[int, ...]:
    """Return the smallest whole numbers in the proportion of these weights, some of which may be 0."""
    numbers = iter(whole_weights([weight for weight in weights if weight != 0]))
    return tuple(next(numbers) if weight != 0 else 0 for weight in weights)


def _check(orders: Sequence[Order], phases: Sequence[Sequence[int]]) -> None:
    for weights in phases:
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
    for weights in phases:
        if entries(weights, orders[0].lanes) > MOST_ENTRIES:
            total = sum(weights)
            rounded = [max(min(weight, 1), round(weight * 100 / total)) for weight in weights]
            raise ValueError(
                f"weights that add up to {total} need too large a table for {orders[0].lanes} lanes; round "
                f"them, for example weights={rounded}"
            )
