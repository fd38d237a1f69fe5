"""Direct I/O: the same bytes as through the page cache, in every shape, and whatever is refused."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conformance.patterns import pattern
from tests.corpora import forget
from tiering.errors import CapacityExceeded, Unavailable
from tiering.stores import direct
from tiering.stores.file import FileStore
from tiering.stores.file_systems import is_memory
from tiering.stores.pages import PAGE_BYTES, PIECE_BYTES, aligned_buffer, is_resident

MIB = 1 << 20
SIZES = [MIB, MIB + 1, MIB + 4095, PIECE_BYTES, PIECE_BYTES + 4097, 2 * PIECE_BYTES + 5]


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore("file", tmp_path / "root")


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> dict[str, direct.Trial]:
    """Direct I/O has won on every file system; skips where there is none."""
    trials = {"read": direct.Trial(), "write": direct.Trial()}
    for trial in trials.values():
        trial.verdict = True
    monkeypatch.setattr(direct, "trial", lambda _device, way: trials[way])
    return trials


@pytest.fixture(autouse=True)
def flags(tmp_path: Path) -> None:
    if is_memory(tmp_path):
        pytest.skip("the folders of these tests are in memory, where nothing goes past it")
    fd = os.open(tmp_path, os.O_RDWR | os.O_TMPFILE)
    try:
        if not direct._set_direct(fd, on=True):
            pytest.skip("no O_DIRECT here")
    finally:
        os.close(fd)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, call: str) -> Iterator[dict[bool, int]]:
    """Bytes that `call` moves, direct (True) and not."""
    moved = {True: 0, False: 0}
    real = getattr(os, call)

    def counting(fd: int, *arguments: Any) -> int:
        done: int = real(fd, *arguments)
        moved[direct._is_direct(fd)] += done
        return done

    with monkeypatch.context() as patched:
        patched.setattr(os, call, counting)
        yield moved


@pytest.mark.parametrize("nbytes", SIZES)
@pytest.mark.parametrize("cuts", ["whole", "uneven", "huge pages"])
def test_write_direct_is_what_the_page_cache_reads(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, nbytes: int, cuts: str
) -> None:
    data = pattern(nbytes)
    buffers: list[bytes | memoryview] = [data]
    if cuts == "uneven":
        buffers = [data[:1], b"", data[1:5000], data[5000:]]
    elif cuts == "huge pages":
        buffers = [aligned_buffer(nbytes)]
        memoryview(buffers[0])[:] = data
    with counted(monkeypatch, "pwrite") as moved:
        store.write("k", buffers)
    assert moved == {True: nbytes // PAGE_BYTES * PAGE_BYTES, False: nbytes % PAGE_BYTES}
    assert (store.root / "k").read_bytes() == data


@pytest.mark.parametrize("offset", [0, 1, 4096, PIECE_BYTES - 7])
@pytest.mark.parametrize("nbytes", [direct.READ_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES])
@pytest.mark.parametrize("aligned", [True, False])
def test_read_into_direct_fills_any_buffer(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, offset: int, nbytes: int, aligned: bool
) -> None:
    data = pattern(3 * PIECE_BYTES + 9)
    store.write("k", [data])
    buffer = aligned_buffer(nbytes) if aligned else memoryview(bytearray(nbytes + 1))[1:]
    with counted(monkeypatch, "preadv") as moved:
        store.read_into("k", offset, buffer)
    assert bytes(buffer) == data[offset : offset + nbytes]
    assert moved[True] >= nbytes
    assert not moved[False]


def test_read_of_what_was_written_direct_comes_from_the_medium(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pattern(2 * PIECE_BYTES)
    store.write("k", [data])
    with counted(monkeypatch, "preadv") as moved:
        assert store.read("k") == data
    assert moved == {True: len(data), False: 0}


def test_read_of_what_is_in_the_page_cache_and_of_blocks_stays_there(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pattern(2 * PIECE_BYTES)
    store.write("k", [data])
    with counted(monkeypatch, "preadv") as moved:
        store.read_into("k", 0, memoryview(bytearray(MIB)))
        assert moved == {True: 0, False: MIB}
        (store.root / "k").read_bytes()
        assert store.read("k") == data
    assert moved == {True: 0, False: MIB + len(data)}


def test_small_object_is_written_through_the_page_cache(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counted(monkeypatch, "write") as moved:
        store.write("k", [bytes(direct.WRITE_BYTES - 1)])
    assert moved == {True: 0, False: direct.WRITE_BYTES - 1}


def test_file_system_without_direct_io_is_used_without(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, always: dict[str, direct.Trial]
) -> None:
    real = fcntl.fcntl

    def refusing(fd: int, command: int, flags: int = 0) -> int:
        if command == fcntl.F_SETFL and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(fd, command, flags)

    monkeypatch.setattr(fcntl, "fcntl", refusing)
    data = pattern(PIECE_BYTES + 3)
    store.write("k", [data])
    forget(store.root / "k")
    assert store.read("k") == data
    assert {way: trial.verdict for way, trial in always.items()} == {"read": False, "write": False}


@pytest.mark.parametrize("after", [0, 1])
def test_direct_io_that_is_refused_when_it_is_used_goes_on_through_the_page_cache(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    left = {"pwrite": after, "preadv": after}

    def refusing(call: str) -> None:
        real = getattr(os, call)

        def called(fd: int, *arguments: Any) -> Any:
            if direct._is_direct(fd):
                if not left[call]:
                    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
                left[call] -= 1
            return real(fd, *arguments)

        monkeypatch.setattr(os, call, called)

    refusing("pwrite")
    refusing("preadv")
    data = pattern(2 * PIECE_BYTES + 3)
    store.write("k", [data])
    forget(store.root / "k")
    assert store.read("k") == data
    assert (store.root / "k").read_bytes() == data


@pytest.mark.parametrize("limit", [MIB + 100, PIECE_BYTES + 4096])
def test_direct_write_that_is_cut_by_a_limit_is_refused(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr("tiering.stores.file._preallocate", lambda _fd, _nbytes: None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(CapacityExceeded):
            store.write("k", [pattern(2 * PIECE_BYTES)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(store.root.iterdir()) == []


def test_direct_write_that_fails_leaves_nothing(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(Unavailable):
        store.write("k", [bytes(PIECE_BYTES)])
    assert list(store.root.iterdir()) == []


def take(trial: direct.Trial, seconds: dict[bool, float], clock: list[float], times: int) -> list[bool]:
    ways = []
    for _ in range(times):
        with trial.run(PIECE_BYTES) as way:
            clock[0] += seconds[way]
        ways.append(way)
    return ways


@pytest.mark.parametrize(("buffered_seconds", "winner"), [(2.0, True), (0.95, True), (0.5, False)])
def test_trial_keeps_direct_io_unless_the_page_cache_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, buffered_seconds: float, winner: bool
) -> None:
    clock = [0.0]
    monkeypatch.setattr(direct, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    trial = direct.Trial()
    with trial.run(PIECE_BYTES - 1) as way:  # too small to compare
        clock[0] += 1000
    assert way
    ways = take(trial, {True: 1.0, False: buffered_seconds}, clock, 9)
    assert ways == [True, False] * 3 + [winner] * 3


def test_trial_of_work_that_fails_learns_nothing() -> None:
    trial = direct.Trial()
    for _ in range(20):
        with pytest.raises(OSError, match="sick"), trial.run(PIECE_BYTES):
            raise OSError("sick")
    assert trial.verdict is None


def test_resident_tells_what_is_in_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(pattern(MIB))
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
        assert is_resident(fd, 4097, 100_000)
        assert is_resident(fd, 0, 2 * MIB)  # beyond its end
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert not is_resident(fd, 4097, 100_000)
    finally:
        os.close(fd)
