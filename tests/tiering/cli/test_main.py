"""Command lines that are wrong, and output that cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tiering import NodeCache
from tiering.digest import digest

MAIN = "from tiering.cli.main import main; main()"


@pytest.mark.parametrize(
    "words",
    [
        ("ls", "--json"),
        ("--json",),
        ("cache", "--json"),
        ("block", "--json"),
        ("nonsense", "--json"),
        ("ls", ".", "--jsn", "--json"),
        ("show", ".", "c", "--version", "x", "--json"),
        ("simulate", "c", "--points", "1", "--json"),
    ],
)
def test_wrong_command_line_is_one_document(tiering: Any, words: tuple[str, ...]) -> None:
    done = tiering(*words)
    assert done.code == 2
    assert done.document["ok"] is False
    assert done.document["error"] == "UsageError"
    assert done.document["message"] in done.err.replace("\n", " ")


def test_group_alone_shows_its_help(tiering: Any) -> None:
    assert "resize" in tiering("cache").out


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "", ":8786", "127.0.0.1:abc", "[::1", "foo://127.0.0.1:80", "http://127.0.0.1:9"]
)
def test_scheduler_that_is_no_address_is_told(tiering: Any, address: str) -> None:
    done = tiering("verify", "c", "--on", ".", "--scheduler", address)
    assert done.code == 2
    assert f"scheduler {address!r} is not an address. Example: 127.0.0.1:8786" in done.err.replace("\n", " ")


def test_scheduler_by_tls_without_certificates_is_told(tiering: Any) -> None:
    done = tiering("verify", "c", "--on", ".", "--scheduler", "tls://127.0.0.1:9")
    assert done.code == 2
    assert "distributed.comm.tls" in done.err


@pytest.mark.parametrize(
    "words", [("ls", "."), ("ls", ".", "--jsn", "--json"), ("show", ".", "c", "--json"), ("--version",)]
)
def test_output_that_cannot_be_written_is_told_in_a_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-c", MAIN, *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stderr.count("the output cannot be written: No space left on device") == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_sizes_that_are_a_slip_of_the_pen_are_told(tiering: Any, tmp_path: Path) -> None:
    cache = NodeCache(tmp_path / "cache", "1MB")
    cache.get(digest(b"x"), 1, lambda: [b"x"])
    cache.close()
    for words in (
        ("cache", "resize", tmp_path / "cache", "1e30TB"),
        ("block", "format", tmp_path / "v.img", "--size", "1e30TB"),
        ("simulate", "c", "--on", tmp_path, "--bandwidth", "1e30TB"),
    ):
        done = tiering(*words)
        assert done.code == 2, words
        assert "is not below 1 EiB" in done.err
    assert not list(tmp_path.glob("v.img*"))


def test_demo_on_a_file_is_told(tiering: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = tiering("demo", "--endpoint-url", "http://127.0.0.1:9")
    assert (done.code, "Add --object s3://" in done.err) == (2, True)
    done = tiering("demo", "--dir", tmp_path / "file")
    assert done.code == 2
    assert "Give another --dir" in done.err


def test_error_of_a_file_is_not_taken_for_one_of_the_output(
    tiering: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/some/file")

    monkeypatch.setattr("tiering.catalog.corpora", fail)
    with pytest.raises(PermissionError, match="/some/file"):
        tiering("ls", tmp_path)
