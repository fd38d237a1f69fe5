"""Packs rows of different lengths into rows of one length.

Invariant: every piece lies in one packed row, whole, and pieces do not overlap. A function of lengths alone.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from tiering.errors import UsageError

Array = np.ndarray[Any, Any]
Long = Literal["error", "split", "truncate"]

PACKED: Final = ("segments", "positions", "rows")
"""What tells, for each place of a packed row, which segment, which position in its row, and which row."""


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """What is packed; int64 ``[pieces]`` each."""

    rows: Array
    """Which row it is of."""
    positions: Array
    """Position in its row at which it begins."""
    starts: Array
    """Where it begins among all values."""
    lengths: Array


def pieces_of(name: str, lengths: Array, length: int, long: Long) -> Pieces:
    """Rows of these lengths as pieces of at most `length` values; rows without values give none.

    Raises:
        UsageError: with ``error``, a row is longer.
    """
    starts = np.cumsum(lengths) - lengths
    rows = np.flatnonzero(lengths)
    if long == "error" and (lengths > length).any():
        row = int(np.argmax(lengths))
        raise UsageError(
            f"row {row} of a batch has {lengths[row]} values of column {name!r}, over the {length} of "
            "a packed row",
            hint="Use Pack(length=..., long='split') or 'truncate', or a larger length",
        )
    if long != "split":
        return Pieces(rows, np.zeros(len(rows), np.int64), starts[rows], np.minimum(lengths[rows], length))
    counts = -(-lengths[rows] // length)
    of = np.repeat(rows, counts)
    positions = (np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)) * length
    return Pieces(of, positions, starts[of] + positions, np.minimum(lengths[of] - positions, length))


def best_fit_decreasing(lengths: Array, length: int) -> tuple[Array, Array]:
    """Packed row, and place in it, of each piece: int64 ``[pieces]``. Packed rows count from 0.

    The longest first, equal ones in their order; each into the packed row where it leaves the least room,
    the oldest of those. One step of Python a piece.
    """
    bins, places = np.empty(len(lengths), np.int64), np.empty(len(lengths), np.int64)
    room: list[tuple[int, int]] = []  # what is left, and in which packed row, sorted
    made = 0
    for piece in np.argsort(-lengths, kind="stable").tolist():
        needed = int(lengths[piece])
        at = bisect_left(room, (needed, -1))
        if at < len(room):
            left, packed = room.pop(at)
        else:
            left, packed, made = length, made, made + 1
        bins[piece], places[piece] = packed, length - left
        if left > needed:
            insort(room, (left - needed, packed))
    return bins, places


def into_rows(
    name: str, values: Array, pieces: Pieces, length: int, value: float, packed_rows: int | None
) -> tuple[Array, dict[str, Array]]:
    """Values as ``[packed, length]``, and int32 arrays of that shape by the names in `PACKED`.

    Raises:
        UsageError: more than `packed_rows` are needed.
    """
    bins, places = best_fit_decreasing(pieces.lengths, length)
    needed = int(bins.max(initial=-1)) + 1
    if packed_rows is not None and needed > packed_rows:
        raise UsageError(
            f"a batch needs {needed} packed rows of {length} for column {name!r}, more than {packed_rows}",
            hint="Give a smaller batch_size, or larger packed_rows or length",
        )
    shape = (needed if packed_rows is None else packed_rows, length)
    order = np.lexsort((places, bins))
    segments = np.empty(len(bins), np.int64)
    segments[order] = np.arange(1, len(bins) + 1) - np.searchsorted(bins[order], bins[order])

    counts = pieces.lengths
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    to = np.repeat(bins * length + places, counts) + within

    def spread(filler: float, dtype: Any, each: Array) -> Array:
        array = np.full(shape, filler, dtype)
        array.reshape(-1)[to] = each
        return array

    return spread(value, values.dtype, values[np.repeat(pieces.starts, counts) + within]), {
        "segments": spread(0, np.int32, np.repeat(segments, counts)),
        "positions": spread(0, np.int32, np.repeat(pieces.positions, counts) + within),
        "rows": spread(-1, np.int32, np.repeat(pieces.rows, counts)),
    }
