"""The Arrow layout against pyarrow's own readers: same rows, aligned bodies, and no silent damage."""

from __future__ import annotations

import datetime
import decimal
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiering.digest import crc32c
from tiering.errors import Corrupt, FormatError, UsageError
from tiering.layout.arrow import (
    CRC_KEY,
    decode_block,
    encode_shard,
    schema_to_bytes,
)
from tiering.layout.base import PAGE_BYTES

ROWS = 37


def make_table(rows: int = ROWS) -> pa.Table:
    """Ragged, nested, nullable and plain columns; empty strings and lists, and slices with an offset."""
    rng = np.random.default_rng(rows)
    words = ["", "a", "über", "x" * 300, "\0", "日本"]
    word = [words[i % len(words)] for i in range(rows)]
    tokens = rng.integers(0, 2**16, rows * 16).astype("u2")
    when = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)
    lists = [list(range(i % 4)) for i in range(rows)]
    columns = {
        "tokens": (pa.FixedSizeListArray.from_arrays(pa.array(tokens), 16), False),
        "id": (pa.array(range(rows), pa.int64()), False),
        "text": (pa.array(word), False),
        "maybe": (pa.array([None if i % 3 else w for i, w in enumerate(word)], pa.large_string()), True),
        "blob": (pa.array([w.encode() for w in word]), True),
        "list": (
            pa.array([None if i % 5 == 4 else v for i, v in enumerate(lists)], pa.list_(pa.int32())),
            True,
        ),
        "nested": (
            pa.array([[word[: i % 3]] for i in range(rows)], pa.large_list(pa.list_(pa.string()))),
            True,
        ),
        "struct": (pa.array([{"a": i, "b": None} for i in range(rows)]), True),
        "map": (pa.array([[("k", i)] for i in range(rows)], pa.map_(pa.string(), pa.int16())), True),
        "flag": (pa.array([None if i % 7 == 6 else i % 2 == 0 for i in range(rows)], pa.bool_()), True),
        "half": (pa.array(rng.random(rows).astype("f2")), True),
        "when": (pa.array([when] * rows, pa.timestamp("us", "UTC")), True),
        "price": (pa.array([decimal.Decimal("1.25")] * rows, pa.decimal128(9, 2)), True),
        "nothing": (pa.nulls(rows), True),
    }
    schema = pa.schema(
        [pa.field(name, array.type, nullable) for name, (array, nullable) in columns.items()],
        metadata={"origin": "test"},
    )
    return pa.table([array for array, _ in columns.values()], schema=schema)


def joined(table: pa.Table, block_rows: int) -> tuple[bytes, list[int], list[int]]:
    shard = encode_shard(table, block_rows)
    data = b"".join(shard.buffers)
    assert len(data) == shard.nbytes
    assert shard.block_offsets is not None
    assert shard.block_crcs is not None
    return data, shard.block_offsets, shard.block_crcs


def buffers_of(array: pa.Array) -> list[pa.Buffer]:
    return [buffer for buffer in array.buffers() if buffer is not None and buffer.size]


@pytest.mark.parametrize("block_rows", [1, 5, 8, 36, 37, 1000])
def test_shard_read_by_pyarrow_is_exact(tmp_path: Path, block_rows: int) -> None:
    table = make_table()
    (tmp_path / "0.arrow").write_bytes(joined(table, block_rows)[0])
    (tmp_path / "1.arrow").write_bytes(joined(table.slice(3, 11), block_rows)[0])
    with pa.memory_map(str(tmp_path / "0.arrow")) as source:
        reader = pa.ipc.open_file(source)
        assert reader.schema.equals(table.schema, check_metadata=True)
        assert [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)] == [
            min(block_rows, ROWS - start) for start in range(0, ROWS, block_rows)
        ]
        assert reader.read_all().equals(table)
    dataset = pyarrow.dataset.dataset(tmp_path, format="ipc")
    assert dataset.to_table().equals(pa.concat_tables([table, table.slice(3, 11)]))


@pytest.mark.parametrize("block_rows", [1, 5, 37])
def test_decode_block_gives_every_block_without_a_copy(block_rows: int) -> None:
    table = make_table()
    data, offsets, crcs = joined(table, block_rows)
    memory = pa.py_buffer(data)
    stop = memory.address + memory.size
    for i, crc in enumerate(crcs):
        message = memoryview(data)[offsets[i] : offsets[i + 1]]
        batch = decode_block(message, crc, table.schema)
        batch.validate(full=True)
        assert pa.table(batch).equals(table.slice(i * block_rows, block_rows).combine_chunks())
        assert all(memory.address <= b.address < stop for column in batch for b in buffers_of(column))


def test_bodies_start_on_pages_of_a_memory_map(tmp_path: Path) -> None:
    tokens = np.arange(64 * 1024, dtype="u4")
    schema = pa.schema([pa.field("tokens", pa.list_(pa.field("item", pa.uint32(), False), 1024), False)])
    values = pa.FixedSizeListArray.from_arrays(pa.array(tokens), type=schema.field(0).type)
    data, offsets, crcs = joined(pa.table([values], schema=schema), 9)
    (tmp_path / "0.arrow").write_bytes(data)
    with pa.memory_map(str(tmp_path / "0.arrow")) as source:
        base = source.read_buffer(len(data)).address
        source.seek(0)
        reader = pa.ipc.open_file(source)
        for i in range(reader.num_record_batches):
            (buffer,) = buffers_of(reader.get_batch(i).column(0))
            assert (buffer.address - base) % PAGE_BYTES == 0
            assert offsets[i] < buffer.address - base < offsets[i + 1] == buffer.address - base + buffer.size
            assert buffer.size == min(9, 64 - 9 * i) * 4096
    assert len(offsets) == len(crcs) + 1 == 9


def body_start(data: bytes, offset: int) -> int:
    return offset + 8 + int.from_bytes(data[offset + 4 : offset + 8], "little")


TYPES: list[pa.DataType] = [
    pa.int8(), pa.float64(), pa.bool_(), pa.string(), pa.large_binary(), pa.binary(3), pa.date32(), pa.null(),
    pa.list_(pa.string()), pa.list_(pa.int16(), 3), pa.struct([("a", pa.string()), ("b", pa.int8())]),
]  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(
    types=st.lists(st.sampled_from(TYPES), min_size=1, max_size=12),
    rows=st.integers(1, 40),
    block_rows=st.integers(1, 12),
    names=st.integers(1, 60),
)
def test_bodies_start_on_pages_and_state_their_crc_for_any_schema(
    types: list[pa.DataType], rows: int, block_rows: int, names: int
) -> None:
    table = pa.table({f"{'n' * names}{i}": pa.nulls(rows, kind) for i, kind in enumerate(types)})
    data, offsets, crcs = joined(table, block_rows)
    reader = pa.ipc.open_file(data)
    assert reader.num_record_batches == len(crcs) == len(offsets) - 1
    for i in range(len(crcs)):
        start = body_start(data, offsets[i])
        assert start % PAGE_BYTES == 0
        batch, metadata = reader.get_batch_with_custom_metadata(i)
        assert metadata[CRC_KEY] == b"%08x" % crc32c(data[start : offsets[i + 1]])
        assert pa.table(batch).equals(table.slice(i * block_rows, block_rows))
        assert decode_block(data[offsets[i] : offsets[i + 1]], crcs[i], table.schema).equals(batch)


def test_encode_shard_gives_equal_bytes_however_the_table_is_cut() -> None:
    table = make_table()
    expected = joined(table, 8)
    rng = np.random.default_rng(9)
    for _ in range(20):
        cuts = [0, *sorted(rng.integers(0, ROWS, 5).tolist()), ROWS]
        parts = pa.concat_tables([table.slice(i, j - i) for i, j in pairwise(cuts)])
        assert joined(parts, 8) == expected
        assert joined(pa.concat_tables([table.slice(9), table]).slice(ROWS - 9), 8) == expected


def test_encode_shard_of_a_map_stores_only_the_entries_of_each_block() -> None:
    entries = [[(f"key {i}", "v" * 1000)] for i in range(64)]
    table = pa.table({"map": pa.array(entries, pa.map_(pa.string(), pa.string()))})
    assert len(joined(table, 1)[0]) < 64 * 2 * PAGE_BYTES + PAGE_BYTES


def test_decode_block_from_an_odd_address_is_exact() -> None:
    table = make_table()
    data, offsets, crcs = joined(table, ROWS)
    shifted = memoryview(b"\0" + data)[1:]
    batch = decode_block(shifted[offsets[0] : offsets[1]], crcs[0], table.schema)
    assert pa.table(batch).equals(table)


def test_decode_block_after_any_bit_flip_raises_corrupt() -> None:
    table = make_table(12)
    data, offsets, crcs = joined(table, 6)
    rng = np.random.default_rng(6)
    for position in rng.integers(offsets[0], offsets[-1], 5000).tolist():
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        block = int(np.searchsorted(offsets, position, "right")) - 1
        with pytest.raises(Corrupt):
            decode_block(memoryview(damaged)[offsets[block] : offsets[block + 1]], crcs[block], table.schema)


def test_decode_block_of_every_truncation_raises_corrupt() -> None:
    table = pa.table({"a": [1, 2, 3]})
    data, offsets, crcs = joined(table, 3)
    for stop in range(offsets[0], offsets[1]):
        with pytest.raises(Corrupt):
            decode_block(data[offsets[0] : stop], crcs[0], table.schema)


def test_decode_block_of_garbage_with_a_right_crc_raises_format_error() -> None:
    table = pa.table({"a": [1, 2, 3]})
    data, offsets, _ = joined(table, 3)
    message = data[offsets[0] : offsets[1]]
    rng = np.random.default_rng(7)
    garbage = [b"", b"\0", bytes(8), b"\xff" * 64, rng.bytes(300), schema_to_bytes(table.schema)]
    garbage += [message[:length] for length in range(0, len(message) - 24, 7)]
    for bad in garbage:
        with pytest.raises(FormatError):
            decode_block(bad, crc32c(bad), table.schema)


def test_decode_block_with_another_schema_raises_format_error() -> None:
    data, offsets, crcs = joined(pa.table({"a": [1, 2, 3]}), 3)
    with pytest.raises(FormatError, match="record batch"):
        decode_block(
            data[offsets[0] : offsets[1]], crcs[0], pa.schema([("a", pa.int64()), ("b", pa.int64())])
        )


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_decode_block_of_a_compressed_batch_raises_format_error(compression: str) -> None:
    batch = pa.record_batch({"a": np.zeros(1 << 16)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(
        sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=compression)
    ) as writer:
        start = batch.schema.serialize().size
        writer.write_batch(batch)
        stop = sink.tell()
    message = sink.getvalue().to_pybytes()[start:stop]
    assert len(message) < batch.nbytes // 10
    with pytest.raises(FormatError, match="compressed"):
        decode_block(message, crc32c(message), batch.schema)


@pytest.mark.parametrize(
    ("table", "block_rows", "message"),
    [
        (pa.table({"a": [1]}), 0, "block_rows"),
        (pa.table({"a": pa.array([], pa.int8())}), 1, "at least one row"),
        (pa.table({}), 1, "columns must"),
        (pa.table({"a": pa.array(["x"]).dictionary_encode()}), 1, "not normalised"),
        (
            pa.table([pa.array([1, None])], schema=pa.schema([pa.field("a", pa.int64(), False)])),
            1,
            "'a' is not nullable",
        ),
    ],
)
def test_encode_shard_of_a_bad_table_raises_usage_error(
    table: pa.Table, block_rows: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        encode_shard(table, block_rows)
