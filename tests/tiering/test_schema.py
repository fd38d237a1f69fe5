from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiering.errors import UsageError
from tiering.layout.zarr import ZarrColumn
from tiering.layout.zarr_documents import DTYPES
from tiering.schema import array_of, columns_of, schema_of, to_arrays, to_table

shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)
dtypes = st.sampled_from(sorted(DTYPES)).map(np.dtype)


def sample(dtype: np.dtype[Any], shape: tuple[int, ...], rows: int) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(rows).integers(0, 100, (rows, *shape))
    return (values * (1 + 2j) if dtype.kind == "c" else values).astype(dtype)


@given(st.lists(st.tuples(dtypes, shapes), min_size=1, max_size=3))
def test_schema_and_columns_are_inverse(kinds: list[tuple[np.dtype[Any], tuple[int, ...]]]) -> None:
    columns = tuple(ZarrColumn(f"c{number}", dtype, shape) for number, (dtype, shape) in enumerate(kinds))
    assert columns_of(schema_of(columns)) == columns


@given(dtypes, shapes, st.integers(1, 5), st.booleans())
def test_table_and_arrays_are_inverse(
    dtype: np.dtype[Any], shape: tuple[int, ...], rows: int, big: bool
) -> None:
    array = sample(dtype, shape, rows)
    given_ = array.astype(dtype.newbyteorder(">")) if big else np.asfortranarray(array)
    table = to_table({"a": given_})
    found = to_arrays(table)["a"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, array)
    np.testing.assert_array_equal(to_arrays(table.slice(1))["a"], array[1:])


def test_array_of_a_slice_starts_at_the_slice() -> None:
    column = ZarrColumn("a", np.dtype("u2"), (3,))
    table = to_table({"a": np.arange(15, dtype=np.uint16).reshape(5, 3)})
    values = table["a"].combine_chunks().slice(2, 2)
    assert array_of(values, column).tolist() == [[6, 7, 8], [9, 10, 11]]


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.list_(pa.int64()),
        pa.timestamp("s"),
        pa.decimal128(9, 2),
        pa.null(),
        pa.struct([("x", pa.int8())]),
    ],
)
def test_columns_without_a_fixed_shape_are_named(kind: pa.DataType) -> None:
    with pytest.raises(UsageError, match=r"column 'bad' of type .* has no fixed shape.*format='arrow'"):
        columns_of(pa.schema([("good", pa.int8()), ("bad", kind)]))


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, None], pa.int64()),
        pa.array([[1, 2], None], pa.list_(pa.int64(), 2)),
        pa.array([[1, None]], pa.list_(pa.int64(), 2)),
    ],
)
def test_arrays_of_nulls_are_refused_by_name(values: pa.Array) -> None:
    with pytest.raises(UsageError, match="column 'bad' has 1 nulls"):
        to_arrays(pa.table({"bad": values}))


@pytest.mark.parametrize(
    ("kind", "name"),
    [(pa.int64(), "complex64"), (pa.list_(pa.int8(), 2), "complex64"), (pa.list_(pa.float32(), 2), "object")],
)
def test_columns_whose_metadata_lies_are_taken_by_their_type(kind: pa.DataType, name: str) -> None:
    field = pa.field("a", kind, metadata={"tiering.dtype": name})
    (column,) = columns_of(pa.schema([field]))
    assert column.dtype.kind != "c"
