"""Slots: preallocated memory for blocks, in host memory. `loaders.gpu` has the same in device memory.

Invariant: a slot holds one block at a time, chosen by the `WindowFeed` that uses it; all slots of a column
lie at one stride, so that one gather reaches the rows of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from tiering.layout.zarr import ZarrColumn
from tiering.reader import BlockReader

Batch = dict[str, Any]
"""Arrays ``[rows, *shape]`` by column: numpy on the host, cupy on a device."""


class Slots(Protocol):
    """Memory for a fixed number of blocks."""

    count: int

    def slot_rows(self, column: str) -> int:
        """Rows from the start of one slot to that of the next."""
        ...

    def read(self, shard: int, block: int, slot: int) -> None:
        """Read a block of every column into a slot; called by many threads, each with a slot of its own."""
        ...

    def new_batch(self, rows: int) -> Batch:
        """Uninitialised arrays for a batch."""
        ...

    def gather(
        self, batch: Batch, start: int, slots: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]
    ) -> None:
        """Copy row ``rows[i]`` of slot ``slots[i]`` to row ``start + i`` of the batch, in all columns."""
        ...


class HostSlots:
    """Slots in host memory."""

    def __init__(self, reader: BlockReader, count: int) -> None:
        self.count = count
        self._reader = reader
        self._columns: Mapping[str, ZarrColumn] = {column.name: column for column in reader.columns}
        self._rows = {name: reader.slot_rows(column) for name, column in self._columns.items()}
        self._memory = {
            name: np.empty((count * self._rows[name], *column.shape), column.dtype)
            for name, column in self._columns.items()
        }
        whole = {name: memoryview(array.reshape(-1).view(np.uint8)) for name, array in self._memory.items()}
        self._views = [
            {
                name: whole[name][slot * nbytes : (slot + 1) * nbytes]
                for name, nbytes in ((n, self._rows[n] * c.row_bytes) for n, c in self._columns.items())
            }
            for slot in range(count)
        ]

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(array.nbytes for array in self._memory.values())

    def slot_rows(self, column: str) -> int:
        """See `Slots`."""
        return self._rows[column]

    def read(self, shard: int, block: int, slot: int) -> None:
        """See `Slots`."""
        self._reader.read(shard, block, self._views[slot])

    def new_batch(self, rows: int) -> Batch:
        """See `Slots`."""
        return {name: np.empty((rows, *column.shape), column.dtype) for name, column in self._columns.items()}

    def gather(
        self, batch: Batch, start: int, slots: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]
    ) -> None:
        """See `Slots`."""
        for name, memory in self._memory.items():
            out = batch[name][start : start + len(rows)]
            # mode="clip" writes straight to `out`; the indexes are right by construction.
            np.take(memory, slots.astype(np.int64) * self._rows[name] + rows, axis=0, out=out, mode="clip")
