"""What was handed out, in 128 bits: the same for every world size, cache, tier and resume, for no other rows.

Invariant: the digest of some batches is the sum of what each row gives: a function of its bytes, by column,
and of the epoch, lane and position it stands at. So those of ranks, and of stretches of an epoch, add up.

Each row is hashed twice by a multilinear function of its 64-bit words (Carter, Wegman: Universal classes of
hash functions, 1979), with weights that are fixed. It tells rows apart that differ by accident; it is no
seal against somebody who chooses them. That the bytes are those of the corpus is what its CRCs and digests
prove when they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from policies.order.permute import derive, derive_array
from tiering.digest import digest
from tiering.errors import UsageError

_WORD_BYTES: Final = 8
_WORD: Final = 1 << 64
_WEIGHTS, _PLACES = 1, 2  # domains of `derive`

UInt64s = np.ndarray[Any, np.dtype[np.uint64]]


@dataclass(frozen=True, slots=True)
class RowsDigest:
    """Which rows were handed out at positions [start, stop) of some lanes of an epoch."""

    epoch: int
    start: int
    stop: int
    rows: int
    """How many."""
    value: int
    """In [0, 2**128)."""

    def __add__(self, other: RowsDigest) -> RowsDigest:
        """Both together: those of other ranks over the same positions, or those that follow.

        Raises:
            UsageError: they are of other epochs, or neither the same positions nor neighbouring ones.
        """
        same = (self.start, self.stop) == (other.start, other.stop)
        if self.epoch != other.epoch or not (same or self.stop == other.start):
            raise UsageError(
                f"digests of {self} and {other} do not join",
                hint="First add those of all ranks for one stretch, then the stretches in their order",
            )
        low = (self.value + other.value) % _WORD
        high = ((self.value >> 64) + (other.value >> 64)) % _WORD
        rows = self.rows + other.rows
        return RowsDigest(self.epoch, self.start, other.stop, rows, high << 64 | low)

    def __str__(self) -> str:
        return f"epoch {self.epoch}, positions {self.start}-{self.stop}, {self.rows} rows: {self.value:032x}"


class RowsHasher:
    """Digests batch by batch what one loop hands out.

    Args:
        epoch: of the loop.
        start: position where it begins.
        lanes: neighbouring lanes, in the order in which a batch has them.
        lane_rows: rows of each.
    """

    def __init__(self, epoch: int, start: int, lanes: range, lane_rows: Sequence[int]) -> None:
        self._epoch, self._start, self._stop = epoch, start, start
        self._lanes, self._lane_rows = lanes, lane_rows
        self._rows = 0
        self._sums = [0, 0]
        self._weights: dict[tuple[str, int, int], UInt64s] = {}

    def update(self, batch: dict[str, Any], stop: int) -> RowsDigest:
        """Add the batch that ends at position `stop` (exclusive); that of all batches so far.

        Raises:
            UsageError: it is not of arrays in host memory.
        """
        lanes, places = [], []
        for lane, rows in zip(self._lanes, self._lane_rows, strict=True):
            places.append(np.arange(self._stop, max(self._stop, min(stop, rows)), dtype=np.uint64))
            lanes.append(np.full(len(places[-1]), lane, np.uint64))
        lane_of, place = np.concatenate(lanes), np.concatenate(places)
        if not len(place):
            self._stop = stop
            return self._result()
        for half in range(2):
            key = derive_array(derive(_PLACES, half, self._epoch), lane_of)
            words = derive_array(key, place)
            for name, values in batch.items():
                words = words + self._hashed(name, half, values)
            # Mixed once more, so that rows which change places do not cancel out.
            self._sums[half] = (self._sums[half] + int(derive_array(words, place).sum())) % _WORD
        self._rows += len(place)
        self._stop = stop
        return self._result()

    def _result(self) -> RowsDigest:
        value = self._sums[0] << 64 | self._sums[1]
        return RowsDigest(self._epoch, self._start, self._stop, self._rows, value)

    def _hashed(self, name: str, half: int, values: Any) -> UInt64s:
        """A word for each row of a column."""
        if not isinstance(values, np.ndarray):
            raise UsageError(
                f"column {name!r} is a {type(values).__name__}: digest=True takes arrays in host memory alone"
            )
        flat = np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)
        words = -(-flat.shape[1] // _WORD_BYTES)
        padded = np.zeros((len(flat), words * _WORD_BYTES), np.uint8)
        padded[:, : flat.shape[1]] = flat
        hashed: UInt64s = padded.view("<u8").astype(np.uint64, copy=False) @ self._weights_of(
            name, half, words
        )
        return hashed

    def _weights_of(self, name: str, half: int, words: int) -> UInt64s:
        found = self._weights.get((name, half, words))
        if found is None:
            key = derive(_WEIGHTS, half, int(digest(name.encode())[:16], 16))
            found = derive_array(key, np.arange(words, dtype=np.uint64)) | np.uint64(1)
            self._weights[name, half, words] = found
        return found
