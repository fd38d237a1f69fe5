"""Memory for batches, used again when nobody refers to it any more.

Invariant: what was handed out is not written to before the caller, and whatever shares memory with the arrays
he was given, has let go of it; so batches may be kept for as long as anybody likes.

A fresh page costs more than the copy of a row into it, so memory that was filled once is worth keeping.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from tiering.layout.zarr import ZarrColumn

NewArray = Callable[[tuple[int, ...], np.dtype[Any]], np.ndarray[Any, Any]]
_LOOKED_AT: Final = 4  # of those handed out, the first ones; a caller that keeps some of them may have more


class BatchBuffer:
    """Arrays of every column for the rows of one batch."""

    __slots__ = ("addresses", "arrays")

    def __init__(self, columns: Sequence[ZarrColumn], rows: int, new: NewArray | None = None) -> None:
        new = new or np.empty
        self.arrays = {column.name: new((rows, *column.shape), column.dtype) for column in columns}
        """By column, shape ``[rows, *shape]``. Callers get views of them, never these."""
        self.addresses = {
            name: int(array.__array_interface__["data"][0]) for name, array in self.arrays.items()
        }
        """Where each column begins."""

    def is_free(self) -> bool:
        """Whether nothing else refers to the memory: what shares it refers to these arrays."""
        return all(sys.getrefcount(array) == _REFERENCES for array in self.arrays.values())


def _references() -> int:
    """What `sys.getrefcount` says of an array that a dictionary holds, and one that goes over its values."""
    (count,) = (sys.getrefcount(array) for array in {"": np.empty(0)}.values())
    return count


_REFERENCES: Final = _references()


class BatchBuffers:
    """Buffers of one size.

    Args:
        columns: of the batches.
        rows: of the largest batch.
        most: how many of those handed out are remembered, to be used again.
        new: makes an array, given shape and dtype, that is no view of another one; `numpy.empty` by default.
    """

    def __init__(
        self, columns: Sequence[ZarrColumn], rows: int, most: int, new: NewArray | None = None
    ) -> None:
        self.rows = rows
        self._new = new
        self._columns = tuple(columns)
        self._lent: deque[BatchBuffer] = deque(maxlen=most)

    def take(self) -> BatchBuffer:
        """A buffer that nobody else has, with any content."""
        for _ in range(min(_LOOKED_AT, len(self._lent))):
            buffer = self._lent.popleft()
            if buffer.is_free():
                return buffer
            self._lent.append(buffer)
        return BatchBuffer(self._columns, self.rows, self._new)

    def give(self, buffer: BatchBuffer) -> None:
        """Take back a buffer, which its arrays' users may still look at and write to."""
        self._lent.append(buffer)
