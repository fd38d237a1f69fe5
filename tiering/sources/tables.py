"""Arrow tables in memory, and Arrow datasets or Parquet files on disk.

Invariant: rows keep their order: that of the table, or of the files' paths and row groups.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from pyarrow.fs import FSSpecHandler

from tiering.digest import Hasher, digest
from tiering.errors import Conflict, FormatError, NotFound, Unavailable, UsageError
from tiering.layout.arrow import normalise, schema_to_bytes
from tiering.sources.base import Source, Values
from tiering.sources.folders import walk

ENDINGS: Final = (".parquet", ".pq")
_FINGERPRINT_ROWS: Final = 1 << 16


class TableSource(Source):
    """A table in this process's memory.

    Raises:
        UsageError: no rows, or a type that is not stored.
    """

    format: ClassVar[str] = "arrow"
    in_memory = True

    def __init__(self, table: pa.Table) -> None:
        self.schema = normalise(table.schema)
        try:
            self._table = table.cast(self.schema)
        except (pa.ArrowException, ValueError) as error:
            raise UsageError(f"the table cannot be stored: {error}", hint="Cast it first") from error
        self.rows = _check_rows(table.num_rows)
        self.row_bytes = max(1.0, self._table.nbytes / self.rows)
        self.fingerprint = _fingerprint(self._table)

    def part(self, start: int, stop: int) -> Any:
        return self._table.slice(start, stop - start)


@dataclass(frozen=True, slots=True)
class Piece:
    """A row group of a Parquet file, or another fragment of a dataset."""

    fragment: pads.Fragment
    rows: int
    mark: tuple[str | int, ...]
    """What tells that its file is still the same one."""

    def read(self, schema: pa.Schema) -> pa.Table:
        """Its rows.

        Raises:
            Conflict: the file changed since the mark was made. FormatError: it cannot be read as `schema`.
        """
        try:
            table = self.fragment.to_table(schema=schema)
            # What lies in memory has not changed, and its mark would take long.
            same = not isinstance(self.fragment, pads.FileFragment) or _mark(self.fragment) == self.mark
        except (pa.ArrowException, OSError, ValueError) as error:
            raise FormatError(
                f"{_name(self.fragment)} cannot be read: {error}", hint="Mend or leave out that file"
            ) from error
        if not same or table.num_rows != self.rows:
            raise Conflict(f"{_name(self.fragment)} changed meanwhile", hint="Ingest again")
        return table


@dataclass(frozen=True, slots=True)
class DatasetPart:
    """Some rows of consecutive pieces of a dataset."""

    pieces: tuple[Piece, ...]
    schema: pa.Schema
    skip: int
    rows: int

    def __call__(self) -> Values:
        tables = [piece.read(self.schema) for piece in self.pieces]
        return pa.concat_tables(tables).slice(self.skip, self.rows)


class DatasetSource(Source):
    """A pyarrow dataset; Parquet files are read by row groups.

    Raises:
        UsageError: no rows, or a dataset with a filter. FormatError: a file cannot be read.
    """

    format: ClassVar[str] = "arrow"

    def __init__(self, dataset: pads.Dataset) -> None:
        self.schema = normalise(dataset.schema)
        self._pieces: list[Piece] = []
        nbytes = 0
        for fragment in _fragments(dataset):
            self.in_memory = self.in_memory or not isinstance(fragment, pads.FileFragment)
            try:
                mark = _mark(fragment)
                for part in _split(fragment):
                    if rows := _piece_rows(part):
                        self._pieces.append(Piece(part, rows, mark))
                        nbytes += _piece_bytes(part)
            except (pa.ArrowException, OSError) as error:
                hint = "Mend or leave out that file, or choose another reader"
                raise FormatError(f"{_name(fragment)} cannot be read: {error}", hint=hint) from error
        self._starts = np.concatenate(
            [[0], np.cumsum([piece.rows for piece in self._pieces], dtype=np.int64)]
        )
        self.rows = _check_rows(int(self._starts[-1]))
        self.row_bytes = max(1.0, nbytes / self.rows)
        marks = [[piece.rows, *piece.mark] for piece in self._pieces]
        self.fingerprint = digest([schema_to_bytes(self.schema), json.dumps(marks).encode()])

    def part(self, start: int, stop: int) -> Any:
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop, side="left"))
        skip = start - int(self._starts[first])
        part = DatasetPart(tuple(self._pieces[first:last]), self.schema, skip, stop - start)
        return part() if self.in_memory else part


_STATES: Final = (
    "ETag",
    "etag",
    "md5",
    "md5Hash",
    "content_md5",
    "generation",
    "version_id",
    "VersionId",
    "LastModified",
    "last_modified",
    "created",
)
_HASHED_BYTES: Final = 8 << 20


def parquet_source(paths: Sequence[str | os.PathLike[str]]) -> DatasetSource:
    """Parquet files, or those below folders that end in ``.parquet`` or ``.pq``, in the order of their paths.

    Below folders, names that begin with ``_`` or ``.`` are left out, as by pyarrow's datasets: Spark's
    ``_temporary``, say. Links to folders are followed.

    Raises:
        NotFound: a path does not exist. Unavailable: a folder cannot be listed.
        UsageError: no rows, or a folder is that of a partition (``lang=en``), whose column would be lost.
        FormatError: a file is not Parquet, or has other columns than the first.
    """
    files = list(dict.fromkeys(file for path in paths for file in _parquet_files(path)))
    if not files:
        raise UsageError(
            "the source is empty: no Parquet file below its folders", hint=f"Give {ENDINGS} files"
        )
    first = None
    for file in files:
        try:
            schema = pq.read_schema(file).remove_metadata()
        except (pa.ArrowException, OSError) as error:
            raise FormatError(
                f"{file!r} is not a Parquet file: {error}", hint="Leave it out, or choose another reader"
            ) from error
        first = schema if first is None else first
        if not schema.equals(first):
            told = (
                ", ".join(f"{field.name} {field.type}" for field in schema if field not in first)
                or "fewer or in another order"
            )
            raise FormatError(
                f"{file!r} has other columns than {files[0]!r}: {told}",
                hint="Give files of one schema, or a pyarrow Dataset with the schema that you want",
            )
    return DatasetSource(pads.dataset(files, format="parquet"))


def _parquet_files(path: str | os.PathLike[str]) -> list[str]:
    found = Path(path).absolute()
    if found.is_dir():
        inside = [
            Path(folder, name)
            for folder, names in walk(found, _raise, skip=("_", "."))
            for name in names
            if name.lower().endswith(ENDINGS) and not name.startswith(("_", "."))
        ]
        for file in inside:
            parted = next((part for part in file.relative_to(found).parts[:-1] if "=" in part), None)
            if parted is not None:
                hint = "Give pyarrow.dataset.dataset(folder, partitioning='hive'), which has that column"
                raise UsageError(f"{str(file)!r} is of a partition: {parted!r} would be left out", hint=hint)
            _check_name(file)
            if not file.is_file():
                raise FormatError(f"{str(file)!r} is not a file, or leads to none", hint="Leave it out")
        return sorted(map(str, inside))
    if not found.is_file():
        raise NotFound(f"no file or folder {os.fspath(path)!r}", hint="Give paths that exist")
    _check_name(found)
    return [str(found)]


def _check_name(file: Path) -> None:
    try:
        str(file).encode()
    except UnicodeError:
        raise FormatError(f"the name of {str(file)!r} is not UTF-8", hint="Rename it") from None


def _raise(error: OSError) -> NoReturn:
    text = f"the folder {str(error.filename)!r} cannot be listed: {error.strerror or error}"
    raise Unavailable(text, hint="Leave it out, or get the right to read it") from None


def _fragments(dataset: pads.Dataset) -> list[pads.Fragment]:
    try:
        return list(dataset.get_fragments())
    except ValueError as error:
        raise UsageError(f"the dataset cannot be taken apart: {error}", hint="Give its table") from error


def _name(fragment: pads.Fragment) -> str:
    return repr(fragment.path) if isinstance(fragment, pads.FileFragment) else "a table of the dataset"


def _fingerprint(table: pa.Table) -> str:
    """Digest of schema and rows, the same however the table is chunked."""
    hasher = Hasher()
    hasher.update(schema_to_bytes(table.schema))
    for start in range(0, table.num_rows, _FINGERPRINT_ROWS):
        for column in table.slice(start, _FINGERPRINT_ROWS).columns:
            piece = pa.concat_arrays([*column.chunks, column.chunk(0).slice(0, 0)])
            batch = pa.RecordBatch.from_arrays([piece], ["column"])
            hasher.update(memoryview(batch.serialize()))
    return hasher.hexdigest()


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


def _mark(fragment: pads.Fragment) -> tuple[str | int, ...]:
    """What tells that a fragment holds the same rows as before."""
    if not isinstance(fragment, pads.FileFragment):
        table = fragment.to_table()
        return (_fingerprint(table.cast(normalise(table.schema))),)
    info = fragment.filesystem.get_file_info(fragment.path)
    state = _state(fragment) if info.mtime_ns is None else info.mtime_ns
    mark: tuple[str | int, ...] = (fragment.path, info.size, state)
    if fragment.format != type(fragment.format)():  # which null values a CSV file has, say
        mark = (*mark, digest(pickle.dumps(fragment.format)))
    if (where := str(fragment.partition_expression)) != "true":  # columns that its folder has
        mark = (*mark, where)
    return mark


def _state(fragment: pads.FileFragment) -> str:
    """What tells versions of a file apart where it has no time: what its store says of it, or its bytes."""
    handler = getattr(fragment.filesystem, "handler", None)
    if isinstance(handler, FSSpecHandler):
        told = handler.fs.info(fragment.path)
        found = [f"{key}={told[key]}" for key in _STATES if told.get(key) is not None]
        if found:
            return " ".join(found)
    with fragment.open() as file:
        hasher = Hasher()
        while data := file.read(_HASHED_BYTES):
            hasher.update(data)
    return hasher.hexdigest()


def _check_rows(rows: int) -> int:
    if rows == 0:
        raise UsageError("the source is empty: it has 0 rows", hint="Give at least one row")
    return rows
