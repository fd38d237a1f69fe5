"""Slots for blocks of Arrow corpora, also with columns whose rows differ in length.

Invariant: a slot holds one block as it is stored, verified, in its part of one arena. A row of most types is
a range of bytes there (fixed shapes, strings, binaries, lists of numbers): one call of Arrow copies the
ranges of a column, from all slots, in any order. Rows of other types (nested lists, structs, maps) are taken
block by block and then put in order.

Why not concatenate the blocks, or take from a chunked table: a batch has a few rows of each of many blocks.
Both copy all of those blocks, 30 ms for 256 rows of 64 blocks of 1 MiB, where ranges take 0.05 ms.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loaders.arrow_ranges import Arena, Int64s, Ranges
from loaders.slots import Batch
from tiering.errors import FormatError, UsageError
from tiering.reader import BlockReader

ROWS: Final = "rows"
"""The one key of a batch of `ArrowSlots`; its value is `Pieces`."""

_ALIGNMENT: Final = 64  # what Arrow asks of the start of a message


class Pieces:
    """A batch while it is gathered; `len` is its rows."""

    def __init__(self, rows: int, schema: pa.Schema) -> None:
        self._rows, self._schema = rows, schema
        self._pieces: list[tuple[int, pa.RecordBatch]] = []

    def __len__(self) -> int:
        return self._rows

    def add(self, start: int, piece: pa.RecordBatch) -> None:
        """Put rows from row `start` on."""
        self._pieces.append((start, piece))

    def whole(self) -> pa.RecordBatch:
        """All rows, in order."""
        pieces = [piece for _, piece in sorted(self._pieces, key=lambda each: each[0])]
        if not pieces:  # the last batch of an epoch may have rows on other ranks alone
            return pa.RecordBatch.from_pylist([], schema=self._schema)
        return pieces[0] if len(pieces) == 1 else pa.concat_batches(pieces)


class ArrowSlots:
    """See `loaders.slots.Slots`. Batches are ``{ROWS: Pieces}``.

    Args:
        reader: of an Arrow corpus, made with ``ragged=True``.
        count: how many slots. Each has the bytes of the largest block; pages that no block needs stay
            untouched.
    """

    def __init__(self, reader: BlockReader, count: int) -> None:
        self.count = count
        self._reader = reader
        self._block_rows = reader.block_rows
        largest = reader.corpus.shards("").largest_block_bytes
        self._stride = -(-largest // _ALIGNMENT) * _ALIGNMENT
        self._arena = Arena(count * self._stride)
        self._views = [
            memoryview(self._arena.memory[slot * self._stride : (slot + 1) * self._stride])
            for slot in range(count)
        ]
        self._blocks: list[pa.RecordBatch | None] = [None] * count
        self._columns = [Ranges.of(field, count, reader.block_rows, self._arena) for field in reader.schema]

    @property
    def nbytes(self) -> int:
        """Memory for blocks, at most."""
        return self.count * self._stride

    def slot_rows(self, column: str) -> int:  # noqa: ARG002  # all columns lie in one message
        """See `Slots`."""
        return self._block_rows

    def read(self, shard: int, block: int, slot: int) -> None:
        """See `Slots`."""
        self._blocks[slot] = None
        batch = self._reader.read_batch(shard, block, self._views[slot])
        for ranges, values in zip(self._columns, batch.columns, strict=True):
            if ranges is None or not ranges.note(slot, values):
                _check(values)
        self._blocks[slot] = batch

    def new_batch(self, rows: int) -> Batch:
        """See `Slots`."""
        return {ROWS: Pieces(rows, self._reader.schema)}

    def gather(
        self, batch: Batch, start: int, slots: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]
    ) -> None:
        """See `Slots`."""
        slots, rows = slots.astype(np.int64), rows.astype(np.int64)
        arrays = [
            ranges.take(slots, rows)
            if ranges is not None and ranges.noted[slots].all()
            else self._take_by_blocks(number, slots, rows)
            for number, ranges in enumerate(self._columns)
        ]
        batch[ROWS].add(start, pa.RecordBatch.from_arrays(arrays, schema=self._reader.schema))

    def _take_by_blocks(self, number: int, slots: Int64s, rows: Int64s) -> pa.Array:
        """Rows of a column of any type: from each block those it has, then all in order."""
        order = np.argsort(slots, kind="stable")
        sorted_slots, sorted_rows = slots[order], pa.array(rows[order])
        begins = np.flatnonzero(np.diff(sorted_slots, prepend=-1)).tolist()
        parts = [
            pc.array_take(self._column(slot, number), sorted_rows.slice(begin, end - begin))
            for slot, begin, end in zip(
                sorted_slots[begins].tolist(), begins, [*begins[1:], len(slots)], strict=True
            )
        ]
        try:
            joined = pa.concat_arrays(parts)
        except pa.ArrowInvalid as error:
            name = self._reader.schema.names[number]
            raise UsageError(
                f"{len(rows)} rows of column {name!r} do not fit one array: {error}",
                hint="Give a smaller batch_size",
            ) from error
        return pc.array_take(joined, pa.array(np.argsort(order)))

    def _column(self, slot: int, number: int) -> pa.Array:
        block = self._blocks[slot]
        if block is None:
            raise RuntimeError(f"slot {slot} holds no block")
        return block.column(number)


def _check(values: pa.Array) -> None:
    """Check offsets at all depths: taking rows would follow them."""
    try:
        values.validate(full=True)
    except (pa.ArrowInvalid, pa.ArrowIndexError) as error:
        raise FormatError(f"a column's rows do not lie within its values: {error}") from error
