"""The way of bytes to a block volume: hashed beside the medium, and nothing of a call outlives it."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.patterns import pattern
from tiering.digest import Hasher, digest
from tiering.errors import CapacityExceeded, Unavailable
from tiering.stores.block import BlockStore, format_volume
from tiering.stores.block_index import BlockIndex
from tiering.stores.block_stream import write_hashed
from tiering.stores.helpers import Helpers
from tiering.stores.pages import PAGE_BYTES, PIECE_BYTES, address_of, aligned_buffer

LARGE = 2 * PIECE_BYTES + 5000
NAME = digest(b"some")


@pytest.fixture
def large(tmp_path: Path) -> Iterator[BlockStore]:
    """A volume with room for two large objects."""
    format_volume(tmp_path / "large.img", 5 * PIECE_BYTES)
    with BlockStore("large", tmp_path / "large.img") as store:
        yield store


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


@pytest.fixture
def helpers() -> Iterator[Helpers]:
    with Helpers("test") as helpers:
        yield helpers


def without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)


@pytest.mark.parametrize("nbytes", [0, 1, PAGE_BYTES, PIECE_BYTES, PIECE_BYTES + 1, 4 * PIECE_BYTES, LARGE])
@pytest.mark.parametrize("cuts", ["whole", "uneven", "ready"])
def test_stream_puts_every_byte_in_its_place(helpers: Helpers, fd: int, nbytes: int, cuts: str) -> None:
    data = pattern(nbytes)
    buffers: list[bytes | memoryview] = [data]
    if cuts == "uneven":
        buffers = [data[:1], b"", data[1:5000], data[5000:]]
    elif cuts == "ready":
        buffers = [aligned_buffer(nbytes)]
        memoryview(buffers[0])[:] = data
        buffers[0] = memoryview(buffers[0]).toreadonly()
    assert write_hashed(helpers, fd, PAGE_BYTES, buffers) == digest(data)
    whole = -(-nbytes // PAGE_BYTES) * PAGE_BYTES
    assert os.pread(fd, whole + 1, PAGE_BYTES) == data + bytes(whole - nbytes)


def test_stream_of_a_buffer_that_changes_meanwhile_is_described_by_its_digest(
    helpers: Helpers, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = aligned_buffer(4 * PIECE_BYTES)
    real = Hasher.update

    def update(self: Hasher, view: memoryview) -> None:
        data[:PIECE_BYTES] = bytes([data[0] + 1]) * PIECE_BYTES
        real(self, view)

    monkeypatch.setattr(Hasher, "update", update)
    told = write_hashed(helpers, fd, 0, [data])
    monkeypatch.undo()
    assert told == digest(os.pread(fd, data.nbytes, 0))


def test_stream_takes_read_only_memory_on_huge_pages_as_it_is(
    helpers: Helpers, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = aligned_buffer(2 * PIECE_BYTES)
    places = []
    real = os.pwrite

    def pwrite(fd: int, view: memoryview, offset: int) -> int:
        places.append(address_of(view))
        return real(fd, view, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    write_hashed(helpers, fd, 0, [data.toreadonly()])
    assert sorted(places) == [address_of(data), address_of(data) + PIECE_BYTES]
    places.clear()
    write_hashed(helpers, fd, 0, [data])  # who may change it, may do so at any instant
    assert not {address_of(data), address_of(data) + PIECE_BYTES} & {*places}
    places.clear()
    write_hashed(helpers, fd, 0, [data], NAME)  # a change would be found when it is read back
    assert sorted(places) == [address_of(data), address_of(data) + PIECE_BYTES]


@pytest.mark.parametrize("nbytes", [0, 1, PAGE_BYTES, PIECE_BYTES + 1, LARGE])
def test_stream_of_known_digest_is_not_hashed(
    helpers: Helpers, fd: int, monkeypatch: pytest.MonkeyPatch, nbytes: int
) -> None:
    monkeypatch.delattr(Hasher, "update")
    assert write_hashed(helpers, fd, 0, [pattern(nbytes)], NAME) == NAME
    assert os.pread(fd, nbytes, 0) == pattern(nbytes)


@pytest.mark.parametrize("bad", range(5))
def test_stream_that_fails_leaves_nothing_running(
    helpers: Helpers, fd: int, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    ended = []
    real = os.pwrite

    def pwrite(fd: int, view: memoryview, offset: int) -> int:
        if offset == bad * PIECE_BYTES:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        put = real(fd, view, offset)
        ended.append(offset)
        return put

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OSError, match=rf"Input/output error writing .* from byte {bad * PIECE_BYTES} on"):
        write_hashed(helpers, fd, 0, [bytes(4 * PIECE_BYTES + 1)])
    before = len(ended)
    helpers.close()
    assert len(ended) == before


def test_write_without_further_threads_is_done_by_its_own(
    large: BlockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        without_threads(patch)
        large.write("k", [pattern(LARGE)])
    large.write("small", [b"small"])  # threads start again and find what was queued in vain
    assert large.read("k") == pattern(LARGE)
    assert large.read("small") == b"small"
    assert large.check() == []


def test_call_that_was_queued_in_vain_is_made_once(helpers: Helpers, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    with monkeypatch.context() as patch:
        without_threads(patch)
        assert helpers.start(made.append, 1).done()
    helpers.start(made.append, 2).result()
    helpers.close()
    assert made == [1, 2]


def test_error_of_a_helper_is_raised_where_its_result_is_asked_for(helpers: Helpers) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        helpers.start(fail).result()


class Late(Future[Any]):
    """Makes its call only when somebody wants the result."""

    def __init__(self, call: Callable[..., Any], *arguments: object) -> None:
        super().__init__()
        self._call = lambda: call(*arguments)

    def result(self, timeout: float | None = None) -> Any:
        if not self.done():
            self.set_result(self._call())
        return super().result(timeout)


def test_header_is_written_only_after_its_extent_was_doomed(
    store: BlockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    intend, pwrite, flush = BlockIndex.intend, os.pwrite, os.fdatasync

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> Any:
            result = call(*arguments)
            steps.append(name)
            return result

        return wrapper

    monkeypatch.setattr(Helpers, "start", lambda _self, call, *arguments: Late(call, *arguments))
    monkeypatch.setattr(BlockIndex, "intend", noted("doom", intend))
    monkeypatch.setattr(os, "pwrite", noted("write", pwrite))
    monkeypatch.setattr(os, "fdatasync", noted("flush", flush))
    store.write("k", [b"data"])
    assert steps == ["write", "flush", "doom", "write", "write", "flush"]  # data; header and mark


def test_failed_doom_gives_the_room_back(store: BlockStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write("k", [b"old"])
    before = store.info()

    def fail(self: BlockIndex, *_: Any) -> None:
        error = sqlite3.OperationalError("injected")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        with self._transaction():
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(BlockIndex, "intend", fail)
        with pytest.raises(CapacityExceeded, match=r"injected.*key 'k'"):
            store.write("k", [b"new"])
        patch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "medium")))
        with pytest.raises(CapacityExceeded, match="injected"):  # both failed: there is nothing to undo
            store.write("k", [b"new"])
    assert store.info() == before
    assert store.read("k") == b"old"
    store.write("k", [b"new"])
    assert store.check() == []


def test_row_is_read_again_after_a_commit_that_failed(
    store: BlockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("k", [b"old"])
    store.stat("k")
    with monkeypatch.context() as patch:
        patch.setattr(BlockIndex, "_insert", lambda *_: (_ for _ in ()).throw(sqlite3.OperationalError("x")))
        with pytest.raises(Unavailable):
            store.write("k", [b"newer"])
    assert store.stat("k").nbytes == 3
    assert store.read("k") == b"old"


def test_rows_that_are_remembered_are_bounded(store: BlockStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiering.stores.block_index._RECENT", 2)
    for key in "abc":
        store.write(key, [key.encode()])
    for _ in range(2):
        assert [store.read(key) for key in "abc"] == [b"a", b"b", b"c"]
        assert len(store._index._recent) <= 2
    store.delete("c")
    assert not store.exists("c")
