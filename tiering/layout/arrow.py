"""Arrow layout: standard Arrow IPC files, one shard each, whose record batches are the blocks.

Invariant: what is written is plain Arrow IPC (columnar format specification, "IPC File Format"); the body
of every record batch starts on a page boundary of its file; no byte of a message is decoded before its
CRC32C was found right. A message is self-contained: there are no dictionaries and no compressed buffers.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any, Final

import pyarrow as pa

from tiering.digest import Buffer, crc32c
from tiering.errors import Corrupt, FormatError, UsageError
from tiering.layout.base import EncodedShard, pad_bytes

MAX_SCHEMA_BYTES: Final = 16 << 20
CRC_KEY: Final = "crc32c"
"""Key in a batch's custom metadata: CRC32C of the body, 8 lower-case hexadecimal digits."""

_PAD_KEY: Final = "pad"
_LEAST_PAD: Final = 8
_MAGIC_BYTES: Final = 8  # "ARROW1" and its padding
_PREFIX_BYTES: Final = 8  # continuation marker and length of the metadata
_DROPPED_KEYS: Final = (b"pandas",)
_EXTENSION_PREFIX: Final = b"ARROW:extension:"
_COMPRESSION_FIELD: Final = 3  # RecordBatch.compression in Message.fbs
_HEADER_FIELD: Final = 2  # Message.header in Message.fbs


def normalise(schema: pa.Schema) -> pa.Schema:
    """The schema in which a table is stored: ``table.cast(normalise(table.schema))`` makes it so.

    Dictionary-encoded fields become their value type and views become large strings and binaries, also
    inside of lists, structs and maps; pandas' metadata and the marks of extension types are dropped.

    Raises:
        UsageError: a column has a type that plain readers of Arrow files do not share (extension, union,
            run-end encoded, list view), no name, or the name of another; or there is no column.
    """
    names = schema.names
    if not names or "" in names or len(set(names)) < len(names):
        raise UsageError(f"columns must have names, each its own, and there must be one; not {names[:8]}")
    metadata = {key: value for key, value in (schema.metadata or {}).items() if key not in _DROPPED_KEYS}
    return pa.schema([_normal_field(field, field.name) for field in schema], metadata or None)


def encode_shard(table: pa.Table, block_rows: int) -> EncodedShard:
    """Encode one shard: a record batch for every `block_rows` rows, the last one may have fewer.

    Equal rows give equal bytes, however the table is chunked, if what lies under nulls is equal too. Beside
    the file, a block is copied at a time.

    Args:
        table: at least one row, with a schema that `normalise` leaves as it is.
        block_rows: at least 1.

    Raises:
        UsageError: the table has no rows or another schema, a column that is not nullable has nulls, or
            `block_rows` rows of a string or list column exceed 2 GiB.
    """
    _check_table(table, block_rows)
    sink = pa.BufferOutputStream()
    schema_bytes = table.schema.serialize().size
    offsets = [_MAGIC_BYTES + schema_bytes]
    with pa.ipc.new_file(sink, table.schema) as writer:
        for start in range(0, table.num_rows, block_rows):
            batch = _compact(table.slice(start, block_rows), start)
            body = _body(batch)
            custom = {CRC_KEY: f"{crc32c(body):08x}", _PAD_KEY: "x" * _LEAST_PAD}
            body_start = offsets[-1] + _message_bytes(batch, custom, schema_bytes) - len(body)
            custom[_PAD_KEY] += "x" * pad_bytes(body_start)
            writer.write_batch(batch, custom_metadata=custom)
            offsets.append(sink.tell())
    data = _view(sink.getvalue())
    crcs = [crc32c(data[start:stop]) for start, stop in pairwise(offsets)]
    return EncodedShard([data], len(data), offsets, crcs)


def decode_block(message: Buffer, crc: int, schema: pa.Schema) -> pa.RecordBatch:
    """Check one stored block and read it, without a copy: the batch refers to the memory of `message`.

    Args:
        message: the bytes of the block, [block_offsets[i], block_offsets[i + 1]).
        crc: its CRC32C, `block_crcs[i]`.
        schema: that of the shard.

    Raises:
        Corrupt: the CRC is wrong.
        FormatError: the CRC is right, but the bytes are no record batch of that schema, or a compressed one.
    """
    found = crc32c(message)
    if found != crc:
        raise Corrupt(f"CRC32C over {len(message)} stored bytes is {found:08x}, not {crc:08x}")
    try:
        if _is_compressed(message):
            raise FormatError("record batch is compressed, which this layout never is")
        batch = pa.ipc.read_record_batch(pa.py_buffer(message), schema)
        batch.validate()
    except (pa.ArrowException, OSError, ValueError, struct.error) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"message is not a record batch of the schema: {error}") from error
    return batch


def schema_to_bytes(schema: pa.Schema) -> bytes:
    """The schema as an encapsulated Arrow IPC message."""
    data: bytes = schema.serialize().to_pybytes()
    return data


def schema_from_bytes(data: Buffer) -> pa.Schema:
    """Read back what `schema_to_bytes` wrote.

    Raises:
        FormatError: it is no schema, over 16 MiB, or one that `normalise` would change.
    """
    if len(data) > MAX_SCHEMA_BYTES:
        raise FormatError(f"schema has {len(data)} bytes, over {MAX_SCHEMA_BYTES}")
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(data))
        normal = normalise(schema)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise FormatError(f"schema cannot be read: {error}") from error
    if not normal.equals(schema, check_metadata=True):
        raise FormatError("schema has types or metadata that this layout does not store")
    return schema


def _normal_field(field: pa.Field, column: str) -> pa.Field:
    metadata = {k: v for k, v in (field.metadata or {}).items() if not k.startswith(_EXTENSION_PREFIX)}
    return pa.field(field.name, _normal_type(field.type, column), field.nullable, metadata or None)


def _normal_type(kind: pa.DataType, column: str) -> pa.DataType:
    types = pa.types
    if types.is_dictionary(kind):
        return _normal_type(kind.value_type, column)
    if types.is_string_view(kind):
        return pa.large_string()
    if types.is_binary_view(kind):
        return pa.large_binary()
    if types.is_list(kind):
        return pa.list_(_normal_field(kind.value_field, column))
    if types.is_large_list(kind):
        return pa.large_list(_normal_field(kind.value_field, column))
    if types.is_fixed_size_list(kind):
        return pa.list_(_normal_field(kind.value_field, column), kind.list_size)
    if types.is_struct(kind):
        return pa.struct([_normal_field(kind.field(i), column) for i in range(kind.num_fields)])
    if types.is_map(kind):
        return pa.map_(
            _normal_field(kind.key_field, column), _normal_field(kind.item_field, column), kind.keys_sorted
        )
    if isinstance(kind, pa.BaseExtensionType) or types.is_nested(kind) or types.is_run_end_encoded(kind):
        raise UsageError(f"column {column!r} has type {kind}, which is not stored", hint="Cast it first")
    return kind


def _check_table(table: pa.Table, block_rows: int) -> None:
    if block_rows < 1:
        raise UsageError(f"block_rows must be at least 1, not {block_rows}")
    if not normalise(table.schema).equals(table.schema, check_metadata=True):
        raise UsageError("table is not normalised", hint="Use table.cast(normalise(table.schema))")
    if not table.num_rows:
        raise UsageError("a shard has at least one row")
    for field, values in zip(table.schema, table.columns, strict=True):
        if not field.nullable and values.null_count:
            raise UsageError(f"column {field.name!r} is not nullable and has {values.null_count} nulls")


def _compact(block: pa.Table, start: int) -> pa.RecordBatch:
    """One batch of fresh buffers, so that its bytes depend on its rows and not on how the table was cut.

    The writer takes slices as they are: with bytes of neighbouring rows in the padding, and for maps with the
    entries of the whole table. Concatenation with an empty slice copies what the rows need, no more.
    """
    try:
        arrays = [pa.concat_arrays([*column.chunks, column.chunk(0).slice(0, 0)]) for column in block.columns]
    except pa.ArrowInvalid as error:
        raise UsageError(
            f"the block from row {start} on is too large: {error}", hint="Lower block_rows"
        ) from error
    return pa.RecordBatch.from_arrays(arrays, schema=block.schema)


def _body(batch: pa.RecordBatch) -> memoryview:
    """The body of the batch's message, as the writer will write it."""
    message = _view(batch.serialize())
    (metadata_bytes,) = struct.unpack_from("<i", message, 4)
    return message[_PREFIX_BYTES + metadata_bytes :]


def _message_bytes(batch: pa.RecordBatch, custom: dict[str, str], schema_bytes: int) -> int:
    """Length of the batch's message with that custom metadata, body included; nothing is copied."""
    counter = pa.MockOutputStream()
    pa.ipc.new_stream(counter, batch.schema).write_batch(batch, custom_metadata=custom)
    size: int = counter.size()
    return size - schema_bytes


def _view(buffer: pa.Buffer) -> memoryview:
    return memoryview(buffer).cast("B")


def _is_compressed(message: Buffer) -> bool:
    """Whether the record batch of a message has compressed buffers (its expansion would be unbounded).

    Reads two flatbuffer tables by hand (Message.fbs): the bytes passed their CRC, but may be anybody's.
    """
    header = _field(message, _PREFIX_BYTES + _at(message, _PREFIX_BYTES, "<I"), _HEADER_FIELD)
    if header is None:
        raise FormatError("message has no header")
    return _field(message, header + _at(message, header, "<I"), _COMPRESSION_FIELD) is not None


def _field(message: Buffer, table: int, number: int) -> int | None:
    """Position of a field of the flatbuffer table at `table`; None where the table lacks it."""
    vtable = table - _at(message, table, "<i")
    if 4 + 2 * number >= _at(message, vtable, "<H"):
        return None
    offset = _at(message, vtable + 4 + 2 * number, "<H")
    return table + offset if offset else None


def _at(message: Buffer, position: int, form: str) -> Any:
    if position < 0:
        raise FormatError("message points before its start")
    return struct.unpack_from(form, message, position)[0]
