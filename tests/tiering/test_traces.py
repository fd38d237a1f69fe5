"""Traces in files, packed and not, and what is wrong with them."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numcodecs.zstd
import pytest

from tiering import traces
from tiering.errors import FormatError, NotFound, UsageError
from tiering.traces import read_trace

RECORDS = b"".join(struct.pack("<IQIq", time, time % 3, 10 + time % 3, -1) for time in range(100))
LINE = '{{"time": {time}, "digest": "{digest}", "bytes": 7, "hit": false}}\n'


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.bin", RECORDS),
        ("t.oracleGeneral", RECORDS),
        ("t.oracleGeneral.bin.gz", gzip.compress(RECORDS)),
        ("t.oracleGeneral.ZST", numcodecs.zstd.compress(RECORDS, 1)),
        ("t.oracleGeneral.zst", numcodecs.zstd.compress(RECORDS, 1)),
    ],
)
def test_read_trace_unpacks_by_the_name(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    trace = read_trace(tmp_path / name)
    assert (len(trace), trace.objects, trace.seconds) == (100, 3, 99.0)


def test_read_trace_takes_the_format_that_is_told(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a,7\nb,8\na,7\n")
    assert read_trace(tmp_path / "t.txt", "csv", ("1", "2")).sizes.tolist() == [7, 8, 7]


def test_read_trace_of_a_log_begins_with_the_lines_before(tmp_path: Path) -> None:
    for name, times in (("log.jsonl", [3, 2]), ("log.jsonl.1", [1, 2])):
        (tmp_path / name).write_text("".join(LINE.format(time=t, digest=f"{name}{t}") for t in times))
    trace = read_trace(tmp_path / "log.jsonl")
    assert trace.times.tolist() == [1, 2, 2, 3]
    assert trace.ids.tolist() == [0, 1, 3, 2]
    (tmp_path / "log.jsonl").unlink()  # just put aside
    assert len(read_trace(tmp_path / "log.jsonl")) == 2


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.bin", RECORDS[:-1], r"t.bin' is not a trace in the format 'oracle': 99 records"),
        ("t.bin", b"", "no request"),
        ("t.bin.gz", gzip.compress(RECORDS)[:-20], "cannot be read"),
        ("t.bin.zst", b"nonsense", "cannot be read"),
        ("t.csv", b"time,id,size\n1,a,x\n", "line 2: size 'x' is not a number of bytes"),
        ("t.csv", b"\xff\xfe", "format 'csv': .* codec can't decode"),
        ("t.jsonl", b"{}\n", "line 1 is no line of an access log"),
    ],
)
def test_read_trace_says_what_is_wrong_and_where(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FormatError, match=message):
        read_trace(tmp_path / name)


def test_read_trace_refuses_a_folder_and_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no trace '.*none.csv'"):
        read_trace(tmp_path / "none.csv")
    with pytest.raises(NotFound, match=r"no trace '.*none.jsonl'"):
        read_trace(tmp_path / "none.jsonl")
    with pytest.raises(FormatError, match="cannot be read"):
        read_trace(tmp_path, "csv")


def test_read_trace_refuses_a_format_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not tell the format.*--format oracle"):
        read_trace(tmp_path / "t.txt")
    with pytest.raises(UsageError, match=r"'arc' is not known. Known: oracle, csv, log"):
        read_trace(tmp_path / "t.bin", "arc")


def test_read_trace_refuses_what_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "MAX_TRACE_BYTES", len(RECORDS) - 1)
    (tmp_path / "t.bin.gz").write_bytes(gzip.compress(RECORDS))
    with pytest.raises(FormatError, match="it is over 2399 bytes"):
        read_trace(tmp_path / "t.bin.gz")
