"""Zarr layout: a standard Zarr v3 group of sharded arrays, one per column, whose axis 0 is the row.

Invariant: what is written is plain Zarr v3 (core specification; codec `sharding_indexed` 1.0, index at
the end; codecs `bytes`, `zstd`, `crc32c`); every inner chunk, called a block, starts on a page boundary of
its shard; no byte of a block is decoded before its CRC32C was found right.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tiering.digest import CRC_BYTES, Buffer, crc32c
from tiering.errors import Corrupt, FormatError, UsageError
from tiering.keys import validate
from tiering.layout.base import BlockSpan, EncodedShard, pad_bytes
from tiering.layout.compression import compress, decompress, zstd_level
from tiering.layout.zarr_documents import (
    DOCUMENT,
    DTYPES,
    MAX_ARRAYS,
    ArrayForm,
    group_documents,
    parse_group,
)
from tiering.layout.zarr_index import check_block, encode_index, index_bytes, read_index

__all__ = [
    "BlockSpan",
    "EncodedShard",
    "ZarrColumn",
    "ZarrLayout",
    "check_block",
    "decode_block",
    "encode_shard",
    "index_bytes",
    "read_index",
]

MAX_BLOCK_BYTES: Final = 2 << 30
MAX_BLOCKS: Final = 1 << 20  # of one shard: its index stays at 16 MiB
MAX_ROW_DIMENSIONS: Final = 31

_MAX_INT: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class ZarrColumn:
    """One column: what defines its array, but for the numbers of rows.

    Attributes:
        name: one segment of a key, neither hidden nor reserved by Zarr.
        dtype: bool, int8 to int64, uint8 to uint64, float16 to float64, complex64 or complex128; kept in
            little-endian order.
        shape: shape of one row, every length at least 1; () for scalars.

    Raises:
        UsageError: one of them breaks its rule.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        validate(self.name)
        if "/" in self.name or self.name.startswith((".", "__")) or self.name == DOCUMENT:
            raise UsageError(
                f"column name {self.name!r} is nested or reserved", hint="Use a name such as 'tokens'"
            )
        dtype = np.dtype(self.dtype)
        if dtype.name not in DTYPES:
            raise UsageError(
                f"column {self.name!r} has dtype {dtype}, which the Zarr layout does not store",
                hint="Use bool, an integer, float16 to float64 or a complex type, or format='arrow'",
            )
        shape = tuple(_whole(length, f"a length in the shape of {self.name!r}", 1) for length in self.shape)
        if len(shape) > MAX_ROW_DIMENSIONS:
            raise UsageError(
                f"a row of column {self.name!r} has {len(shape)} axes, over {MAX_ROW_DIMENSIONS}"
            )
        object.__setattr__(self, "dtype", dtype.newbyteorder("<"))
        object.__setattr__(self, "shape", shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, uncompressed."""
        return self.dtype.itemsize * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class ZarrLayout:
    """A group of columns that have their rows, shards and blocks in common.

    Attributes:
        columns: in stored order, 1 to 4096, names unique.
        rows: of the whole group.
        shard_rows: rows of every shard but the last; a multiple of `block_rows`.
        block_rows: rows of one block, at most 2 GiB in any column.
        codec: None, or "zstd:LEVEL" with LEVEL 1 to 22; "zstd" is short for "zstd:1".

    Raises:
        UsageError: one of them breaks its rule.
    """

    columns: tuple[ZarrColumn, ...]
    rows: int
    shard_rows: int
    block_rows: int
    codec: str | None = None

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        if not 0 < len(names) <= MAX_ARRAYS or len(set(names)) < len(names):
            raise UsageError(f"columns must be 1 to {MAX_ARRAYS} with unique names, not {names[:8]}")
        object.__setattr__(self, "columns", tuple(self.columns))
        for name, least in (("rows", 0), ("shard_rows", 1), ("block_rows", 1)):
            object.__setattr__(self, name, _whole(getattr(self, name), name, least))
        if self.shard_rows % self.block_rows:
            raise UsageError(
                f"shard_rows {self.shard_rows} is not a multiple of block_rows {self.block_rows}"
            )
        if self.nblocks > MAX_BLOCKS:
            raise UsageError(f"a shard has {self.nblocks} blocks, over {MAX_BLOCKS}", hint="Raise block_rows")
        for column in self.columns:
            if self.block_bytes(column) > MAX_BLOCK_BYTES:
                raise UsageError(
                    f"a block of column {column.name!r} has {self.block_bytes(column)} bytes, over 2 GiB",
                    hint="Lower block_rows",
                )
        if self.codec is not None:
            object.__setattr__(self, "codec", f"zstd:{zstd_level(self.codec)}")

    @property
    def shards(self) -> int:
        """How many shards each column has."""
        return -(-self.rows // self.shard_rows)

    @property
    def nblocks(self) -> int:
        """Entries of every shard's index, also of a last shard that holds fewer blocks."""
        return self.shard_rows // self.block_rows

    def column(self, name: str) -> ZarrColumn:
        """The column of that name, or `UsageError`."""
        for column in self.columns:
            if column.name == name:
                return column
        raise UsageError(
            f"no column {name!r}", hint=f"There are {', '.join(c.name for c in self.columns[:16])}"
        )

    def block_bytes(self, column: ZarrColumn) -> int:
        """Bytes of one decoded block, whole: `block_rows` rows."""
        return self.block_rows * column.row_bytes

    def shard_range(self, shard: int) -> tuple[int, int]:
        """The rows [start, stop) of a shard, or `UsageError` where there is no such shard."""
        if not 0 <= shard < self.shards:
            raise UsageError(f"no shard {shard}: there are {self.shards}")
        start = shard * self.shard_rows
        return start, min(start + self.shard_rows, self.rows)

    def shard_blocks(self, shard: int) -> int:
        """How many blocks a shard holds: so many entries of its index, the first ones, are present."""
        start, stop = self.shard_range(shard)
        return -(-(stop - start) // self.block_rows)

    def key(self, column: ZarrColumn, shard: int) -> str:
        """Key of a shard below the group, such as ``tokens/c/3/0`` (Zarr's default chunk key encoding)."""
        self.shard_range(shard)
        return "/".join([column.name, "c", str(shard), *["0"] * len(column.shape)])

    def documents(self) -> dict[str, bytes]:
        """Metadata documents by key: the group's, with all arrays consolidated inline, and each array's."""
        level = None if self.codec is None else zstd_level(self.codec)
        return group_documents(
            ArrayForm(c.name, c.dtype.name, self.rows, self.shard_rows, self.block_rows, c.shape, level)
            for c in self.columns
        )

    @classmethod
    def from_documents(cls, documents: Mapping[str, Buffer]) -> ZarrLayout:
        """Read back what `documents` wrote; the group's document alone, ``zarr.json``, is enough.

        Raises:
            FormatError: a document is missing, over 16 MiB, not JSON, or not of this layout.
            UnsupportedVersion: a document is of a Zarr format above 3.
        """
        forms = parse_group(documents)
        first = forms[0]
        common = [(form.rows, form.shard_rows, form.block_rows, form.zstd_level) for form in forms]
        if any(numbers != common[0] for numbers in common):
            raise FormatError("the arrays differ in rows, shard rows, block rows or codec", key=DOCUMENT)
        codec = None if first.zstd_level is None else f"zstd:{first.zstd_level}"
        try:
            columns = tuple(ZarrColumn(form.name, np.dtype(form.dtype), form.shape) for form in forms)
            return cls(columns, first.rows, first.shard_rows, first.block_rows, codec)
        except (UsageError, TypeError, ValueError) as error:
            raise FormatError(f"the group is not one of this layout: {error}", key=DOCUMENT) from error


def encode_shard(layout: ZarrLayout, column: ZarrColumn, values: np.ndarray[Any, Any]) -> EncodedShard:
    """Encode the rows of one shard; without a codec the buffers are views of `values`.

    Args:
        layout: gives `shard_rows`, `block_rows` and the codec.
        column: one of its columns.
        values: shape [1 to shard_rows, *column.shape], dtype of the column in any byte order.

    A last block that is not full is filled up with zeros, as Zarr wants; blocks beyond it are absent.

    Raises:
        UsageError: `values` has another shape or dtype.
    """
    if values.dtype.newbyteorder("<") != column.dtype or values.shape[1:] != column.shape:
        raise UsageError(
            f"column {column.name!r} is {column.dtype} with rows of shape {column.shape}, "
            f"not {values.dtype} with {values.shape[1:]}"
        )
    if not 0 < len(values) <= layout.shard_rows:
        raise UsageError(f"a shard has 1 to {layout.shard_rows} rows, not {len(values)}")
    buffers: list[Buffer] = []
    spans: list[BlockSpan] = []
    crcs: list[int] = []
    position = 0
    for start in range(0, len(values), layout.block_rows):
        pad = pad_bytes(position)
        payload = _encode_block(layout, column, values[start : start + layout.block_rows])
        spans.append(BlockSpan(position + pad, len(payload) + CRC_BYTES))
        position = spans[-1].offset + spans[-1].nbytes
        crcs.append(crc32c(payload))
        stored_crc = crcs[-1].to_bytes(CRC_BYTES, "little")
        buffers += [bytes(pad), payload, stored_crc] if pad else [payload, stored_crc]
    buffers.append(encode_index(spans, layout.nblocks))
    return EncodedShard(buffers, position + index_bytes(layout.nblocks), None, crcs)


def decode_block(
    layout: ZarrLayout,
    column: ZarrColumn,
    stored: memoryview,
    out: np.ndarray[Any, Any],
    crc: int | None = None,
) -> None:
    """Check one stored block and decode its first rows into `out`.

    Args:
        layout: gives `block_rows` and the codec.
        column: one of its columns.
        stored: the bytes of the block's span, CRC included.
        out: shape [1 to block_rows, *column.shape], dtype of the column; fewer rows than `block_rows` for
            a last block that is not full. C-contiguous is fastest.
        crc: CRC32C of the block, from where else it is known.

    Raises:
        Corrupt: a CRC is wrong, or the block does not hold `block_rows` rows; `out` is then of no use.
        UsageError: `out` has another shape or dtype.
    """
    if out.dtype != column.dtype or out.shape[1:] != column.shape or not 0 < len(out) <= layout.block_rows:
        raise UsageError(
            f"out must have dtype {column.dtype}, 1 to {layout.block_rows} rows of shape {column.shape}, "
            f"not dtype {out.dtype}, shape {out.shape}"
        )
    payload = check_block(stored, crc)
    if layout.codec is not None:
        fits = out.flags.c_contiguous and len(out) == layout.block_rows
        whole = out if fits else np.empty((layout.block_rows, *column.shape), column.dtype)
        decompress(payload, _as_bytes(whole))
        if not fits:
            out[...] = whole[: len(out)]
    elif len(payload) != layout.block_bytes(column):
        raise Corrupt(f"stored block has {len(payload)} bytes, not {layout.block_bytes(column)}")
    elif out.flags.c_contiguous:
        _as_bytes(out)[:] = np.frombuffer(payload, np.uint8, out.nbytes)
    else:
        out[...] = np.frombuffer(payload, column.dtype, out.size).reshape(out.shape)


def _encode_block(layout: ZarrLayout, column: ZarrColumn, rows: np.ndarray[Any, Any]) -> Buffer:
    block = np.ascontiguousarray(rows, column.dtype)
    if len(block) < layout.block_rows:
        block = np.zeros((layout.block_rows, *column.shape), column.dtype)
        block[: len(rows)] = rows
    data = memoryview(_as_bytes(block))
    return data if layout.codec is None else compress(data, zstd_level(layout.codec))


def _as_bytes(array: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The bytes of a C-contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8)


def _whole(value: Any, what: str, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if least <= number <= _MAX_INT:
        return number
    raise UsageError(f"{what} must be a whole number from {least} on, not {str(value)[:80]}")
