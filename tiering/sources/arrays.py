"""Numpy arrays of one length, by column; also memory-mapped.

Invariant: all columns have the same number of rows, at least one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from tiering.digest import Hasher
from tiering.errors import UsageError
from tiering.layout.zarr import ZarrColumn
from tiering.schema import schema_of
from tiering.sources.base import Source

_PIECE_ROWS_BYTES = 64 << 20


class ArraySource(Source):
    """Numpy arrays in this process's memory or mapped into it.

    Raises:
        UsageError: no column, no row, unequal lengths, or a dtype that cannot be stored.
    """

    format: ClassVar[str] = "zarr"
    in_memory = True

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._arrays = {name: checked_array(name, array) for name, array in arrays.items()}
        self.rows = common_rows(self._arrays)
        columns = [ZarrColumn(name, array.dtype, array.shape[1:]) for name, array in self._arrays.items()]
        self.schema = schema_of(columns)
        self.row_bytes = float(sum(column.row_bytes for column in columns))
        self.fingerprint = self._fingerprint(columns)

    def part(self, start: int, stop: int) -> Any:
        return {name: array[start:stop] for name, array in self._arrays.items()}

    def _fingerprint(self, columns: list[ZarrColumn]) -> str:
        hasher = Hasher()
        for column in columns:
            array = self._arrays[column.name]
            hasher.update(json.dumps([column.name, array.dtype.str, array.shape]).encode())
            step = max(1, _PIECE_ROWS_BYTES // max(1, column.row_bytes))
            for start in range(0, self.rows, step):
                piece = np.ascontiguousarray(array[start : start + step])
                hasher.update(memoryview(piece.reshape(-1).view(np.uint8)))
        return hasher.hexdigest()


def checked_array(name: str, given: Any) -> np.ndarray[Any, Any]:
    """A column as an array of rows, or UsageError."""
    try:
        array: np.ndarray[Any, Any] = np.asarray(given)
    except Exception as error:  # whatever its __array__ raises: a tensor on a GPU, say, or with a gradient
        raise UsageError(f"column {name!r} is no array: {error}", hint="Give rows of one shape") from error
    if np.ma.is_masked(given):
        raise UsageError(f"column {name!r} has masked values", hint="Fill them first: array.filled(0)")
    if array.dtype == object:
        raise UsageError(
            f"column {name!r} has dtype object",
            hint="Give a numeric array, or an Arrow table for ragged rows",
        )
    if array.ndim == 0:
        raise UsageError(f"column {name!r} is a scalar", hint="Axis 0 must be the row")
    return array


def common_rows(arrays: Mapping[str, Any]) -> int:
    """How many rows each column has, or UsageError."""
    if not arrays:
        raise UsageError("the source has no column", hint="Give {'tokens': array}")
    lengths = {name: int(array.shape[0]) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name!r} has {rows}" for name, rows in lengths.items())
        raise UsageError(
            f"columns are of unequal length: {told} rows", hint="Axis 0 must be the same row in all"
        )
    rows = next(iter(lengths.values()))
    if rows == 0:
        raise UsageError("the source is empty: its columns have 0 rows", hint="Give at least one row")
    return rows
