"""Blocks that are read whole, to be checked or decoded before their rows go where they belong.

Invariant: what `read` gives is valid until the same thread calls it again. Of a block that several lanes need
a copy is kept until they have had all of its rows, or too many others were used after it; so it is read once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from tiering.layout.zarr import ZarrColumn
from tiering.reader import BlockReader
from tiering.stores.pages import aligned_buffer, round_up

Int64s = np.ndarray[Any, np.dtype[np.int64]]
Rows = Mapping[str, np.ndarray[Any, Any]]
"""Rows of a block by column: arrays ``[block_rows, *shape]``; behind the last row of the block is garbage."""


class _Kept:
    """A block that several lanes need."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # whoever has it reads the block for all
        self.rows: dict[str, np.ndarray[Any, Any]] = {}
        self.used = 0


class WholeBlocks:
    """Reads whole blocks.

    Args:
        reader: reads them.
        shard_rows: rows of each shard, int64 ``[shards]``.
        most: how many that several lanes need are kept.
    """

    def __init__(self, reader: BlockReader, shard_rows: Int64s, most: int) -> None:
        self.reader, self._shard_rows, self._most = reader, shard_rows, most
        self._columns = {column.name: column for column in reader.columns}
        self._own = threading.local()
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], _Kept] = OrderedDict()

    def held(self, shard: int, block: int) -> Collection[str]:
        """Of which columns a copy of a block is kept."""
        kept = self._kept.get((shard, block))
        return () if kept is None else kept.rows

    def read(self, shard: int, block: int, names: Sequence[str], shared_rows: int | None = None) -> Rows:
        """The rows of some columns of a block.

        Args:
            shard, block: their numbers.
            names: of the columns.
            shared_rows: how many of the rows are needed now, where other lanes need others; else None.
        """
        if shared_rows is None:
            memory = getattr(self._own, "memory", None)
            if memory is None:
                memory = self._own.memory = self._new_aligned()
            self._fill(shard, block, {name: memory[name] for name in names})
            return {name: memory[name] for name in names}
        kept = self._keep(shard, block)
        with kept.lock:
            missing = self._new([name for name in names if name not in kept.rows])
            self._fill(shard, block, missing)
            kept.rows |= missing
            kept.used += shared_rows
            if kept.used >= self._rows_of(shard, block):
                with self._lock:
                    self._kept.pop((shard, block), None)
            return {name: kept.rows[name] for name in names}

    def _rows_of(self, shard: int, block: int) -> int:
        size = self.reader.block_rows
        return min(size, int(self._shard_rows[shard]) - block * size)

    def _keep(self, shard: int, block: int) -> _Kept:
        with self._lock:
            kept = self._kept.setdefault((shard, block), _Kept())
            self._kept.move_to_end((shard, block))
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
            return kept

    def _new_aligned(self) -> dict[str, np.ndarray[Any, Any]]:
        """As `_new`, all columns, on pages of their own: direct I/O takes them as they are."""
        shapes = {column: (self.reader.slot_rows(column), *column.shape) for column in self.reader.columns}
        slots, begin = {}, 0
        area = aligned_buffer(sum(round_up(rows * column.row_bytes) for column, (rows, *_) in shapes.items()))
        for column, shape in shapes.items():
            slots[column.name] = np.ndarray(shape, column.dtype, area, begin)
            begin += round_up(slots[column.name].nbytes)
        return slots

    def _new(self, names: Sequence[str] | Mapping[str, ZarrColumn]) -> dict[str, np.ndarray[Any, Any]]:
        columns = [self._columns[name] for name in names]
        return {
            column.name: np.empty((self.reader.slot_rows(column), *column.shape), column.dtype)
            for column in columns
        }

    def _fill(self, shard: int, block: int, memory: Rows) -> None:
        if memory:
            slots = {name: memoryview(array.reshape(-1).view(np.uint8)) for name, array in memory.items()}
            self.reader.read(shard, block, slots)
