"""A block store whose medium or index fails: typed errors, nothing half done, nothing lost."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiering.errors import CapacityExceeded, Unavailable
from tiering.stores.block import BlockStore
from tiering.stores.block_index import BlockIndex
from tiering.stores.block_layout import DATA_START
from tiering.stores.block_medium import PAGE_BYTES, Medium

DATA = bytes(range(250)) * 36
DATA_BYTES = (2 << 20) - DATA_START


def test_failed_data_write_leaves_the_old_object_and_all_space(
    store: BlockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("k", [b"old"])
    before = store.info()
    real = os.pwrite

    def fail(fd: int, data: memoryview, offset: int) -> int:
        if len(data) > PAGE_BYTES:
            raise OSError(5, "Input/output error")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(Unavailable, match=r"Input/output error.*key 'k'"):
        store.write("k", [bytes(10_000)])
    assert store.info() == before
    assert store.read("k") == b"old"


def test_failed_flush_stops_writes_until_reopened(
    store: BlockStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("k", [b"old"])

    def fail(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(Unavailable):
            store.write("k", [b"new"])
    with pytest.raises(Unavailable, match="half-way"):
        store.write("other", [b"x"])
    assert store.read("k") == b"old"
    store.close()
    with BlockStore("blocks", path) as again:
        assert again.read("k") == b"old"
        again.write("k", [b"new"])
        assert again.info().free_bytes == DATA_BYTES - 2 * PAGE_BYTES


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR])
def test_failed_commit_keeps_the_old_object(
    store: BlockStore, path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    store.write("k", [b"old"])
    before = store.info()

    def fail(self: BlockIndex, *_: Any) -> None:
        error = sqlite3.OperationalError("injected")
        error.sqlite_errorcode = code
        with self._transaction():
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(BlockIndex, "publish", fail)
        kind = CapacityExceeded if code == sqlite3.SQLITE_FULL else Unavailable
        with pytest.raises(kind, match="injected"):
            store.write("k", [b"new"])
    assert store.read("k") == b"old"
    if code == sqlite3.SQLITE_FULL:  # certainly not committed: all is undone, and the store goes on
        assert store.info() == before
        store.write("k", [b"new"])
    else:
        with pytest.raises(Unavailable, match="half-way"):
            store.write("k", [b"new"])
    store.close()
    with BlockStore("blocks", path) as again:
        assert again.read("k") == b"new"  # whole on the volume, so an unknown commit is taken for done
        assert again.info().free_bytes == before.free_bytes
        assert again.check() == []


def test_write_interrupted_just_after_its_commit_stays(
    store: BlockStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("k", [b"old"])
    free_bytes = store.free_bytes()
    real = BlockIndex.publish

    def interrupt(*args: Any) -> None:
        real(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BlockIndex, "publish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.write("k", [b"new"])
    assert store.read("k") == b"new"
    assert store.check() == []
    store.close()
    with BlockStore("blocks", path) as again:
        assert again.read("k") == b"new"
        assert again.free_bytes() == free_bytes


def test_file_system_without_o_direct_is_used_buffered(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def without_direct(name: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(name, flags, *rest, **named)

    monkeypatch.setattr(os, "open", without_direct)
    with BlockStore("blocks", path) as store:
        assert not store.direct
        assert not store.info().direct
        store.write("k", [DATA])
        buffer = bytearray(4001)
        store.read_into("k", 3, memoryview(buffer))
        assert buffer == DATA[3:4004]


def test_close_waits_for_reads_in_flight(store: BlockStore, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DATA
    store.write("k", [data])
    inside, go_on = threading.Event(), threading.Event()
    real = Medium._fill

    def slow(self: Medium, fd: int, offset: int, view: memoryview) -> None:
        inside.set()
        assert go_on.wait(60)
        real(self, fd, offset, view)

    monkeypatch.setattr(Medium, "_fill", slow)
    got: list[bytearray] = []
    reader = threading.Thread(target=lambda: got.append(store.read("k")))
    reader.start()
    assert inside.wait(60)
    wait_for = store._medium._state.wait_for

    def wait(predicate: Callable[[], bool]) -> bool:
        go_on.set()  # the read goes on only once close waits for it
        return wait_for(predicate)

    monkeypatch.setattr(store._medium._state, "wait_for", wait)
    closer = threading.Thread(target=store.close)
    closer.start()
    reader.join()
    closer.join()
    assert got == [data]


def test_index_is_a_durable_private_wal(store: BlockStore, path: Path) -> None:
    store.write("k", [b"x"])
    db = store._index._db
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute("PRAGMA synchronous").fetchone() == (2,)
    for name in ("volume.img", "volume.img.index", "volume.img.index-wal"):
        assert path.with_name(name).stat().st_mode & 0o777 == 0o600
