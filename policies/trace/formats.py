"""The formats that traces are written in, taken from memory.

What is not in the format is answered by a ValueError with the line or the bytes, the value seen and a right
example.
"""

import csv
import json
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from policies.trace import MOST_BYTES, Trace

__all__ = ["DEFAULT_COLUMNS", "log_lines", "parse_csv", "parse_log", "parse_oracle"]

DEFAULT_COLUMNS = ("time", "id", "size")
_ORACLE = np.dtype([("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])
_LINE = '{"time": 1764109179.25, "digest": "5f3a...", "bytes": 67108864, "hit": true}'


def parse_oracle(data: bytes | bytearray | memoryview) -> Trace:
    """Return the trace in `data`, records in libCacheSim's format oracleGeneral.

    A record has 24 bytes, little-endian: uint32 seconds, uint64 object, uint32 bytes, int64 next use (not
    looked at). Raises ValueError for a record that is cut off and for none.
    """
    records, rest = divmod(memoryview(data).nbytes, _ORACLE.itemsize)
    if rest:
        raise ValueError(
            f"{records} records of {_ORACLE.itemsize} bytes are followed by {rest} bytes: the last record is "
            "cut off, or this is not oracleGeneral"
        )
    trace = np.frombuffer(data, _ORACLE)
    return _in_order(
        trace["time"].astype(np.float64), trace["id"].astype(np.uint64), trace["size"].astype(np.int64)
    )


def parse_csv(lines: Iterable[str], columns: Sequence[str] = DEFAULT_COLUMNS) -> Trace:
    """Return the trace in comma-separated `lines`.

    columns: of time, id and size, or of id and size where there is no time (requests then come a second
    apart). Names stand in the first line; numbers, from 1, mean that there is no such line. Ids are any
    text. Raises ValueError for columns or lines that are not so.
    """
    rows = _rows(lines)
    places = _places(rows, columns)
    known: dict[str, int] = {}
    times, ids, sizes = array("d"), array("q"), array("q")
    for number, row in rows:
        if not row:
            continue
        if len(row) <= max(places):
            raise ValueError(f"line {number} has {len(row)} columns, not {max(places) + 1}; {_row(columns)}")
        *time, name, nbytes = (row[place] for place in places)
        times.append(_number(time[0], number, columns) if time else len(times))
        ids.append(known.setdefault(name, len(known)))
        sizes.append(_size(nbytes, number, columns))
    return _in_order(*map(np.asarray, (times, ids, sizes)))


def parse_log(lines: Iterable[str]) -> Trace:
    """Return the trace in the lines of a node cache's access log; ValueError as for `log_lines`."""
    known: dict[str, int] = {}
    times, ids, sizes = array("d"), array("q"), array("q")
    for time, name, nbytes in log_lines(lines):
        times.append(time)
        ids.append(known.setdefault(name, len(known)))
        sizes.append(nbytes)
    return _in_order(*map(np.asarray, (times, ids, sizes)))


def log_lines(lines: Iterable[str]) -> Iterator[tuple[float, str, int]]:
    """Yield time, digest and bytes of each line of a node cache's access log (docs/traces.md).

    Each is a JSON object with ``time`` (seconds since 1970), ``digest``, ``bytes`` and ``hit``; what else it
    has is not looked at. Raises ValueError for a line that is not so.
    """
    for number, line in enumerate(lines, 1):
        try:
            match json.loads(line):
                case {"time": int() | float() as time, "digest": str(name), "bytes": int(nbytes)} if (
                    math.isfinite(time) and 0 <= nbytes < MOST_BYTES
                ):
                    yield float(time), name, nbytes
                    continue
        except (ValueError, RecursionError, OverflowError):
            pass
        raise ValueError(
            f"line {number} is no line of an access log: {line[:100].rstrip()!r}; e.g. {_LINE}. A full disk "
            "cuts lines off: delete it"
        )


def _in_order(
    times: npt.NDArray[np.float64], ids: npt.NDArray[np.integer], sizes: npt.NDArray[np.int64]
) -> Trace:
    """The trace of requests in any order: processes that share a log do not wait for each other."""
    if (np.diff(times) < 0).any():
        order = np.argsort(times, kind="stable")
        times, ids, sizes = times[order], ids[order], sizes[order]
    return Trace(times, ids.view(np.int64), sizes)


def _rows(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Each row with the number of its last line."""
    reader = csv.reader(lines, strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num} is not CSV: {error}") from None


def check_columns(columns: Sequence[str]) -> None:
    """Raise ValueError unless they can be those of time, id and size, or of id and size."""
    if len(columns) not in (2, 3) or not all(columns):
        raise ValueError(
            f"columns must be those of time, id and size, or of id and size, not {','.join(columns)!r}; "
            f"e.g. {','.join(DEFAULT_COLUMNS)}, or 1,2,3 where there is no header"
        )
    if all(column.isdecimal() for column in columns) and any(int(column) < 1 for column in columns):
        raise ValueError(f"columns are numbered from 1, not {','.join(columns)!r}; e.g. 1,2,3")


def _places(rows: Iterator[tuple[int, list[str]]], columns: Sequence[str]) -> list[int]:
    """Where the columns stand in a row; takes the header, if there is one."""
    check_columns(columns)
    if all(column.isdecimal() for column in columns):
        return [int(column) - 1 for column in columns]
    _, header = next(rows, (0, []))
    for column in columns:
        if column not in header:
            raise ValueError(
                f"the first line has no column {column!r}, but {','.join(header)[:200]!r}; name those of "
                "time, id and size, or number them where there is no header: 1,2,3"
            )
    return [header.index(column) for column in columns]


def _number(text: str, line: int, columns: Sequence[str]) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ValueError(f"line {line}: time {text[:40]!r} is not a number of seconds; {_row(columns)}")
    return seconds


def _size(text: str, line: int, columns: Sequence[str]) -> int:
    try:
        nbytes = int(text)
    except ValueError:
        nbytes = -1
    if not 0 <= nbytes < MOST_BYTES:
        raise ValueError(f"line {line}: size {text[:40]!r} is not a number of bytes; {_row(columns)}")
    return nbytes


def _row(columns: Sequence[str]) -> str:
    return f"e.g. {','.join(['12.5', 'shard-7', '67108864'][-len(columns) :])} for {','.join(columns)}"
