"""A block store whose medium or index fails: typed errors, nothing half done, nothing lost."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiering.stores.block_tools import patch_file
from tiering.errors import CapacityExceeded, Corrupt, Unavailable
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


def test_overwrite_interrupted_before_its_old_header_is_gone_allows_no_delete_beside_it(
    store: BlockStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the delete would take the newer header alone, and a lost index bring the older one back."""
    store.write("k", [b"old"])

    def interrupted(_offset: int, _span: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "_bury", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.write("k", [b"new"])
    with pytest.raises(Unavailable, match="half-way"):
        store.delete("k")
    store.close()
    with BlockStore("blocks", path) as again:
        assert again.read("k") == b"new"
        again.delete("k")
    path.with_name(f"{path.name}.index").unlink()
    with BlockStore("blocks", path) as again:
        assert list(again.list()) == []


def test_one_bad_page_of_the_two_marks_hinders_nobody(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    for bad in (2, 3):

        def fail(fd: int, data: memoryview, offset: int, bad: int = bad) -> int:
            if offset <= bad * PAGE_BYTES < offset + memoryview(data).nbytes:
                raise OSError(5, "Input/output error")
            return real(fd, data, offset)

        with monkeypatch.context() as patch, BlockStore("blocks", path) as store:
            patch.setattr(os, "pwrite", fail)
            free = store.info().free_bytes
            for number in range(4):
                store.write(f"k{number}", [b"x" * 5000])
            for number in range(4):
                store.delete(f"k{number}")
            assert store.info().free_bytes == free


def test_data_that_could_not_be_read_at_a_scan_are_read_when_they_can(path: Path) -> None:
    with BlockStore("blocks", path) as store:
        store.write("k", [DATA])
        offset = store.locate("k").offset
    patch_file(path, offset + 5, bytes([DATA[5] ^ 1]))
    path.with_name(f"{path.name}.index").unlink()
    with BlockStore("blocks", path) as store:
        assert [problem.key for problem in store.check(deep=False)] == ["k"]
        with pytest.raises(Corrupt, match="found its data damaged"):
            store.read("k")
    patch_file(path, offset + 5, DATA[5:6])
    with BlockStore("blocks", path) as store:
        assert store.read("k") == DATA


def test_check_goes_on_behind_a_header_that_cannot_be_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with BlockStore("blocks", path) as store:
        for key in ("a", "z"):
            store.write(key, [DATA])
        bad, torn = (store.locate(key).offset - PAGE_BYTES for key in ("a", "z"))
    patch_file(path, torn, bytes(PAGE_BYTES))
    read, write = os.preadv, os.pwrite

    def fails(offset: int, nbytes: int) -> None:
        if offset <= bad < offset + nbytes:
            raise OSError(5, "Input/output error")

    def preadv(fd: int, buffers: Any, offset: int, *flags: int) -> int:
        fails(offset, sum(memoryview(buffer).nbytes for buffer in buffers))
        return read(fd, buffers, offset, *flags)

    def pwrite(fd: int, data: Any, offset: int) -> int:
        fails(offset, memoryview(data).nbytes)
        return write(fd, data, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(os, "pwrite", pwrite)
    with BlockStore("blocks", path) as store:
        told = {problem.key: problem.repaired for problem in store.check(repair=True)}
    assert told == {"a": False, "z": True}
