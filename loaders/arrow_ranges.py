"""Rows of an Arrow column as ranges of bytes in one arena, whatever their lengths.

Invariant: every range lies inside of the arena, with its start before its end; that is checked when a block
comes in, so that copying need not look.

Layout of each type: Arrow columnar format, "Variable-size Binary", "Variable-size List", "Fixed-Size List".
"""

from __future__ import annotations

from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiering.errors import FormatError, UsageError

Int64s = np.ndarray[Any, np.dtype[np.int64]]

_ALIGNMENT: Final = 64  # what Arrow asks of memory
_MAX_INT32: Final = 2**31 - 1


class Arena:
    """Memory for blocks. Pages that nobody writes cost nothing."""

    def __init__(self, nbytes: int) -> None:
        raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
        self.memory = raw[-raw.ctypes.data % _ALIGNMENT :][:nbytes]
        self.buffer = pa.py_buffer(self.memory)

    def offset_of(self, buffer: pa.Buffer) -> int | None:
        """Where a buffer lies in it; None where it lies elsewhere."""
        offset = int(buffer.address - self.buffer.address)
        return offset if 0 <= offset <= self.buffer.size - buffer.size else None


class Ranges:
    """The rows of one column in all slots.

    Args:
        field: the column.
        count: slots.
        block_rows: the most rows of a block.
        arena: where blocks lie.
    """

    def __init__(self, field: pa.Field, count: int, block_rows: int, arena: Arena) -> None:
        self.field = field
        self._is_list = pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
        self._is_bytes = is_bytes(field.type)
        self._item_bytes = _item_bytes(field.type) or 1
        self._stride = block_rows + 1
        self._arena = arena
        # Row i of slot s is [starts[s, i], starts[s, i + 1]). To Arrow, all of it is one column of bytes. The
        # last entry bounds the mean length of a row, by which Arrow allocates.
        flat = np.zeros(count * self._stride + 1, np.int64)
        flat[-1] = arena.buffer.size
        self._starts = flat[:-1].reshape(count, self._stride)
        buffers = [None, pa.py_buffer(flat), arena.buffer]
        self._rows = pa.Array.from_buffers(pa.large_binary(), len(flat) - 1, buffers)
        self._valid = np.ones((count, block_rows), bool)
        self._has_nulls = np.zeros(count, bool)
        self.noted = np.zeros(count, bool)
        """Which slots hold a block whose rows are ranges."""

    @classmethod
    def of(cls, field: pa.Field, count: int, block_rows: int, arena: Arena) -> Self | None:
        """Ranges for a column; None where its type has none."""
        return cls(field, count, block_rows, arena) if _item_bytes(field.type) is not None else None

    def note(self, slot: int, values: pa.Array) -> bool:
        """Note the rows of the block in a slot; False where they are not ranges (nulls inside of lists).

        Raises:
            FormatError: lengths of rows are negative, or reach beyond the column.
        """
        starts = None if _has_inner_nulls(values) else self._find(values)
        self.noted[slot] = starts is not None
        if starts is None:
            return False
        self._starts[slot, : len(starts)] = starts
        self._has_nulls[slot] = values.null_count > 0
        if values.null_count:
            self._valid[slot, : len(values)] = values.is_valid().to_numpy(zero_copy_only=False)
        return True

    def take(self, slots: Int64s, rows: Int64s) -> pa.Array:
        """Row ``rows[i]`` of slot ``slots[i]``, for each i, all of them noted.

        Raises:
            UsageError: they are 2 GiB or more, in a type that cannot hold so much.
        """
        index = slots * self._stride + rows
        if has_small_offsets(self.field.type):
            self._check_items(index)  # before they are copied
        _, offsets, data = pc.array_take(self._rows, pa.array(index), boundscheck=False).buffers()
        data = pa.py_buffer(b"") if data is None else data
        validity = None
        if self._has_nulls[slots].any():
            valid = self._valid[slots, rows] | ~self._has_nulls[slots]
            validity = pa.py_buffer(np.packbits(valid, bitorder="little"))
        kind, count = self.field.type, len(rows)
        if not (self._is_list or self._is_bytes):
            return _fixed(kind, count, validity, data)
        ends = np.frombuffer(offsets, np.int64, count + 1) // self._item_bytes
        if has_small_offsets(kind):
            ends = ends.astype(np.int32)
        if self._is_bytes:
            return pa.Array.from_buffers(kind, count, [validity, pa.py_buffer(ends), data])
        items = _fixed(kind.value_type, int(ends[-1]), None, data)
        return pa.Array.from_buffers(kind, count, [validity, pa.py_buffer(ends)], children=[items])

    def _check_items(self, index: Int64s) -> None:
        starts = self._starts.reshape(-1)
        items = int(starts[index + 1].sum() - starts[index].sum()) // self._item_bytes
        if items > _MAX_INT32:
            column, kind = self.field.name, self.field.type
            raise UsageError(
                f"{len(index)} rows of column {column!r} have {items} items, too many for {kind}",
                hint="Give a smaller batch_size",
            )

    def _find(self, values: pa.Array) -> Int64s | None:
        """Where rows start in the arena, and the last one ends; None where they lie outside of it."""
        buffers, count = values.buffers(), len(values)
        data = buffers[-1] or pa.py_buffer(self._arena.memory[:0])
        base = self._arena.offset_of(data)
        if base is None or values.offset:
            return None
        if not (self._is_list or self._is_bytes):
            starts: Int64s = np.arange(count + 1, dtype=np.int64) * self._item_bytes
        else:
            width = np.int32 if has_small_offsets(values.type) else np.int64
            starts = np.frombuffer(buffers[1], width, count + 1).astype(np.int64) * self._item_bytes
        if starts[0] < 0 or starts[-1] > data.size or (np.diff(starts) < 0).any():
            raise FormatError(f"column {self.field.name!r} has rows that do not lie within its values")
        return base + starts


def is_bytes(kind: pa.DataType) -> bool:
    """Whether rows are strings or binaries."""
    types = pa.types
    kinds = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return any(is_kind(kind) for is_kind in kinds)


def has_small_offsets(kind: pa.DataType) -> bool:
    """Whether offsets of rows are int32, not int64."""
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_list(kind))


def _item_bytes(kind: pa.DataType) -> int | None:
    """Bytes of a character, an item of a list, a row of fixed shape; None for other types."""
    if is_bytes(kind):
        return 1
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _fixed_bytes(kind.value_type)
    return _fixed_bytes(kind)


def _fixed_bytes(kind: pa.DataType) -> int | None:
    if pa.types.is_fixed_size_list(kind):
        item = _fixed_bytes(kind.value_type)
        return item * kind.list_size or None if item else None
    if not (pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_fixed_size_binary(kind)):
        return None
    return None if kind.bit_width % 8 else kind.bit_width // 8 or None


def _has_inner_nulls(values: pa.Array) -> bool:
    while pa.types.is_nested(values.type):
        values = values.values
        if values.null_count:
            return True
    return False


def _fixed(kind: pa.DataType, count: int, validity: pa.Buffer | None, data: pa.Buffer) -> pa.Array:
    if not pa.types.is_fixed_size_list(kind):
        return pa.Array.from_buffers(kind, count, [validity, data])
    items = _fixed(kind.value_type, count * kind.list_size, None, data)
    return pa.Array.from_buffers(kind, count, [validity], children=[items])
