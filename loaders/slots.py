"""Slots: preallocated memory for blocks, to gather batches from. `loaders.gpu` has them in device memory.

Invariant: a slot holds one block at a time, chosen by the `WindowFeed` that uses it; all slots of a column
lie at one stride, so that one gather reaches the rows of all of them.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

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
