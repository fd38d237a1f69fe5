"""A set of row numbers that is searched without being unpacked: ranks and selections, never a walk.

Invariant: which of two encodings holds the rows depends on the set alone: the one that needs less memory.
Runs take 16 bytes each; bits take 9/64 byte for each row of the corpus, kept or not, with a count of the rows
before every 512 (the rank directory of Jacobson: Space-efficient static trees and graphs, FOCS 1989).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Keep", "RowSet", "equal", "row_set"]

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

_WORDS = 8  # of 64 bits for each count
_SPAN = 64 * _WORDS
_RUN_BYTES = 16
_CHUNK = 1 << 20  # rows unpacked at once while bits are made; a multiple of _SPAN
_PART = 1 << 14  # searched at once
_EXAMPLE = "for example keep=scores > 0.5, keep=[0, 3, 7] or keep=[[0, 1000], [5000, 6000]]"


class RowSet(Protocol):
    """Some of the rows of a corpus."""

    @property
    def nbytes(self) -> int:
        """Memory held."""
        ...

    @property
    def parts(self) -> tuple[npt.NDArray[np.int64 | np.uint64], ...]:
        """Arrays that tell the set from any other of the same corpus; not to be changed."""
        ...

    def rank(self, rows: Int64s) -> Int64s:
        """Return how many kept rows come before each of `rows`, in [0, rows of the corpus]: int64, new."""
        ...

    def select(self, numbers: Int64s) -> Int64s:
        """Return the kept rows with these numbers, each in [0, kept rows): int64, new."""
        ...


Keep = npt.NDArray[np.bool_] | npt.NDArray[np.integer] | Sequence[int] | Sequence[Sequence[int]] | RowSet


def row_set(keep: Keep, total: int) -> RowSet:
    """Return the set of the rows of a corpus of `total` rows that `keep` names.

    keep: bool, shape (total,): which rows stay; or ints, shape (k,): the rows, ascending, each once; or ints,
    shape (k, 2): half-open ranges [first, past the last), ascending and apart. Raises ValueError for
    anything else.
    """
    if isinstance(keep, Runs | Bits):
        return keep
    rows = np.asarray(keep)
    if rows.dtype == np.bool_ and rows.shape == (total,):
        return _of_mask(rows)
    if not rows.size and rows.dtype != np.bool_:
        return Runs(np.zeros(0, np.int64), np.zeros(1, np.int64))
    if rows.dtype.kind not in "iu" or (rows.ndim != 1 and (rows.ndim != 2 or rows.shape[1] != 2)):
        raise ValueError(
            f"keep must be a mask of the {total} rows, row numbers or ranges of them, not {rows.dtype} of "
            f"shape {rows.shape}; {_EXAMPLE}"
        )
    if rows.min() < 0 or rows.max() > (total if rows.ndim == 2 else total - 1):
        raise ValueError(f"keep must name rows in [0, {total}), not {rows.min()} to {rows.max()}; {_EXAMPLE}")
    rows = rows.astype(np.int64)
    begins, ends = (rows, rows + 1) if rows.ndim == 1 else (rows[:, 0], rows[:, 1])
    if (begins >= ends).any() or (begins[1:] < ends[:-1]).any():
        raise ValueError(f"keep must be ascending, each row once and no range empty; {_EXAMPLE}")
    apart = np.flatnonzero(begins[1:] > ends[:-1])
    first = np.concatenate(([0], apart + 1))
    last = np.concatenate((apart, [len(ends) - 1]))
    return _smaller(begins[first], ends[last], total)


def equal(one: RowSet | None, other: RowSet | None) -> bool:
    """Return whether two sets of one corpus are the same."""
    if one is None or other is None or type(one) is not type(other):
        return one is other
    return all(map(np.array_equal, one.parts, other.parts))


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Rows as runs. begins: int64 (runs,). before: int64 (runs + 1,): rows before each run, then all."""

    begins: Int64s
    before: Int64s

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self.begins.nbytes + self.before.nbytes

    @property
    def parts(self) -> tuple[Int64s, ...]:
        """See `RowSet`."""
        return self.begins, self.before

    def rank(self, rows: Int64s) -> Int64s:
        """See `RowSet`."""
        if not self.begins.size:
            return np.zeros_like(rows)
        run = np.maximum(np.searchsorted(self.begins, rows, side="right") - 1, 0)
        within = np.maximum(rows - self.begins[run], 0)
        found: Int64s = np.minimum(self.before[run] + within, self.before[run + 1])
        return found

    def select(self, numbers: Int64s) -> Int64s:
        """See `RowSet`."""
        run = np.searchsorted(self.before, numbers, side="right") - 1
        found: Int64s = self.begins[run] + (numbers - self.before[run])
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Bits:
    """Rows as bits. words: uint64 (spans, 8), lowest bit first. before: int64 (spans + 1,)."""

    words: UInt64s
    before: Int64s

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self.words.nbytes + self.before.nbytes

    @property
    def parts(self) -> tuple[UInt64s, ...]:
        """See `RowSet`."""
        return (self.words,)

    def rank(self, rows: Int64s) -> Int64s:
        """See `RowSet`."""
        return _in_parts(self._rank, rows)

    def select(self, numbers: Int64s) -> Int64s:
        """See `RowSet`."""
        return _in_parts(self._select, numbers)

    def _rank(self, rows: Int64s) -> Int64s:
        span = np.minimum(rows // _SPAN, len(self.words) - 1)
        inside = np.clip((rows - span * _SPAN)[:, None] - np.arange(0, _SPAN, 64), 0, 64)  # bits that count
        mask = ~np.uint64(0) >> np.minimum(64 - inside, 63).astype(np.uint64)
        mask[inside == 0] = 0
        counts = np.bitwise_count(self.words[span] & mask)
        found: Int64s = self.before[span] + counts.sum(axis=1, dtype=np.int64)
        return found

    def _select(self, numbers: Int64s) -> Int64s:
        span: Int64s = np.searchsorted(self.before, numbers, side="right") - 1
        rest = numbers - self.before[span]
        counts = np.cumsum(np.bitwise_count(self.words[span]), axis=1, dtype=np.int64)
        word = (counts <= rest[:, None]).sum(axis=1)
        rest -= np.where(word > 0, counts[np.arange(len(word)), word - 1], 0)
        bits = self.words[span, word]
        found: Int64s = span * _SPAN + word * 64
        for half in (32, 16, 8, 4, 2, 1):  # is it above the lower half of the bits that are left?
            count = np.bitwise_count(bits & np.uint64((1 << half) - 1)).astype(np.int64)
            above = rest >= count
            rest -= above * count
            found += above * half
            bits >>= (above * half).astype(np.uint64)
        return found


def _in_parts(search: Callable[[Int64s], Int64s], values: Int64s) -> Int64s:
    """Search a part at a time, for a search takes some 200 bytes a value."""
    found = np.empty(len(values), dtype=np.int64)
    for first in range(0, len(values), _PART):
        found[first : first + _PART] = search(values[first : first + _PART])
    return found


def _of_mask(mask: npt.NDArray[np.bool_]) -> RowSet:
    runs = np.count_nonzero(mask[1:] & ~mask[:-1]) + int(mask[:1].any())
    if runs * _RUN_BYTES > _bits_bytes(len(mask)):
        return _bits((mask[first : first + _CHUNK] for first in range(0, len(mask), _CHUNK)), len(mask))
    edges = np.flatnonzero(mask[1:] != mask[:-1]) + 1
    edges = np.concatenate(([0] if mask[:1].any() else [], edges, [len(mask)] if mask[-1:].any() else []))
    edges = edges.astype(np.int64)
    return _smaller(edges[::2], edges[1::2], len(mask))


def _smaller(begins: Int64s, ends: Int64s, total: int) -> RowSet:
    """Return the smaller encoding of runs [begins, ends), ascending and apart."""
    if len(begins) * _RUN_BYTES > _bits_bytes(total):
        return _bits((_mask(begins, ends, first, total) for first in range(0, total, _CHUNK)), total)
    before = np.zeros(len(begins) + 1, dtype=np.int64)
    np.cumsum(ends - begins, out=before[1:])
    return Runs(begins.copy(), before)


def _bits(masks: Iterable[npt.NDArray[np.bool_]], total: int) -> RowSet:
    """Pack the masks of `_CHUNK` rows each, in order."""
    words = np.zeros((-(-total // _SPAN), _WORDS), dtype="<u8")
    packed, at = words.view(np.uint8).reshape(-1), 0
    for mask in masks:
        part = np.packbits(mask, bitorder="little")
        packed[at : at + len(part)] = part
        at += len(part)
    before = np.zeros(len(words) + 1, dtype=np.int64)
    np.cumsum(np.bitwise_count(words).sum(axis=1, dtype=np.int64), out=before[1:])
    return Bits(words.astype(np.uint64, copy=False), before)


def _mask(begins: Int64s, ends: Int64s, first: int, total: int) -> npt.NDArray[np.bool_]:
    """Return the mask of the `_CHUNK` rows from `first` on, of all runs [begins, ends)."""
    count = min(_CHUNK, total - first)
    runs = slice(np.searchsorted(ends, first, side="right"), np.searchsorted(begins, first + count))
    steps = np.zeros(count + 1, dtype=np.int8)
    steps[np.maximum(begins[runs] - first, 0)] = 1
    steps[np.minimum(ends[runs] - first, count)] = -1
    return np.cumsum(steps[:-1], dtype=np.int8).view(np.bool_)


def _bits_bytes(total: int) -> int:
    return -(-total // _SPAN) * (_SPAN // 8 + 8)
