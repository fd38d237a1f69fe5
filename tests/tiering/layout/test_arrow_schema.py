"""Arrow schemas: what is stored, what becomes something plainer, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tiering.errors import FormatError, UsageError
from tiering.layout.arrow import MAX_SCHEMA_BYTES, encode_shard, normalise, schema_from_bytes, schema_to_bytes


def test_normalise_then_cast_decodes_dictionaries_and_views_at_any_depth() -> None:
    words = pa.array(["a", None, "b", "a"]).dictionary_encode()
    columns: dict[str, pa.Array] = {
        "flat": words,
        "list": pa.ListArray.from_arrays(pa.array([0, 1, 3, 3, 4]), words),
        "fixed": pa.FixedSizeListArray.from_arrays(words, 1),
        "struct": pa.StructArray.from_arrays([words], ["x"]),
        "map": pa.MapArray.from_arrays(pa.array([0, 1, 1, 1, 2]), pa.array(["k", "l"]), words.slice(1, 2)),
        "view": pa.array(["a", "b", None, "c" * 20], pa.string_view()),
        "bytes": pa.array([b"a", b"b", None, b"c" * 20], pa.binary_view()),
    }
    table = pa.table(columns).replace_schema_metadata({"pandas": "{}", "origin": "x"})
    schema = normalise(table.schema)
    assert schema.metadata == {b"origin": b"x"}
    assert schema.types == [
        pa.string(), pa.list_(pa.string()), pa.list_(pa.string(), 1), pa.struct([("x", pa.string())]),
        pa.map_(pa.string(), pa.string()), pa.large_string(), pa.large_binary(),
    ]  # fmt: skip
    assert normalise(schema).equals(schema, check_metadata=True)
    stored = table.cast(schema)
    data = b"".join(encode_shard(stored, 3).buffers)
    assert pa.ipc.open_file(data).read_all().to_pylist() == table.to_pylist()


def test_normalise_keeps_nullability_and_drops_marks_of_extensions() -> None:
    marks = {"ARROW:extension:name": "nobody.knows", "unit": "id"}
    schema = normalise(pa.schema([pa.field("a", pa.int8(), False, marks), pa.field("b", pa.int8())]))
    assert [field.nullable for field in schema] == [False, True]
    assert schema.field("a").metadata == {b"unit": b"id"}
    assert schema.metadata is None


@pytest.mark.parametrize(
    "kind",
    [
        pa.uuid(),
        pa.list_(pa.uuid()),
        pa.fixed_shape_tensor(pa.int8(), [2, 2]),
        pa.dense_union([pa.field("a", pa.int8())]),
        pa.run_end_encoded(pa.int32(), pa.int8()),
        pa.list_view(pa.int8()),
        pa.struct([("x", pa.large_list_view(pa.int8()))]),
    ],
    ids=str,
)
def test_normalise_of_an_unsupported_type_names_the_column(kind: pa.DataType) -> None:
    with pytest.raises(UsageError, match="'odd'"):
        normalise(pa.schema([pa.field("fine", pa.int8()), pa.field("odd", kind)]))


@pytest.mark.parametrize("names", [[], [""], ["a", "a"], ["a", ""]])
def test_normalise_of_bad_columns_raises_usage_error(names: list[str]) -> None:
    with pytest.raises(UsageError, match="columns must"):
        normalise(pa.schema([(name, pa.int8()) for name in names]))


def test_schema_roundtrips_with_its_metadata() -> None:
    fields = [pa.field("a", pa.list_(pa.string()), False), pa.field("b", pa.timestamp("us", "UTC"))]
    schema = pa.schema(fields, metadata={"origin": "test"})
    assert schema_from_bytes(schema_to_bytes(schema)).equals(schema, check_metadata=True)


def test_schema_from_damaged_bytes_raises_format_error_or_gives_a_schema() -> None:
    rng = np.random.default_rng(8)
    data = schema_to_bytes(pa.schema([("a", pa.int8()), ("b", pa.list_(pa.string()))]))
    for bad in [b"", b"x", data[:40], b"\xff" * 99, bytes(99), rng.bytes(200), bytes(MAX_SCHEMA_BYTES + 1)]:
        with pytest.raises(FormatError):
            schema_from_bytes(bad)
    for position in rng.integers(0, len(data), 500).tolist():
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        try:
            found: Any = schema_from_bytes(damaged)
        except FormatError:
            continue
        assert isinstance(found, pa.Schema)


@pytest.mark.parametrize(
    "kind", [pa.dictionary(pa.int8(), pa.string()), pa.string_view(), pa.uuid()], ids=str
)
def test_schema_from_bytes_of_a_type_that_is_not_stored_raises_format_error(kind: pa.DataType) -> None:
    with pytest.raises(FormatError):
        schema_from_bytes(schema_to_bytes(pa.schema([("a", kind)])))
