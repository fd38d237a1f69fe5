"""Reads traces from files: what the simulator replays.

Invariant: a trace is read whole and within a limit, or refused by an error that names the file and the place.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa

from policies.trace import Trace
from policies.trace.formats import DEFAULT_COLUMNS, log_lines, parse_csv, parse_log, parse_oracle
from tiering.access_log import previous_log
from tiering.errors import FormatError, NotFound, UsageError

FORMATS: Final = ("oracle", "csv", "log")
MAX_TRACE_BYTES: Final = 8 << 30
"""Unpacked; 350 million requests of oracleGeneral."""

_READ_BYTES: Final = 1 << 24
_ENDINGS: Final = {".csv": "csv", ".jsonl": "log", ".oraclegeneral": "oracle", ".bin": "oracle"}
_PACKED: Final = {".zst": "zstd", ".gz": "gzip", ".bz2": "bz2", ".lz4": "lz4"}


def read_trace(
    path: str | os.PathLike[str], format_: str | None = None, columns: Sequence[str] = DEFAULT_COLUMNS
) -> Trace:
    """Read a trace; one whose name ends in .zst, .gz, .bz2 or .lz4 is unpacked.

    Args:
        path: the file. Of an access log, the lines before those in it are read too, where they are kept.
        format_: ``oracle`` (libCacheSim's oracleGeneral), ``csv`` or ``log`` (of a node cache); by default
            from the file's name.
        columns: of csv: the names of the columns of time, id and size, or of id and size; or their numbers,
            from 1, where there is no header.

    Raises:
        UsageError: no such format, or the name does not tell it. NotFound: no such file.
        FormatError: the file is not in the format, or it is over `MAX_TRACE_BYTES`.
    """
    path = Path(path)
    kind = format_ or _format_of(path)
    try:
        if kind == "oracle":
            return parse_oracle(_read(path))
        if kind == "csv":
            return parse_csv(_text(_read(path)), columns)
        if kind == "log":
            return parse_log(_log(path))
    except ValueError as error:
        raise _unlike(path, kind, error) from error
    raise UsageError(f"trace format {kind!r} is not known", hint=f"Known: {', '.join(FORMATS)}")


def read_log(path: Path) -> Iterator[tuple[float, str, int]]:
    """Time, digest and bytes of each line of an access log, and of the lines before where they are kept.

    Raises:
        NotFound: no such file. FormatError: the file is no access log, or over `MAX_TRACE_BYTES`.
    """
    try:
        yield from log_lines(_log(path))
    except ValueError as error:
        raise _unlike(path, "log", error) from error


def _log(path: Path) -> io.StringIO:
    parts = [part for part in (previous_log(path), path) if part.exists()] or [path]
    return _text(b"".join(map(_read, parts)))


def _unlike(path: Path, kind: str, error: ValueError) -> FormatError:
    return FormatError(f"{str(path)!r} is not a trace in the format {kind!r}: {error}")


def _format_of(path: Path) -> str:
    name = path.with_suffix("") if path.suffix.lower() in _PACKED else path
    kind = _ENDINGS.get(name.suffix.lower())
    if kind is None:
        hint = f"Say it: --format {' or '.join(FORMATS)}"
        raise UsageError(f"the name {path.name!r} does not tell the format of the trace", hint=hint)
    return kind


def _read(path: Path) -> bytearray:
    data = bytearray()
    try:
        with pa.input_stream(path, compression=_PACKED.get(path.suffix.lower())) as file:
            while piece := file.read(_READ_BYTES):
                data += piece
                if len(data) > MAX_TRACE_BYTES:
                    raise ValueError(f"it is over {MAX_TRACE_BYTES} bytes; give a part of it")
    except FileNotFoundError:
        raise NotFound(f"no trace {str(path)!r}", hint="Look at its path") from None
    except OSError as error:
        raise ValueError(f"it cannot be read: {error}") from error
    return data


def _text(data: bytes | bytearray) -> io.StringIO:
    return io.StringIO(data.decode(), newline="")
