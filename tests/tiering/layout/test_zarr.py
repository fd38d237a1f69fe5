"""The Zarr layout against zarr-python: same bytes, same documents, and no silent damage."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.errors import ZarrUserWarning

from tiering.digest import crc32c
from tiering.errors import Corrupt, UsageError
from tiering.layout.base import PAGE_BYTES
from tiering.layout.zarr import (
    ZarrColumn,
    ZarrLayout,
    check_block,
    decode_block,
    encode_shard,
    index_bytes,
    read_index,
)
from tiering.layout.zarr_documents import DTYPES

CODECS = [None, "zstd", "zstd:3", "zstd:19"]
Array = np.ndarray[Any, Any]


def make_values(rng: np.random.Generator, column: ZarrColumn, rows: int) -> Array:
    """Values whose every byte pattern may occur (bool: 0 and 1 only)."""
    shape = (rows, *column.shape)
    if column.dtype == np.bool_:
        return rng.random(shape) < 0.5
    raw = rng.integers(0, 256, rows * column.row_bytes, np.uint8)
    return raw.view(column.dtype).reshape(shape)


def joined(layout: ZarrLayout, column: ZarrColumn, values: Array) -> bytes:
    shard = encode_shard(layout, column, values)
    data = b"".join(shard.buffers)
    assert len(data) == shard.nbytes
    assert shard.block_offsets is None
    assert len(shard.block_crcs) == -(-len(values) // layout.block_rows)
    return data


def write_group(root: Path, layout: ZarrLayout, columns: dict[str, Array]) -> None:
    objects = layout.documents()
    for column in layout.columns:
        for shard in range(layout.shards):
            start, stop = layout.shard_range(shard)
            objects[layout.key(column, shard)] = joined(layout, column, columns[column.name][start:stop])
    for key, data in objects.items():
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def decode_shard(layout: ZarrLayout, column: ZarrColumn, data: bytes, rows: int) -> Array:
    """The reader under test: index, then every block."""
    view = memoryview(data)
    spans = read_index(view[-index_bytes(layout.nblocks) :], layout.nblocks, len(data))
    out = np.empty((rows, *column.shape), column.dtype)
    for span, start in zip(spans, range(0, rows, layout.block_rows), strict=False):
        assert span is not None
        stored = view[span.offset : span.offset + span.nbytes]
        decode_block(layout, column, stored, out[start : start + layout.block_rows])
    return out


def same_bytes(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("codec", CODECS)
def test_group_opened_by_zarr_python_is_bit_exact_in_every_dtype(tmp_path: Path, codec: str | None) -> None:
    rng = np.random.default_rng(1)
    shapes = [(), (3,), (2, 5), (4, 1, 3)]
    columns = tuple(
        ZarrColumn(f"x_{name}_{len(shape)}", np.dtype(name), shape)
        for name in sorted(DTYPES)
        for shape in shapes
    )
    layout = ZarrLayout(columns, rows=77, shard_rows=24, block_rows=8, codec=codec)
    values = {column.name: make_values(rng, column, 77) for column in columns}
    write_group(tmp_path, layout, values)
    group = zarr.open_group(tmp_path, mode="r", use_consolidated=True)
    assert sorted(group.array_keys()) == sorted(values)
    for name, expected in values.items():
        array = group[name]
        assert isinstance(array, zarr.Array)
        assert same_bytes(np.asarray(array[:]), expected)
        assert same_bytes(np.asarray(array[20:51]), expected[20:51])


@pytest.mark.parametrize("codec", [None, "zstd:3"])
def test_documents_are_what_zarr_python_writes(tmp_path: Path, codec: str | None) -> None:
    columns = tuple(ZarrColumn(f"x_{name}", np.dtype(name), (2,)) for name in sorted(DTYPES))
    layout = ZarrLayout(columns, rows=1000, shard_rows=64, block_rows=16, codec=codec)
    group = zarr.create_group(tmp_path)
    crc = Crc32cCodec()
    for column in columns:
        group.create_array(
            column.name,
            shape=(1000, 2),
            chunks=(16, 2),
            shards=(64, 2),
            dtype=column.dtype,
            fill_value=0,
            serializer=BytesCodec(endian="little" if column.dtype.itemsize > 1 else None),
            compressors=[ZstdCodec(level=3), crc] if codec else [crc],
            dimension_names=["row", f"{column.name}_1"],
        )
    with warnings.catch_warnings():
        # zarr-python says of the consolidated metadata it writes that the specification has none yet.
        warnings.simplefilter("ignore", ZarrUserWarning)
        zarr.consolidate_metadata(tmp_path)
    theirs = {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("zarr.json")}
    assert ZarrLayout.from_documents(theirs) == layout
    ours = tmp_path / "ours"
    write_group(ours, ZarrLayout(columns, 0, 64, 16, codec), {})
    for column in columns:
        array = zarr.open_array(ours / column.name, mode="r").metadata
        reference = zarr.open_array(tmp_path / column.name, mode="r").metadata
        assert array.to_dict() | {"shape": ()} == reference.to_dict() | {"shape": ()}


def test_group_with_an_internal_folder_beside_its_arrays_lists_without_a_warning(tmp_path: Path) -> None:
    layout = ZarrLayout((ZarrColumn("a", np.dtype("u1")), ZarrColumn("b", np.dtype("f4"), (2,))), 5, 4, 2)
    values = {"a": np.arange(5, dtype="u1"), "b": np.ones((5, 2), "f4")}
    write_group(tmp_path, layout, values)
    inside = tmp_path / ".tiering" / "manifests" / "0.parquet"
    inside.parent.mkdir(parents=True)
    inside.write_bytes(b"x")
    group = zarr.open_group(tmp_path, mode="r")
    assert sorted(name for name, _ in group.members(max_depth=None)) == ["a", "b"]
    assert sorted(name for name, _ in group.arrays()) == ["a", "b"]
    assert list(group.group_keys()) == []
    assert "a" in group.tree().__repr__()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 63, 64])
def test_blocks_start_on_pages_and_absent_ones_are_none(codec: str | None, rows: int) -> None:
    column = ZarrColumn("x", np.dtype("u2"), (257,))
    layout = ZarrLayout((column,), rows=rows, shard_rows=64, block_rows=8, codec=codec)
    values = make_values(np.random.default_rng(rows), column, rows)
    data = joined(layout, column, values)
    spans = read_index(data[-index_bytes(8) :], 8, len(data))
    present = [span for span in spans if span is not None]
    assert len(present) == layout.shard_blocks(0) == -(-rows // 8)
    assert spans[len(present) :] == [None] * (8 - len(present))
    assert all(span.offset % PAGE_BYTES == 0 for span in present)
    assert same_bytes(decode_shard(layout, column, data, rows), values)


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(sorted(DTYPES)),
    shape=st.lists(st.integers(1, 5), max_size=3).map(tuple),
    block_rows=st.integers(1, 13),
    nblocks=st.integers(1, 7),
    codec=st.sampled_from(CODECS),
    data=st.data(),
)
def test_shard_roundtrip_is_bit_exact_for_any_layout(
    dtype: str, shape: tuple[int, ...], block_rows: int, nblocks: int, codec: str | None, data: st.DataObject
) -> None:
    column = ZarrColumn("x", np.dtype(dtype), shape)
    rows = data.draw(st.integers(1, block_rows * nblocks))
    layout = ZarrLayout((column,), rows, block_rows * nblocks, block_rows, codec)
    values = make_values(np.random.default_rng(rows), column, rows)
    assert same_bytes(decode_shard(layout, column, joined(layout, column, values), rows), values)


def test_encode_without_codec_takes_views_and_orders_bytes() -> None:
    column = ZarrColumn("x", np.dtype("u4"), (1024,))
    layout = ZarrLayout((column,), 16, 16, 4)
    values = make_values(np.random.default_rng(2), column, 16)
    shard = encode_shard(layout, column, values)
    views = [buffer for buffer in shard.buffers if isinstance(buffer, memoryview)]
    assert len(views) == 4
    assert all(np.shares_memory(np.frombuffer(view, np.uint8), values) for view in views)
    expected = b"".join(shard.buffers)
    big = values.astype(">u4")
    strided = np.repeat(values, 2, axis=0)[::2]
    assert joined(layout, column, big) == joined(layout, column, strided) == expected


@pytest.mark.parametrize("codec", CODECS)
def test_decode_into_an_array_that_is_not_contiguous(codec: str | None) -> None:
    column = ZarrColumn("x", np.dtype("i2"), (3,))
    layout = ZarrLayout((column,), 8, 8, 8, codec)
    values = make_values(np.random.default_rng(3), column, 8)
    data = joined(layout, column, values)
    span = read_index(data[-index_bytes(1) :], 1)[0]
    assert span is not None
    wide = np.zeros((8, 6), "<i2")
    decode_block(layout, column, memoryview(data)[span.offset : span.offset + span.nbytes], wide[:, ::2])
    assert same_bytes(np.ascontiguousarray(wide[:, ::2]), values)
    assert not wide[:, 1::2].any()


@pytest.mark.parametrize("codec", [None, "zstd:3"])
def test_decode_after_any_bit_flip_raises_or_changes_nothing(codec: str | None) -> None:
    rng = np.random.default_rng(4)
    column = ZarrColumn("x", np.dtype("u2"), (33,))
    layout = ZarrLayout((column,), 90, 64, 16, codec)
    values = rng.integers(0, 50, (50, 33)).astype("u2")
    data = joined(layout, column, values)
    spans = read_index(data[-index_bytes(4) :], 4, len(data))
    covered = np.zeros(len(data), bool)
    covered[-index_bytes(4) :] = True
    for span in spans:
        assert span is not None
        covered[span.offset : span.offset + span.nbytes] = True
    used = np.flatnonzero(covered)
    picks = np.concatenate([rng.choice(used, 3000), np.flatnonzero(~covered)[:500]])
    for position in picks.tolist():
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        if covered[position]:
            with pytest.raises(Corrupt):
                decode_shard(layout, column, bytes(damaged), 50)
        else:
            assert same_bytes(decode_shard(layout, column, bytes(damaged), 50), values)


def with_crc(payload: bytes) -> bytes:
    return payload + crc32c(payload).to_bytes(4, "little")


@pytest.mark.parametrize("length", [0, 1, 4, 8, 19, 21, 36])
def test_read_index_of_another_length_raises_corrupt(length: int) -> None:
    with pytest.raises(Corrupt, match="index has"):
        read_index(bytes(length), 1)


@pytest.mark.parametrize(
    "pair",
    [(0, 3), (0, 101), (1, 100), (2**64 - 1, 5), (5, 2**64 - 1), (2**64 - 2, 4), (2**63, 2**63)],
)
def test_read_index_that_points_outside_raises_corrupt(pair: tuple[int, int]) -> None:
    tail = with_crc(np.array([pair], "<u8").tobytes())
    with pytest.raises(Corrupt, match="outside"):
        read_index(tail, 1, 100 + len(tail))


@pytest.mark.parametrize("length", [0, 1, 3])
def test_check_block_shorter_than_its_crc_raises_corrupt(length: int) -> None:
    with pytest.raises(Corrupt):
        check_block(memoryview(bytes(length)))


@pytest.mark.parametrize("codec", [None, "zstd:1"])
@pytest.mark.parametrize("payload", [b"", b"x" * 63, b"x" * 65, b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd\xe0"])
def test_decode_block_of_another_length_raises_corrupt(codec: str | None, payload: bytes) -> None:
    column = ZarrColumn("x", np.dtype("u1"), (8,))
    layout = ZarrLayout((column,), 8, 8, 8, codec)
    with pytest.raises(Corrupt):
        decode_block(layout, column, memoryview(with_crc(payload)), np.empty((8, 8), "u1"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((4, 2), "u2"), "u1|uint8"),
        (np.zeros((4, 3), "u1"), "shape"),
        (np.zeros((0, 2), "u1"), "1 to 8 rows"),
        (np.zeros((9, 2), "u1"), "1 to 8 rows"),
        (np.zeros((), "u1"), "shape"),
    ],
)
def test_encode_shard_of_other_values_raises_usage_error(values: Array, message: str) -> None:
    column = ZarrColumn("x", np.dtype("u1"), (2,))
    with pytest.raises(UsageError, match=message):
        encode_shard(ZarrLayout((column,), 8, 8, 4), column, values)


@pytest.mark.parametrize("out", [np.zeros((4, 2), "u2"), np.zeros((5, 2), "u1"), np.zeros((0, 2), "u1")])
def test_decode_block_into_another_array_raises_usage_error(out: Array) -> None:
    column = ZarrColumn("x", np.dtype("u1"), (2,))
    with pytest.raises(UsageError, match="out must"):
        decode_block(ZarrLayout((column,), 8, 8, 4), column, memoryview(with_crc(bytes(8))), out)
