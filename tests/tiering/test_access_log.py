"""The access log: what is in it, that it stays small, and that no trouble with it reaches training."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
from pathlib import Path

import pytest

from tests.tiering.cache_tools import NBYTES, name_of, put
from tiering import NodeCache
from tiering.access_log import AccessLog, previous_log
from tiering.errors import ConfigError
from tiering.traces import read_trace

DIGEST = "0" * 64


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_node_cache_writes_a_line_for_each_request(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "access.jsonl"
    nodes = NodeCache(tmp_path / "cache", 2 * NBYTES, access_log=path)
    for number in (1, 2, 3, 1, 3):
        put(nodes, number)
    nodes.close()
    found = lines(path)
    assert [set(line) for line in found] == [{"time", "digest", "bytes", "hit"}] * 5
    assert [(line["digest"], line["hit"]) for line in found] == [
        (name_of(1), False),
        (name_of(2), False),
        (name_of(3), False),
        (name_of(1), True),
        (name_of(3), False),
    ]
    trace = read_trace(path)
    assert (trace.ids.tolist(), trace.sizes.tolist()) == ([0, 1, 2, 0, 2], [NBYTES] * 5)
    assert path.stat().st_mode & 0o777 == 0o600


def test_node_cache_takes_its_log_along(tmp_path: Path) -> None:
    nodes = NodeCache(tmp_path / "cache", NBYTES, access_log=AccessLog(tmp_path / "log", "1MiB"))
    again = pickle.loads(pickle.dumps(nodes))
    assert (again.access_log.path, again.access_log.limit_bytes) == (tmp_path / "log", 1 << 20)
    assert NodeCache(tmp_path / "cache", NBYTES).access_log is None


def add_many(path: Path, process: int) -> None:
    log = AccessLog(path, 1 << 20)
    for number in range(500):
        log.add(f"{process}-{number}" * 8, number, hit=False)


def test_access_log_of_many_processes_has_whole_lines_and_all_of_them(tmp_path: Path) -> None:
    path = tmp_path / "log"
    processes = [
        multiprocessing.get_context("fork").Process(target=add_many, args=(path, n)) for n in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = lines(path)
    for n in range(4):
        assert [line["bytes"] for line in found if str(line["digest"]).startswith(f"{n}-")] == list(
            range(500)
        )


def test_access_log_keeps_the_newest_lines_within_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for number in range(100):
        AccessLog(path, 2_000).add(DIGEST, number, hit=True)
        sizes = [file.stat().st_size for file in tmp_path.iterdir()]
        assert sum(sizes) <= 2_000
    kept = [line["bytes"] for line in [*lines(previous_log(path)), *lines(path)]]
    assert kept == list(range(kept[0], 100))  # type: ignore[call-overload]
    assert len(kept) > 6
    assert {file.name for file in tmp_path.iterdir()} == {"log", "log.1"}


def test_access_log_that_is_full_is_put_aside_once(tmp_path: Path) -> None:
    """Two processes find it full; the second must not replace what the first has put aside."""
    log = AccessLog(tmp_path / "log", 400)
    log.add(DIGEST, 1, hit=True)
    fds = [os.open(log.path, os.O_WRONLY | os.O_APPEND) for _ in range(3)]
    try:
        assert log._retire(fds[0])
        assert not log._retire(fds[1])  # the first is at it
        os.close(fds[0])
        log.add(DIGEST, 2, hit=True)
        assert log._retire(fds[2])
    finally:
        for fd in fds[1:]:
            os.close(fd)
    assert [lines(previous_log(log.path))[0]["bytes"], lines(log.path)[0]["bytes"]] == [1, 2]


@pytest.mark.parametrize("trouble", ["folder", "pipe", "below a file", "NUL"])
def test_access_log_that_cannot_be_written_is_told_once(
    tmp_path: Path, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log"
    if trouble == "folder":
        path.mkdir()
    elif trouble == "pipe":
        os.mkfifo(path)
    elif trouble == "NUL":
        path = tmp_path / "a\0b"
    else:
        path.write_text("")
        path /= "log"
    nodes = NodeCache(tmp_path / "cache", 5 * NBYTES, access_log=path)
    with caplog.at_level(logging.WARNING):
        assert [put(nodes, number) for number in (1, 2, 1)] == [True] * 3
    nodes.close()
    assert [record.message.startswith("no more requests are written to") for record in told(caplog)] == [True]


def test_access_log_that_cannot_be_opened_again_leaves_files_of_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = AccessLog(tmp_path / "log", 400)
    log.add(DIGEST, 1, hit=True)
    opens, others = log._open, []

    def once() -> int:
        if others:
            raise PermissionError(13, "Permission denied")
        return opens()

    def retired(_fd: int) -> bool:
        others.append(None)
        return True

    closed = os.close

    def close(fd: int) -> None:
        closed(fd)
        if others and others[-1] is None:  # somebody takes the number at once
            others[-1] = (tmp_path / "other").open("wb")
            assert others[-1].fileno() == fd

    monkeypatch.setattr(log, "_open", once)
    monkeypatch.setattr(log, "_retire", retired)
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", close)
        for number in range(9):
            log.add(DIGEST, number, hit=True)
    assert ["Permission denied" in record.message for record in told(caplog)] == [True]
    with others[0] as other:
        other.write(b"as it was")
    assert (tmp_path / "other").read_bytes() == b"as it was"


def told(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What the access log told: others, of a test before, may log late."""
    return [record for record in caplog.records if record.name == "tiering.access_log"]


def test_access_log_on_a_full_disk_stops(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = AccessLog(tmp_path / "log")
    log.path.symlink_to("/dev/full")
    log.add(DIGEST, 1, hit=True)
    log.add(DIGEST, 1, hit=True)
    assert ["No space left" in record.message for record in told(caplog)] == [True]


def test_access_log_stops_where_the_disk_takes_part_of_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:20]))
    log = AccessLog(tmp_path / "log")
    log.add(DIGEST, 1, hit=True)
    log.add(DIGEST, 2, hit=True)
    assert ["a part of a line" in record.message for record in told(caplog)] == [True]
    assert log.path.stat().st_size == 20


def test_access_log_refuses_a_limit_that_is_no_size(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="limit = 'much' is not a size"):
        AccessLog(tmp_path / "log", "much")
