"""Arrow tables in memory, and Arrow datasets or Parquet files on disk.

Invariant: rows keep their order: that of the table, or of the files' paths and row groups.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads

from tiering.digest import Hasher, digest
from tiering.errors import FormatError, NotFound, UsageError
from tiering.layout.arrow import normalise, schema_to_bytes
from tiering.sources.base import Source, Values


class TableSource(Source):
    """A table in this process's memory."""

    format: ClassVar[str] = "arrow"
    in_memory: ClassVar[bool] = True

    def __init__(self, table: pa.Table) -> None:
        self.schema = normalise(table.schema)
        self._table = table.cast(self.schema)
        self.rows = _check_rows(table.num_rows)
        self.row_bytes = self._table.nbytes / self.rows
        hasher = Hasher()
        hasher.update(schema_to_bytes(self.schema))
        for batch in self._table.combine_chunks().to_batches():
            hasher.update(memoryview(batch.serialize()))
        self.fingerprint = hasher.hexdigest()

    def part(self, start: int, stop: int) -> Any:
        return self._table.slice(start, stop - start)


@dataclass(frozen=True, slots=True)
class DatasetPart:
    """Some rows of consecutive pieces of a dataset."""

    pieces: tuple[pads.Fragment, ...]
    schema: pa.Schema
    skip: int
    rows: int

    def __call__(self) -> Values:
        tables = [piece.to_table(schema=self.schema) for piece in self.pieces]
        return pa.concat_tables(tables).slice(self.skip, self.rows)


class DatasetSource(Source):
    """A pyarrow dataset; Parquet files are read by row groups.

    Raises:
        UsageError: no rows.
    """

    format: ClassVar[str] = "arrow"

    def __init__(self, dataset: pads.Dataset) -> None:
        self.schema = normalise(dataset.schema)
        self._pieces: list[pads.Fragment] = []
        marks: list[list[Any]] = []
        counts: list[int] = []
        nbytes = 0
        for fragment in dataset.get_fragments():
            for piece in _split(fragment):
                rows = _piece_rows(piece)
                if rows:
                    self._pieces.append(piece)
                    counts.append(rows)
                    nbytes += _piece_bytes(piece)
            marks.append(_mark(fragment))
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.rows = _check_rows(int(self._starts[-1]))
        self.row_bytes = max(1.0, nbytes / self.rows)
        self.fingerprint = digest([schema_to_bytes(self.schema), json.dumps(marks).encode()])

    def part(self, start: int, stop: int) -> Any:
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop, side="left"))
        skip = start - int(self._starts[first])
        return DatasetPart(tuple(self._pieces[first:last]), self.schema, skip, stop - start)


def parquet_source(paths: Sequence[str | os.PathLike[str]]) -> DatasetSource:
    """Parquet files or folders of them.

    Raises:
        NotFound: a path does not exist. FormatError: a file is not Parquet.
    """
    for path in paths:
        if not os.path.exists(path):  # noqa: PTH110  # also takes PathLike
            raise NotFound(f"no file or folder {os.fspath(path)!r}", hint="Give paths that exist")
    try:
        found = [os.fspath(path) for path in paths]
        return DatasetSource(pads.dataset(found[0] if len(found) == 1 else found, format="parquet"))
    except pa.ArrowException as error:
        raise FormatError(
            f"not Parquet files of one schema: {error}", hint="Choose another reader"
        ) from error


def _split(fragment: pads.Fragment) -> list[pads.Fragment]:
    if isinstance(fragment, pads.ParquetFileFragment):
        pieces: list[pads.Fragment] = fragment.split_by_row_group()
        return pieces
    return [fragment]


def _piece_rows(piece: pads.Fragment) -> int:
    # Of a fragment that is some row groups of a file, count_rows() counts the whole file.
    if isinstance(piece, pads.ParquetFileFragment):
        return sum(group.num_rows for group in piece.row_groups)
    return int(piece.count_rows())


def _piece_bytes(piece: pads.Fragment) -> int:
    if isinstance(piece, pads.ParquetFileFragment):
        return sum(group.total_byte_size for group in piece.row_groups)
    return int(piece.to_table().nbytes)


def _mark(fragment: pads.Fragment) -> list[Any]:
    """What tells that a file is still the same one."""
    if not isinstance(fragment, pads.FileFragment):
        return ["rows", fragment.count_rows()]
    info = fragment.filesystem.get_file_info(fragment.path)
    return [fragment.path, info.size, info.mtime_ns]


def _check_rows(rows: int) -> int:
    if rows == 0:
        raise UsageError("the source is empty: it has 0 rows", hint="Give at least one row")
    return rows
