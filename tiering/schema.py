"""Schemas: Arrow's are the common tongue; columns of fixed shape also have a numpy form.

Invariant: `schema_of` and `columns_of` are inverse of each other for every column the Zarr layout stores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tiering.errors import UsageError
from tiering.layout.zarr import ZarrColumn

_COMPLEX: Final = {"complex64": pa.float32(), "complex128": pa.float64()}
_DTYPE_KEY: Final = b"tiering.dtype"

Arrays = Mapping[str, np.ndarray[Any, Any]]


def schema_of(columns: Sequence[ZarrColumn]) -> pa.Schema:
    """The Arrow schema of fixed columns: nested fixed-size lists for the shape of a row, nothing nullable."""
    return pa.schema([_field_of(column) for column in columns])


def columns_of(schema: pa.Schema) -> tuple[ZarrColumn, ...]:
    """The fixed columns of an Arrow schema.

    Raises:
        UsageError: names the first column whose rows have no fixed shape.
    """
    return tuple(map(_column_of, schema))


def choose(schema: pa.Schema, names: Sequence[str] | None, what: str) -> pa.Schema:
    """Some fields of a schema, in the order of `names`; all with None.

    Raises:
        UsageError: no such field, or none at all; it names `what` has the schema.
    """
    known = ", ".join(schema.names)
    if isinstance(names, str):
        raise UsageError(f"columns = {names!r} is no list of names", hint=f"Example: columns=[{names!r}]")
    for name in names or ():
        if name not in schema.names:
            raise UsageError(f"{what} has no column {name!r}", hint=f"Its columns are {known}")
    wanted = schema.names if names is None else list(dict.fromkeys(names))
    if not wanted:
        raise UsageError("columns is empty", hint=f"Choose among {known}")
    return schema.empty_table().select(wanted).schema


def to_arrays(table: pa.Table) -> dict[str, np.ndarray[Any, Any]]:
    """Fixed columns of a table as arrays ``[rows, *shape]``.

    Raises:
        UsageError: a column has no fixed shape, or holds nulls.
    """
    return {
        column.name: array_of(table[column.name].combine_chunks(), column)
        for column in columns_of(table.schema)
    }


def array_of(values: pa.Array, column: ZarrColumn) -> np.ndarray[Any, Any]:
    """One fixed column as an array ``[rows, *shape]``, without a copy where the type allows."""
    rows = len(values)
    while pa.types.is_fixed_size_list(values.type):
        _refuse_nulls(values, column.name)
        values = values.flatten()
    _refuse_nulls(values, column.name)
    flat: np.ndarray[Any, Any] = values.to_numpy(zero_copy_only=False)
    if column.dtype.kind == "c":
        flat = flat.view(column.dtype)
    return flat.astype(column.dtype, copy=False).reshape(rows, *column.shape)


def rows_of(memory: memoryview, column: ZarrColumn, rows: int) -> np.ndarray[Any, Any]:
    """The first `rows` rows of a column that lie in `memory`, as an array ``[rows, *shape]`` of it."""
    flat = np.frombuffer(memory, np.uint8, rows * column.row_bytes)
    return flat.view(column.dtype).reshape(rows, *column.shape)


def to_table(arrays: Arrays) -> pa.Table:
    """Arrays ``[rows, *shape]`` as a table of non-nullable columns."""
    columns = [ZarrColumn(name, array.dtype, array.shape[1:]) for name, array in arrays.items()]
    schema = schema_of(columns)
    data = [
        _arrow_of(np.ascontiguousarray(arrays[column.name], column.dtype), schema.field(column.name).type)
        for column in columns
    ]
    return pa.Table.from_arrays(data, schema=schema)


def as_told(arrays: Arrays, schema: pa.Schema) -> Arrays:
    """The arrays, which must have the dtypes and row shapes of a schema: a cast could lose values.

    Raises:
        UsageError: they have others.
    """
    for column in columns_of(schema):
        array = arrays[column.name]
        if (array.dtype.newbyteorder("<"), array.shape[1:]) != (column.dtype, column.shape):
            raise UsageError(
                f"column {column.name!r} has rows of {array.dtype} {array.shape[1:]}, and its source said"
                f" {column.dtype} {column.shape}",
                hint="Give a Dask array whose meta is that of its chunks: array.map_blocks(..., dtype=...)",
            )
    return arrays


def _field_of(column: ZarrColumn) -> pa.Field:
    name = column.dtype.name
    kind = pa.list_(_COMPLEX[name], 2) if name in _COMPLEX else pa.from_numpy_dtype(column.dtype)
    for length in reversed(column.shape):
        kind = pa.list_(pa.field("item", kind, nullable=False), length)
    return pa.field(
        column.name, kind, nullable=False, metadata={_DTYPE_KEY: name} if name in _COMPLEX else None
    )


def _column_of(field: pa.Field) -> ZarrColumn:
    kind, shape = field.type, []
    while pa.types.is_fixed_size_list(kind):
        shape.append(kind.list_size)
        kind = kind.value_type
    name = (field.metadata or {}).get(_DTYPE_KEY, b"").decode(errors="replace")
    if name in _COMPLEX and kind == _COMPLEX[name] and shape[-1:] == [2]:
        return ZarrColumn(field.name, np.dtype(name), tuple(shape[:-1]))
    if not (pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise UsageError(
            f"column {field.name!r} of type {field.type} has no fixed shape",
            hint="Use format='arrow' for it, or choose other columns",
        )
    return ZarrColumn(field.name, np.dtype(kind.to_pandas_dtype()), tuple(shape))


def _arrow_of(array: np.ndarray[Any, Any], kind: pa.DataType) -> pa.Array:
    flat = array.reshape(-1)
    if flat.dtype.kind == "c":
        flat = flat.view(flat.real.dtype)
    return _nest(pa.array(flat), kind)


def _nest(flat: pa.Array, kind: pa.DataType) -> pa.Array:
    if not pa.types.is_fixed_size_list(kind):
        return flat
    return pa.FixedSizeListArray.from_arrays(_nest(flat, kind.value_type), type=kind)


def _refuse_nulls(values: pa.Array, name: str) -> None:
    if values.null_count:
        raise UsageError(
            f"column {name!r} has {values.null_count} nulls, which an array cannot hold",
            hint="Fill them first, or use format='arrow'",
        )
