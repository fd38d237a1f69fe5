"""The Zarr group's form: what is refused when it is made, and when it is read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiering.errors import FormatError, UnsupportedVersion, UsageError
from tiering.layout.zarr import ZarrColumn, ZarrLayout
from tiering.layout.zarr_documents import DTYPES, MAX_DOCUMENT_BYTES

COLUMNS = (ZarrColumn("tokens", np.dtype("u2"), (7,)), ZarrColumn("label", np.dtype("?")))
LAYOUT = ZarrLayout(COLUMNS, rows=100, shard_rows=32, block_rows=8, codec="zstd:3")
Json = dict[str, Any]


@settings(max_examples=50, deadline=None)
@given(
    dtypes=st.lists(st.sampled_from(sorted(DTYPES)), min_size=1, max_size=5),
    shape=st.lists(st.integers(1, 9), max_size=4).map(tuple),
    rows=st.integers(0, 2**40),
    block_rows=st.integers(1, 100),
    nblocks=st.integers(1, 100),
    codec=st.sampled_from([None, "zstd", "zstd:22"]),
)
def test_documents_roundtrip_to_an_equal_layout(
    dtypes: list[str], shape: tuple[int, ...], rows: int, block_rows: int, nblocks: int, codec: str | None
) -> None:
    columns = tuple(ZarrColumn(f"c{i}", np.dtype(name), shape) for i, name in enumerate(dtypes))
    layout = ZarrLayout(columns, rows, block_rows * nblocks, block_rows, codec)
    documents = layout.documents()
    assert ZarrLayout.from_documents(documents) == layout
    assert ZarrLayout.from_documents({"zarr.json": documents["zarr.json"]}) == layout


def test_layout_counts_shards_blocks_and_keys() -> None:
    tokens, label = LAYOUT.columns
    assert (LAYOUT.shards, LAYOUT.nblocks) == (4, 4)
    assert [LAYOUT.shard_range(i) for i in range(4)] == [(0, 32), (32, 64), (64, 96), (96, 100)]
    assert [LAYOUT.shard_blocks(i) for i in range(4)] == [4, 4, 4, 1]
    assert LAYOUT.key(tokens, 3) == "tokens/c/3/0"
    assert LAYOUT.key(label, 3) == "label/c/3"
    assert LAYOUT.column("label") is label
    assert (tokens.row_bytes, label.row_bytes, LAYOUT.block_bytes(tokens)) == (14, 1, 112)
    assert sorted(LAYOUT.documents()) == ["label/zarr.json", "tokens/zarr.json", "zarr.json"]


@pytest.mark.parametrize("shard", [-1, 4])
def test_layout_shard_out_of_range_raises_usage_error(shard: int) -> None:
    with pytest.raises(UsageError, match="no shard"):
        LAYOUT.key(COLUMNS[0], shard)


def test_layout_unknown_column_names_those_there_are() -> None:
    with pytest.raises(UsageError, match="tokens, label"):
        LAYOUT.column("text")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", ".hidden", "__zarr", "zarr.json", "a\0", "/a", "x" * 256, "a\\b", ".tmp-1"]
)
def test_column_with_a_reserved_name_raises_usage_error(name: str) -> None:
    with pytest.raises(UsageError):
        ZarrColumn(name, np.dtype("u1"))


@pytest.mark.parametrize("dtype", ["O", "U5", "S5", "M8[s]", "i4,i4", "(2,)i4", "V3", "g"])
def test_column_with_an_unsupported_dtype_raises_usage_error(dtype: str) -> None:
    with pytest.raises(UsageError, match="does not store"):
        ZarrColumn("x", np.dtype(dtype))


@pytest.mark.parametrize("shape", [(0,), (-1,), (2, 0), (1.5,), (2**63,), (1,) * 32])
def test_column_with_an_impossible_shape_raises_usage_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError):
        ZarrColumn("x", np.dtype("u1"), shape)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": -1},
        {"rows": 1.0},
        {"shard_rows": 0},
        {"block_rows": 0},
        {"shard_rows": 33},
        {"shard_rows": 2**40, "block_rows": 1},
        {"shard_rows": 2**40, "block_rows": 2**40},
        {"columns": ()},
        {"columns": (COLUMNS[0], COLUMNS[0])},
        *[
            {"codec": text}
            for text in ("", "gzip", "zstd:", "zstd:0", "zstd:23", "zstd:-1", "ZSTD", "zstd:3 ")
        ],
    ],
)
def test_layout_that_breaks_a_rule_raises_usage_error(change: Json) -> None:
    form: Json = {"columns": COLUMNS, "rows": 100, "shard_rows": 32, "block_rows": 8, "codec": None} | change
    with pytest.raises(UsageError):
        ZarrLayout(**form)


def test_column_keeps_its_dtype_little_endian() -> None:
    column = ZarrColumn("x", np.dtype(">u4"))
    assert column.dtype.str == "<u4"
    assert column == ZarrColumn("x", np.dtype("<u4"))


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"1", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b'{"zarr_format": 2}',
     b'{"zarr_format": 3, "node_type": "array"}', b'{"zarr_format": 3, "node_type": "group"}',
     b'{"zarr_format": ' + b"9" * 5000 + b"}", b'"' + b"x" * MAX_DOCUMENT_BYTES + b'"'],
    ids=range(13),
)  # fmt: skip
def test_from_documents_of_something_else_raises_format_error(data: bytes) -> None:
    with pytest.raises(FormatError) as error:
        ZarrLayout.from_documents({"zarr.json": data})
    assert error.value.key == "zarr.json"


def test_from_documents_without_the_group_raises_format_error() -> None:
    documents = LAYOUT.documents()
    del documents["zarr.json"]
    with pytest.raises(FormatError, match="missing"):
        ZarrLayout.from_documents(documents)


def test_from_documents_of_a_newer_zarr_format_raises_unsupported_version() -> None:
    with pytest.raises(UnsupportedVersion, match="newer"):
        ZarrLayout.from_documents({"zarr.json": b'{"zarr_format": 4, "node_type": "group"}'})


def test_from_documents_uses_arrays_where_nothing_is_consolidated() -> None:
    documents = LAYOUT.documents()
    documents["zarr.json"] = b'{"zarr_format": 3, "node_type": "group", "attributes": {}}'
    assert ZarrLayout.from_documents(documents) == LAYOUT


def test_from_documents_whose_array_differs_from_the_group_raises_format_error() -> None:
    documents = LAYOUT.documents()
    other = ZarrLayout(COLUMNS, 101, 32, 8, "zstd:3").documents()
    documents["tokens/zarr.json"] = other["tokens/zarr.json"]
    with pytest.raises(FormatError, match="differs") as error:
        ZarrLayout.from_documents(documents)
    assert error.value.key == "tokens/zarr.json"


def inner(array: Json) -> Json:
    configuration: Json = array["codecs"][0]["configuration"]
    return configuration


CHANGES: dict[str, Callable[[Json], object]] = {
    "fill_value": lambda a: a.update(fill_value=1),
    "no fill_value": lambda a: a.pop("fill_value"),
    "dtype": lambda a: a.update(data_type="i4"),
    "dtype list": lambda a: a.update(data_type=["uint16"]),
    "shape": lambda a: a.update(shape=[]),
    "shape of text": lambda a: a.update(shape=["100", 7]),
    "shape of bool": lambda a: a.update(shape=[True, 7]),
    "shape of float": lambda a: a.update(shape=[100.0, 7]),
    "negative rows": lambda a: a.update(shape=[-100, 7]),
    "huge row": lambda a: a.update(shape=[100, 2**60]),
    "row split into chunks": lambda a: inner(a).update(chunk_shape=[8, 1]),
    "blocks that do not fit": lambda a: inner(a).update(chunk_shape=[5, 7]),
    "no blocks": lambda a: inner(a).update(chunk_shape=[]),
    "index at the start": lambda a: inner(a).update(index_location="start"),
    "index without crc": lambda a: inner(a).update(index_codecs=inner(a)["index_codecs"][:1]),
    "no crc": lambda a: inner(a).update(codecs=inner(a)["codecs"][:-1]),
    "crc before zstd": lambda a: inner(a)["codecs"].reverse(),
    "level": lambda a: inner(a)["codecs"][1]["configuration"].update(level=99),
    "level of text": lambda a: inner(a)["codecs"][1]["configuration"].update(level="3"),
    "no codecs": lambda a: a.update(codecs=[]),
    "codecs of text": lambda a: a.update(codecs="sharding_indexed"),
    "two codecs": lambda a: a["codecs"].append({"name": "crc32c"}),
    "separator": lambda a: a["chunk_key_encoding"]["configuration"].update(separator="."),
    "transformer": lambda a: a.update(storage_transformers=[{"name": "x"}]),
    "unknown": lambda a: a.update(secret_extension={"must_understand": True}),
    "group": lambda a: a.update(node_type="group"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_from_documents_of_another_layout_raises_format_error(change: Callable[[Json], object]) -> None:
    group = json.loads(LAYOUT.documents()["zarr.json"])
    change(group["consolidated_metadata"]["metadata"]["tokens"])
    with pytest.raises(FormatError):
        ZarrLayout.from_documents({"zarr.json": json.dumps(group).encode()})


@pytest.mark.parametrize("consolidated", [[], "x", 1, {"kind": "other", "metadata": {}}, {"kind": "inline"}])
def test_from_documents_with_other_consolidated_metadata_raises_format_error(consolidated: object) -> None:
    group = json.loads(LAYOUT.documents()["zarr.json"]) | {"consolidated_metadata": consolidated}
    with pytest.raises(FormatError):
        ZarrLayout.from_documents({"zarr.json": json.dumps(group).encode()})


def test_from_documents_ignores_attributes_and_optional_extensions() -> None:
    group = json.loads(LAYOUT.documents()["zarr.json"])
    array = group["consolidated_metadata"]["metadata"]["tokens"]
    array |= {"attributes": {"unit": "id"}, "dimension_names": None, "note": {"must_understand": False}}
    group["attributes"] = {"title": "text"}
    assert ZarrLayout.from_documents({"zarr.json": json.dumps(group).encode()}) == LAYOUT


def test_from_documents_with_a_nested_array_name_raises_format_error() -> None:
    group = json.loads(LAYOUT.documents()["zarr.json"])
    arrays = group["consolidated_metadata"]["metadata"]
    arrays["../tokens"] = arrays.pop("tokens")
    with pytest.raises(FormatError):
        ZarrLayout.from_documents({"zarr.json": json.dumps(group).encode()})


@pytest.mark.parametrize("depth", [50, 300, 900, 950, 990, 5000, 100_000])
@pytest.mark.parametrize("field", ["fill_value", "codecs", "shape", "data_type", "attributes", "extension"])
def test_from_documents_nested_to_any_depth_raises_nothing_but_format_error(depth: int, field: str) -> None:
    group = json.loads(LAYOUT.documents()["zarr.json"])
    group["consolidated_metadata"]["metadata"]["tokens"][field] = "DEEP"
    text = json.dumps(group).replace('"DEEP"', "[" * depth + "]" * depth)
    try:
        layout = ZarrLayout.from_documents({"zarr.json": text.encode()})
    except FormatError:
        return
    assert field == "attributes"
    assert layout == LAYOUT


def test_from_documents_of_an_array_whose_attributes_differ_is_the_same_layout() -> None:
    documents = LAYOUT.documents()
    array = json.loads(documents["tokens/zarr.json"]) | {"attributes": {"unit": "id"}}
    documents["tokens/zarr.json"] = json.dumps(array).encode()
    assert ZarrLayout.from_documents(documents) == LAYOUT
