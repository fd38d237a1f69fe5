"""Arrays of one length, by column: numpy (also memory-mapped) or Dask.

Invariant: all columns have the same number of rows, at least one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import dask.array as da
import numpy as np
from dask.delayed import delayed

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
        self._arrays = {name: _check_array(name, array) for name, array in arrays.items()}
        self.rows = _common_rows(self._arrays)
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


class DaskArraySource(Source):
    """Dask arrays; each shard's rows are computed where the shard is written.

    Beside numpy arrays they are computed in this process, so that no array travels in a graph.
    """

    format: ClassVar[str] = "zarr"

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self.in_memory = not all(isinstance(array, da.Array) for array in arrays.values())
        self._arrays = {
            name: array if isinstance(array, da.Array) else da.from_array(_check_array(name, array))
            for name, array in arrays.items()
        }
        for name, array in self._arrays.items():
            if array.ndim == 0 or not all(np.isfinite(length) for length in array.shape):
                raise UsageError(
                    f"column {name!r} is a Dask array of unknown shape {array.shape}",
                    hint="Call array.compute_chunk_sizes() first",
                )
        self.rows = _common_rows(self._arrays)
        columns = [ZarrColumn(name, array.dtype, array.shape[1:]) for name, array in self._arrays.items()]
        self.schema = schema_of(columns)
        self.row_bytes = float(sum(column.row_bytes for column in columns))
        hasher = Hasher()
        hasher.update(json.dumps([[name, array.name] for name, array in self._arrays.items()]).encode())
        self.fingerprint = hasher.hexdigest()

    def part(self, start: int, stop: int) -> Any:
        return delayed(dict)([(name, array[start:stop]) for name, array in self._arrays.items()])


def _check_array(name: str, given: Any) -> np.ndarray[Any, Any]:
    try:
        array: np.ndarray[Any, Any] = np.asarray(given)
    except ValueError as error:
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


def _common_rows(arrays: Mapping[str, Any]) -> int:
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
