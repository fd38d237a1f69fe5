"""Text files as byte-level tokens, packed into rows of equal length.

Invariant: the tokens of all rows, read in order without separators, are the bytes of all files: nothing is
decoded, so every encoding survives. Each file ends with one separator; the last row is filled up with
separators.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Sequence
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
from tiering.sources.folders import walk

SEPARATOR: Final = 256
DTYPE: Final = np.dtype("<u2")


@dataclass(frozen=True, slots=True)
class TextFile:
    """One file as it was when it was looked at."""

    path: str
    nbytes: int
    mtime_ns: int

    @classmethod
    def look(cls, path: str) -> TextFile:
        """The file at `path`; raises OSError where it is not a regular file that can be read."""
        fd = _open(path)
        try:
            os.pread(fd, 1, 0)  # some files open and cannot be read
            stats = os.fstat(fd)
            return cls(path, stats.st_size, stats.st_mtime_ns)
        finally:
            os.close(fd)

    def read(self, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Its bytes [start, stop).

        Raises:
            Conflict: it is not the file any more that was looked at.
        """
        data = np.empty(stop - start, np.uint8)
        view, done = memoryview(data), 0
        try:
            fd = _open(self.path)
            try:
                while done < len(data) and (got := os.preadv(fd, [view[done:]], start + done)):
                    done += got
                stats = os.fstat(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise Conflict(
                f"{self.path!r} was readable and is no longer: {error.strerror}", hint="Ingest again"
            ) from error
        if (stats.st_size, stats.st_mtime_ns) != (self.nbytes, self.mtime_ns) or done < len(data):
            raise Conflict(f"{self.path!r} changed meanwhile", hint="Ingest again")
        return data


@dataclass(frozen=True, slots=True)
class TextPart:
    """Rows whose tokens start `skip` tokens into the first of some files."""

    column: str
    row_tokens: int
    rows: int
    skip: int
    files: tuple[TextFile, ...]

    def __call__(self) -> Values:
        wanted = self.rows * self.row_tokens
        tokens = np.full(wanted, SEPARATOR, DTYPE)
        position = -self.skip
        for file in self.files:
            start, stop = max(0, position), min(wanted, position + file.nbytes)
            if start < stop:
                tokens[start:stop] = file.read(start - position, stop - position)
            position += file.nbytes + 1  # the separator is there already
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
        if type(row_tokens) is not int or not 0 < row_tokens <= 1 << 24:
            raise UsageError(
                f"row_tokens = {row_tokens!r} is not a row length", hint="Example: row_tokens=2049"
            )
        if not isinstance(suffixes, str | Sequence) or not all(isinstance(one, str) for one in suffixes):
            raise UsageError(f"suffixes = {suffixes!r} are no endings", hint="Example: suffixes=('.py',)")
        self.schema: pa.Schema = schema_of([ZarrColumn(column, DTYPE, (row_tokens,))])
        self._column = column
        self._row_tokens = row_tokens
        self._files: list[TextFile] = []
        unreadable: list[tuple[str, str]] = []
        empty = 0
        for path in _walk(paths, (suffixes,) if isinstance(suffixes, str) else tuple(suffixes), unreadable):
            try:
                file = TextFile.look(path)
            except OSError as error:
                unreadable.append((path, error.strerror or str(error)))
                continue
            if file.nbytes:
                self._files.append(file)
            else:
                empty += 1
        if not self._files:
            looked = ", ".join(map(str, paths))[:200]
            raise UsageError(
                f"the source is empty: no text in {looked}"
                f" ({len(unreadable)} unreadable, {empty} empty files)",
                hint="Give files or folders that hold text",
            )
        lengths = np.array([file.nbytes for file in self._files], np.int64) + 1
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self.rows = -(-int(self._starts[-1]) // row_tokens)
        self.row_bytes = float(row_tokens * DTYPE.itemsize)
        marks = [[file.path, file.nbytes, file.mtime_ns] for file in self._files]
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


def _walk(
    paths: Sequence[str | os.PathLike[str]], suffixes: tuple[str, ...], unreadable: list[tuple[str, str]]
) -> list[str]:
    """Absolute paths of the files, sorted; folders that cannot be listed are added to `unreadable`."""

    def note(error: OSError) -> None:
        unreadable.append((str(error.filename), error.strerror or str(error)))

    found: set[Path] = set()
    for given in paths:
        path = Path(given).absolute()
        try:
            is_folder, is_there = path.is_dir(), path.exists() or path.is_symlink()
        except OSError as error:  # below a folder that cannot be searched
            note(error)
            continue
        if is_folder:
            for folder, names in walk(path, note):
                found.update(Path(folder, name) for name in names if not suffixes or name.endswith(suffixes))
        elif is_there:
            found.add(path)
        else:
            raise NotFound(f"no file or folder {os.fspath(given)!r}", hint="Give paths that exist")
    return [str(path) for path in sorted(found)]


def _open(path: str) -> int:
    """A descriptor of a regular file: opening a pipe would wait for its writer, a device may never end."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return fd
