"""fsspec tiers: read-only schemes, schemes without atomic writes, and what is refused."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from tiering.errors import ConfigError, Corrupt, NotFound, UsageError
from tiering.stores.fsspec import FsspecStore

DATA = bytes(range(100))


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `DATA` as ``/ranged`` and, without heeding ranges, as ``/whole``."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        start, stop, status = 0, len(DATA), 200
        asked = self.headers.get("Range")
        if self.path == "/data/ranged" and asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop, status = int(first), min(int(last or len(DATA)) + 1, len(DATA)), 206
            if start >= len(DATA):
                status, stop = 416, start
        if self.path not in ("/data/ranged", "/data/whole"):
            start, stop, status = 0, 0, 404
        self.send_response(status)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Accept-Ranges", "bytes" if self.path == "/data/ranged" else "none")
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(DATA)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(DATA[start:stop])

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def web() -> Iterator[FsspecStore]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with FsspecStore("web", f"http://127.0.0.1:{server.server_port}/data") as store:
            yield store
        server.shutdown()
        thread.join()


def read_range(store: FsspecStore, key: str, offset: int, nbytes: int) -> bytes:
    buffer = bytearray(nbytes)
    store.read_into(key, offset, memoryview(buffer))
    return bytes(buffer)


def test_http_reads_ranges_and_wholes(web: FsspecStore) -> None:
    assert web.read("ranged") == DATA
    assert web.read("whole") == DATA
    assert read_range(web, "ranged", 10, 20) == DATA[10:30]
    assert web.stat("ranged").nbytes == 100
    with pytest.raises(Corrupt):
        read_range(web, "ranged", 90, 20)
    with pytest.raises(Corrupt):
        read_range(web, "ranged", 100, 1)
    with pytest.raises(NotFound):
        web.read("missing")


def test_http_server_that_ignores_ranges_is_not_believed(web: FsspecStore) -> None:
    with pytest.raises(UsageError, match="ignores ranges"):
        read_range(web, "whole", 10, 20)


def test_http_is_read_only(web: FsspecStore) -> None:
    for call in (lambda: web.write("k", [b"x"]), lambda: web.delete("ranged")):
        with pytest.raises(UsageError, match="read-only"):
            call()


def test_other_schemes_write_by_rename(tmp_path: Path) -> None:
    store = FsspecStore("nas", f"local://{tmp_path}/tier")
    store.write("a/b", [b"old"])
    assert store.write("a/b", [b"n", b"ew"]).nbytes == 3
    assert store.read("a/b") == b"new"
    assert [path.name for path in (tmp_path / "tier" / "a").iterdir()] == ["b"]
    with pytest.raises(UsageError, match="no conditional write"):
        store.write("a/c", [b"x"], if_absent=True)


def test_rename_that_does_not_replace_removes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def move(self: LocalFileSystem, source: str, target: str, **_: Any) -> None:
        if Path(target).exists():
            raise FileExistsError(target)
        Path(source).rename(target)

    monkeypatch.setattr(LocalFileSystem, "mv", move)
    store = FsspecStore("nas", f"local://{tmp_path}/tier")
    for data in (b"old", b"new"):
        store.write("k", [data])
        assert store.read("k") == data
    assert [info.key for info in store.list()] == ["k"]


def test_failed_rename_leaves_the_old_object_and_no_temp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FsspecStore("nas", f"local://{tmp_path}/tier")
    store.write("k", [b"old"])

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(LocalFileSystem, "mv", fail)
    with pytest.raises(ConnectionError):
        store.write("k", [b"new"])
    assert store.read("k") == b"old"
    assert [path.name for path in (tmp_path / "tier").iterdir()] == ["k"]


def test_unknown_scheme_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="scheme 'nonsense'"):
        FsspecStore("x", "nonsense://a")


def test_literal_credential_of_any_filesystem_is_refused() -> None:
    with pytest.raises(ConfigError, match="'password' of tier 'x'"):
        FsspecStore("x", "memory://a", {"password": "hunter2"})
