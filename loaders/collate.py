"""Collate: what becomes of the rows of a batch whose lengths differ.

Invariant: pure functions of one record batch. Nothing of a row is left out but by an option that says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from loaders.arrow_ranges import has_small_offsets, is_bytes
from loaders.packing import PACKED, Long, into_rows, pieces_of
from tiering.errors import UsageError
from tiering.schema import array_of, columns_of, to_table

Array = np.ndarray[Any, Any]
Arrays = dict[str, Any]

NAMES: Final = ("arrow", "pad", "pack")
_HINT: Final = (
    "collate='arrow' gives record batches, 'pad' and 'pack' arrays (loaders.Pad and loaders.Pack have "
    "options), a function whatever it makes of a record batch; or choose other columns"
)
_MAX_INT32: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Pad:
    """Ragged columns as ``[batch, longest]``, and ``NAME_lengths``, int32 ``[batch]``.

    Rows are lists of numbers, or bytes of strings as uint8.

    Raises:
        UsageError: an option is out of range.
    """

    value: float = 0
    """Behind the values of a shorter row."""
    max_length: int | None = None
    """What is behind so many values of a row is left out, and `NAME_lengths` does not count it."""
    multiple_of: int = 1
    """The length is raised to a multiple of it, which need not divide `max_length`."""

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 1:
            raise UsageError(f"max_length = {self.max_length} must be at least 1", hint="Example: 512")
        if self.multiple_of < 1:
            raise UsageError(f"multiple_of = {self.multiple_of} must be at least 1", hint="Example: 8")

    def check(self, schema: pa.Schema) -> None:
        """Raise UsageError for a schema of which no batch can be padded."""
        _check_columns(schema, "padded", ("lengths",), self.value)

    def __call__(self, batch: pa.RecordBatch) -> Arrays:
        """Arrays by column.

        Raises:
            UsageError: a column has nulls.
        """
        out = _fixed_columns(batch)
        for name, values, lengths in _ragged_columns(batch):
            kept = lengths if self.max_length is None else np.minimum(lengths, self.max_length)
            width = -(-int(kept.max(initial=0)) // self.multiple_of) * self.multiple_of
            padded = np.full((len(kept), width), self.value, values.dtype)
            padded[np.arange(width) < kept[:, None]] = (
                values if kept is lengths else _heads(values, lengths, kept)
            )
            out[name], out[f"{name}_lengths"] = padded, kept.astype(np.int32)
        return out


@dataclass(frozen=True, slots=True)
class Pack:
    """Ragged columns without padding between rows.

    Without `length`, a column is all values one after the other, ``[values]``, and beside it
    ``NAME_cu_seqlens``, int32 ``[batch + 1]``, where each row begins and the last one ends, and
    ``NAME_max_seqlen``, an int: the form of FlashAttention's ``varlen`` functions.

    With `length`, it is ``[packed, length]``, where each packed row holds whole rows of the batch, and beside
    it, int32 of the same shape, ``NAME_segments``: 1, 2, ... for the rows in a packed row, 0 behind the
    last; ``NAME_positions``: from 0 in each row; ``NAME_rows``: which row of the batch, -1 behind the last.
    Rows go, the longest first, where they leave the least room (best fit decreasing: at most 11/9 of the
    fewest packed rows, plus one; Johnson 1974). Columns with rows of equal lengths are packed alike.

    A batch is packed for itself: nothing is kept for the next one.

    Raises:
        UsageError: an option is out of range, or given without `length`.
    """

    length: int | None = None
    value: float = 0
    """Behind the last row of a packed row."""
    long: Long = "error"
    """Rows over `length`: ``error``; ``split`` into segments of their own, whose positions go on;
    ``truncate``, which leaves out what is behind `length` values."""
    packed_rows: int | None = None
    """How many packed rows a batch has, for shapes that never change; a batch that needs more is an error."""

    def __post_init__(self) -> None:
        if self.length is None and (self.long != "error" or self.packed_rows is not None):
            raise UsageError("long and packed_rows need length", hint="Example: Pack(length=2048)")
        for name, value in (("length", self.length), ("packed_rows", self.packed_rows)):
            if value is not None and value < 1:
                raise UsageError(f"{name} = {value} must be at least 1", hint="Example: 2048")
        if self.long not in ("error", "split", "truncate"):
            raise UsageError(f"long = {self.long!r} is none of error, split, truncate")

    def check(self, schema: pa.Schema) -> None:
        """Raise UsageError for a schema of which no batch can be packed."""
        names = ("cu_seqlens", "max_seqlen") if self.length is None else PACKED
        _check_columns(schema, "packed", names, self.value)

    def __call__(self, batch: pa.RecordBatch) -> Arrays:
        """Arrays by column.

        Raises:
            UsageError: a column has nulls, a row is too long, or the batch needs too many packed rows.
        """
        out = _fixed_columns(batch)
        for name, values, lengths in _ragged_columns(batch):
            if len(values) > _MAX_INT32:
                raise UsageError(
                    f"a batch has {len(values)} values of column {name!r}, over 2**31 - 1",
                    hint="Give a smaller batch_size",
                )
            if self.length is None:
                ends = np.zeros(len(lengths) + 1, np.int32)
                np.cumsum(lengths, out=ends[1:])
                out |= {name: values, f"{name}_cu_seqlens": ends}
                out[f"{name}_max_seqlen"] = int(lengths.max(initial=0))
                continue
            pieces = pieces_of(name, lengths, self.length, self.long)
            packed, marks = into_rows(name, values, pieces, self.length, self.value, self.packed_rows)
            out |= {name: packed} | {f"{name}_{mark}": marks[mark] for mark in PACKED}
        return out


Collate = str | Pad | Pack | Callable[[pa.RecordBatch], Any] | None


def choose_collate(collate: Collate, schema: pa.Schema) -> Callable[[pa.RecordBatch], Any] | None:
    """The function that makes batches of these columns; None where they come as arrays by themselves.

    Raises:
        UsageError: columns are ragged and nothing is said of them, or do not fit what is said.
    """
    if collate is None:
        if ragged := _first_ragged(schema):
            raise UsageError(f"column {ragged.name!r} of type {ragged.type} has no fixed shape", hint=_HINT)
        return None
    if isinstance(collate, str):
        if collate not in NAMES:
            raise UsageError(f"collate = {collate!r} is none of {', '.join(NAMES)}", hint=_HINT)
        if collate == "arrow":
            return as_it_is
        collate = Pad() if collate == "pad" else Pack()
    if isinstance(collate, Pad | Pack):
        collate.check(schema)
        return collate if _first_ragged(schema) else None
    if isinstance(collate, type) or not callable(collate):
        raise UsageError(f"collate = {collate!r:.80} is no function", hint=_HINT)
    return collate


def record_batch(arrays: Arrays) -> pa.RecordBatch:
    """Arrays ``[rows, *shape]`` as a record batch, without a copy where types allow."""
    table = to_table(arrays)
    return table.to_batches()[0] if len(table) else pa.RecordBatch.from_pylist([], schema=table.schema)


def gives_rows(collate: Callable[[pa.RecordBatch], Any]) -> bool:
    """Whether its batches have rows that `per_row` can call a transform with."""
    return collate is as_it_is or isinstance(collate, Pad)


def as_it_is(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch."""
    return batch


def _is_fixed(field: pa.Field) -> bool:
    try:
        columns_of(pa.schema([field]))
    except UsageError:
        return False
    return True


def _first_ragged(schema: pa.Schema) -> pa.Field | None:
    return next((field for field in schema if not _is_fixed(field)), None)


def _value_dtype(kind: pa.DataType) -> np.dtype[Any] | None:
    """Dtype of the values of a ragged column; None where they are no numbers."""
    if is_bytes(kind):
        return np.dtype(np.uint8)
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return None
    item = kind.value_type
    if not (pa.types.is_integer(item) or pa.types.is_floating(item) or pa.types.is_boolean(item)):
        return None
    dtype: np.dtype[Any] = np.dtype(item.to_pandas_dtype())
    return dtype


def _check_columns(schema: pa.Schema, what: str, suffixes: tuple[str, ...], value: float) -> None:
    for field in schema:
        if _is_fixed(field):
            continue
        dtype = _value_dtype(field.type)
        if dtype is None:
            raise UsageError(
                f"column {field.name!r} of type {field.type} cannot be {what}: its rows are neither numbers "
                "of a fixed shape, nor lists of numbers, nor strings",
                hint="Use collate='arrow' or a function, or choose other columns",
            )
        with np.errstate(all="ignore"):
            stored = np.asarray(value).astype(dtype)
        if dtype.kind in "iub" and stored != value:
            raise UsageError(f"value = {value} is no {dtype.name}, as column {field.name!r} has")
        for suffix in suffixes:
            if f"{field.name}_{suffix}" in schema.names:
                raise UsageError(
                    f"column {field.name}_{suffix} has the name of what comes beside column {field.name!r}",
                    hint="Choose columns without it",
                )


def _fixed_columns(batch: pa.RecordBatch) -> Arrays:
    """Arrays ``[batch, *shape]`` of the columns of fixed shape."""
    return {
        field.name: array_of(values, columns_of(pa.schema([field]))[0])
        for field, values in zip(batch.schema, batch.columns, strict=True)
        if _is_fixed(field)
    }


def _ragged_columns(batch: pa.RecordBatch) -> list[tuple[str, Array, Array]]:
    """Name, all values one after the other, and int64 lengths of the rows, of each ragged column."""
    found = []
    for field, values in zip(batch.schema, batch.columns, strict=True):
        if _is_fixed(field):
            continue
        flat, ends = _values_and_ends(field.name, values)
        found.append((field.name, flat, np.diff(ends)))
    return found


def _values_and_ends(name: str, values: pa.Array) -> tuple[Array, Array]:
    _refuse_nulls(name, values)
    kind, count = values.type, len(values)
    _, offsets, data = values.buffers()[:3]
    if not count:  # Arrow may leave out the offsets of none
        return np.empty(0, _value_dtype(kind)), np.zeros(1, np.int64)
    width: Any = np.int32 if has_small_offsets(kind) else np.int64
    ends: Array = np.frombuffer(offsets, width)[values.offset : values.offset + count + 1].astype(np.int64)
    flat: Array = np.empty(0, _value_dtype(kind))
    if not is_bytes(kind):
        items = values.values[ends[0] : ends[-1]]
        _refuse_nulls(name, items)
        flat = items.to_numpy(zero_copy_only=False)
    elif data is not None:
        flat = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]
    return flat, ends


def _refuse_nulls(name: str, values: pa.Array) -> None:
    if values.null_count:
        raise UsageError(
            f"column {name!r} has {values.null_count} nulls in a batch, which an array cannot hold",
            hint="Fill them before the ingest, or use collate='arrow' or a function",
        )


def _heads(values: Array, lengths: Array, kept: Array) -> Array:
    """The first ``kept[i]`` values of each row."""
    positions = np.arange(len(values)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    heads: Array = values[positions < np.repeat(kept, lengths)]
    return heads
