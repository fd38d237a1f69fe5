"""Text files as byte-level tokens, packed into rows of equal length.

Invariant: the tokens of all rows, read in order without separators, are the bytes of all files: nothing is
decoded, so every encoding survives. Each file ends with one separator; the last row is filled up with
separators.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa

from tiering.digest import digest
from tiering.errors import Conflict, NotFound, UsageError
from tiering.layout.zarr import ZarrColumn
from tiering.schema import schema_of
from tiering.sources.base import Source, Values

SEPARATOR: Final = 256
DTYPE: Final = np.dtype("<u2")


@dataclass(frozen=True, slots=True)
class TextPart:
    """Rows whose tokens start `skip` tokens into the first of some files."""

    column: str
    row_tokens: int
    rows: int
    skip: int
    files: tuple[tuple[str, int], ...]
    """Path and length in bytes."""

    def __call__(self) -> Values:
        wanted = self.rows * self.row_tokens
        tokens = np.full(wanted, SEPARATOR, DTYPE)
        position = -self.skip
        for path, nbytes in self.files:
            start, stop = max(0, position), min(wanted, position + nbytes)
            if start < stop:
                tokens[start:stop] = _read_range(path, nbytes, start - position, stop - position)
            position += nbytes + 1  # the separator is there already
        return {self.column: tokens.reshape(self.rows, self.row_tokens)}


class TextSource(Source):
    """Files, or all files below folders, in the order of their paths.

    Args:
        paths: files and folders.
        row_tokens: length of a row.
        column: name of the column, uint16 ``[row_tokens]``.
        suffixes: endings that files in folders must have, such as ``(".py",)``; empty for all files.

    `notes` has ``files``, ``empty`` and ``unreadable``: a list of paths with the reason.

    Raises:
        UsageError: no readable byte, or an argument is wrong. NotFound: a path does not exist.
    """

    format: ClassVar[str] = "zarr"

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        row_tokens: int = 2049,
        column: str = "tokens",
        suffixes: Sequence[str] = (),
    ) -> None:
        if not 0 < row_tokens <= 1 << 24:
            raise UsageError(
                f"row_tokens = {row_tokens!r} is not a row length", hint="Example: row_tokens=2049"
            )
        self._column = column
        self._row_tokens = row_tokens
        self._files: list[tuple[str, int]] = []
        unreadable: list[tuple[str, str]] = []
        empty = 0
        marks = []
        for path in _walk(paths, tuple(suffixes)):
            try:
                with path.open("rb") as file:
                    file.peek(1)  # some files open and cannot be read
                    stats = os.fstat(file.fileno())
            except OSError as error:
                unreadable.append((str(path), error.strerror or str(error)))
                continue
            if stats.st_size == 0:
                empty += 1
                continue
            self._files.append((str(path), stats.st_size))
            marks.append((str(path), stats.st_size, stats.st_mtime_ns))
        if not self._files:
            looked = ", ".join(map(str, paths))[:200]
            raise UsageError(
                f"the source is empty: no text in {looked} ({len(unreadable)} unreadable, {empty} empty files)",
                hint="Give files or folders that hold text",
            )
        lengths = np.array([nbytes for _, nbytes in self._files], np.int64) + 1
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self.rows = -(-int(self._starts[-1]) // row_tokens)
        self.row_bytes = float(row_tokens * DTYPE.itemsize)
        self.schema: pa.Schema = schema_of([ZarrColumn(column, DTYPE, (row_tokens,))])
        self.fingerprint = digest(json.dumps(["text", row_tokens, column, marks]).encode())
        self.notes = {"files": len(self._files), "empty": empty, "unreadable": unreadable}

    def part(self, start: int, stop: int) -> Any:
        first_token, last_token = start * self._row_tokens, stop * self._row_tokens
        first = int(np.searchsorted(self._starts, first_token, side="right")) - 1
        last = int(np.searchsorted(self._starts, last_token, side="left"))
        return TextPart(
            self._column,
            self._row_tokens,
            stop - start,
            first_token - int(self._starts[first]),
            tuple(self._files[first:last]),
        )


def _walk(paths: Sequence[str | os.PathLike[str]], suffixes: tuple[str, ...]) -> Iterable[Path]:
    found: set[Path] = set()
    for path in map(Path, paths):
        if path.is_dir():
            for folder, _folders, names in os.walk(path):
                found.update(Path(folder, name) for name in names if not suffixes or name.endswith(suffixes))
        elif path.exists() or path.is_symlink():
            found.add(path)
        else:
            raise NotFound(f"no file or folder {str(path)!r}", hint="Give paths that exist")
    return sorted(found)


def _read_range(path: str, nbytes: int, start: int, stop: int) -> np.ndarray[Any, Any]:
    """Bytes [start, stop) of a file that must still be `nbytes` long."""
    try:
        with Path(path).open("rb") as file:
            found = os.fstat(file.fileno()).st_size
            file.seek(start)
            data = np.frombuffer(file.read(stop - start), np.uint8)
    except OSError as error:
        raise Conflict(
            f"{path!r} was readable and is no longer: {error.strerror}", hint="Ingest again"
        ) from error
    if found != nbytes or len(data) != stop - start:
        raise Conflict(f"{path!r} changed from {nbytes} to {found} bytes meanwhile", hint="Ingest again")
    return data
