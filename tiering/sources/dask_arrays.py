"""Dask arrays of one length, by column. Imported where one is given: Dask's arrays take long to import.

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
from tiering.sources.arrays import checked_array, common_rows
from tiering.sources.base import Source


class DaskArraySource(Source):
    """Dask arrays; each shard's rows are computed where the shard is written.

    Beside numpy arrays they are computed in this process, so that no array travels in a graph.
    """

    format: ClassVar[str] = "zarr"
    is_certain: ClassVar[bool] = False  # names of Dask arrays may be given by hand, or be those of a path

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self.in_memory = not all(isinstance(array, da.Array) for array in arrays.values())
        self._arrays = {
            name: array if isinstance(array, da.Array) else da.from_array(checked_array(name, array))
            for name, array in arrays.items()
        }
        for name, array in self._arrays.items():
            if array.dtype == object:
                raise UsageError(f"column {name!r} has dtype object", hint="Give a Dask array of numbers")
            if array.ndim == 0 or not all(np.isfinite(length) for length in array.shape):
                raise UsageError(
                    f"column {name!r} is a Dask array of unknown shape {array.shape}",
                    hint="Call array.compute_chunk_sizes() first",
                )
        self.rows = common_rows(self._arrays)
        columns = [ZarrColumn(name, array.dtype, array.shape[1:]) for name, array in self._arrays.items()]
        self.schema = schema_of(columns)
        self.row_bytes = float(sum(column.row_bytes for column in columns))
        hasher = Hasher()
        hasher.update(json.dumps([[name, array.name] for name, array in self._arrays.items()]).encode())
        self.fingerprint = hasher.hexdigest()

    def part(self, start: int, stop: int) -> Any:
        return delayed(dict)([(name, array[start:stop]) for name, array in self._arrays.items()])
