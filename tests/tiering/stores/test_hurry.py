"""Reads in a hurry: past the page cache where nothing is in it, the same bytes, and whatever is refused."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conformance.patterns import pattern
from tests.corpora import forget, forget_trials, has_a_way_past_the_page_cache, open_below
from tiering.errors import Corrupt, Unavailable
from tiering.stores import direct, hurry
from tiering.stores.file import FileStore
from tiering.stores.pages import PAGE_BYTES, aligned_buffer, copy
from tiering.stores.scatter import Scatter, vectors

KIB = 1 << 10
NBYTES = 2048 * KIB + 5
ROW_BYTES = 2 * KIB + 2


@pytest.fixture(autouse=True)
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Devices that are not read in a hurry: none at first. Skips where this one cannot be."""
    if not has_a_way_past_the_page_cache(tmp_path):
        pytest.skip(
            "this kernel does not say what is cached, or there is no O_DIRECT here, or all is in memory"
        )
    monkeypatch.setattr(hurry, "_CACHED_ONE_IN", 1 << 60)
    return forget_trials(monkeypatch)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    """One object, `k`."""
    made = FileStore("disk", tmp_path)
    made.write("k", [pattern(NBYTES)])
    return made


@pytest.fixture
def path(store: FileStore) -> Path:
    """Its file, of which nothing is cached."""
    path = store.root / "k"
    forget(path)
    return path


def is_cached(path: Path, offset: int = 0, nbytes: int = NBYTES) -> bool:
    with path.open("rb") as file:
        found = hurry.is_cached(file.fileno(), offset, nbytes)
    assert found is not None
    return found


def buffers(nbytes: int) -> Iterator[memoryview]:
    """On a page of its own, and not."""
    yield aligned_buffer(nbytes)
    yield memoryview(bytearray(nbytes + 3))[3:]


@pytest.mark.parametrize("offset", [0, 1, PAGE_BYTES, 3 * PAGE_BYTES + 17])
@pytest.mark.parametrize("nbytes", [128 * KIB, 128 * KIB + 1, 1024 * KIB - 4, 2 * KIB * KIB - 16 * KIB])
def test_hurried_read_gives_the_bytes_and_caches_nothing(
    store: FileStore, path: Path, offset: int, nbytes: int
) -> None:
    read, wanted = store.reader("k"), pattern(NBYTES)[offset : offset + nbytes]
    for buffer in buffers(nbytes):
        with hurry.hurry():
            read(offset, buffer)
        assert buffer == wanted
    assert not is_cached(path, offset, 1)
    (unaligned,) = itertools.islice(buffers(nbytes), 1, None)
    read(offset, unaligned)
    assert unaligned == wanted
    assert is_cached(path, offset, nbytes)


@pytest.mark.parametrize("offset", [0, 7, 5 * PAGE_BYTES])
def test_hurried_rows_come_to_their_places(store: FileStore, path: Path, offset: int) -> None:
    rows = np.zeros((100, ROW_BYTES), np.uint8)
    turn = np.random.default_rng(1).permutation(100)
    begin = rows.__array_interface__["data"][0]
    with hurry.hurry():
        store.reader("k")(offset, Scatter(vectors(begin + turn * ROW_BYTES, ROW_BYTES), ROW_BYTES))
    assert rows[turn].tobytes() == pattern(NBYTES)[offset : offset + rows.nbytes]
    assert not is_cached(path, offset, 1)


def test_hurried_read_of_what_is_cached_opens_nothing(store: FileStore, path: Path) -> None:
    path.read_bytes()
    read = store.reader("k")
    with hurry.hurry():
        read(0, aligned_buffer(512 * KIB))
        assert open_below(store.root) == 1
        forget(path)
        for _ in range(hurry._TRUSTED):  # its neighbours are taken for cached, and so they are from now on
            read(512 * KIB, aligned_buffer(512 * KIB))
            assert open_below(store.root) == 1
        forget(path)
        read(0, aligned_buffer(512 * KIB))
    assert open_below(store.root) == 2
    assert not is_cached(path, 0, 1)
    del read
    gc.collect()
    assert open_below(store.root) == 0


def test_one_of_some_hurried_reads_goes_through_the_page_cache(
    store: FileStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hurry, "_CACHED_ONE_IN", 3)
    monkeypatch.setattr(hurry, "_turn", itertools.count(1))
    read, buffer = store.reader("k"), aligned_buffer(256 * KIB)
    with hurry.hurry():
        for number in range(1, 7):
            forget(path)
            read(0, buffer)
            assert is_cached(path, 0, 1) == (number % 3 == 0)
            assert buffer == pattern(NBYTES)[: 256 * KIB]


def test_short_reads_are_never_hurried(store: FileStore, path: Path) -> None:
    with hurry.hurry():
        store.reader("k")(0, aligned_buffer(hurry.LEAST_BYTES - 1))
    assert is_cached(path, 0, hurry.LEAST_BYTES - 1)


def test_hurry_is_of_one_thread_and_ends() -> None:
    found = []
    with hurry.hurry():
        thread = threading.Thread(target=lambda: found.append(hurry.hurries()))
        thread.start()
        thread.join()
        with hurry.hurry(on=False):
            found.append(hurry.hurries())
        found.append(hurry.hurries())
    with pytest.raises(KeyError), hurry.hurry():
        raise KeyError
    assert [*found, hurry.hurries()] == [False, False, True, False]


@pytest.mark.parametrize("offset", [0, PAGE_BYTES, 2 * KIB * KIB - 128 * KIB, NBYTES - 256 * KIB, NBYTES])
def test_hurried_read_beyond_the_end_says_corrupt(store: FileStore, path: Path, offset: int) -> None:
    for buffer in buffers(max(128 * KIB, NBYTES + 1 - offset)):
        with hurry.hurry(), pytest.raises(Corrupt, match=f"object of {NBYTES} bytes"):
            store.reader("k")(offset, buffer)


def test_hurried_read_finds_what_another_wrote_a_moment_ago(store: FileStore, path: Path) -> None:
    with path.open("r+b") as file:  # into the page cache alone
        file.write(b"X" * 256 * KIB)
        file.flush()
        buffer = aligned_buffer(512 * KIB)
        with hurry.hurry():
            store.reader("k")(0, buffer)
    assert buffer == b"X" * 256 * KIB + pattern(NBYTES)[256 * KIB : 512 * KIB]


@pytest.mark.parametrize(
    ("call", "code", "stays_open"),
    [
        ("open", errno.EINVAL, False),
        ("open", errno.ENOENT, False),  # no /proc
        ("open", errno.EMFILE, True),
        ("preadv", errno.EINVAL, False),
    ],
)
def test_way_that_is_refused_costs_speed_alone(
    store: FileStore,
    path: Path,
    closed: set[int],
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    code: int,
    stays_open: bool,
) -> None:
    real = getattr(os, call)
    refused = []

    def refusing(what: Any, *arguments: Any, **options: Any) -> Any:
        if "/proc/self" in str(what) or (call == "preadv" and direct._is_direct(what)):
            refused.append(what)
            raise OSError(code, os.strerror(code))
        return real(what, *arguments, **options)

    read, buffer = store.reader("k"), aligned_buffer(256 * KIB)
    read(0, buffer[:1])
    forget(path)
    with hurry.hurry(), monkeypatch.context() as patched:
        patched.setattr(os, call, refusing)
        for _ in range(2):
            copy(buffer, memoryview(bytes(buffer.nbytes)))
            read(0, buffer)
            assert buffer == pattern(NBYTES)[: 256 * KIB]
            forget(path)
    assert len(refused) == 1 + stays_open
    assert (path.stat().st_dev in closed) != stays_open


def test_disk_that_fails_a_hurried_read_is_unavailable(
    store: FileStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(fd: int, *_: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", failing)
    with hurry.hurry(), pytest.raises(Unavailable, match="Input/output error"):
        store.reader("k")(0, aligned_buffer(256 * KIB))


def test_kernel_that_does_not_say_what_is_cached_is_asked_once(
    store: FileStore, path: Path, closed: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hurry, "_CACHESTAT", -1)
    read, buffer = store.reader("k"), aligned_buffer(256 * KIB)
    with hurry.hurry():
        read(0, buffer)
    assert buffer == pattern(NBYTES)[: 256 * KIB]
    assert closed == {path.stat().st_dev}


def test_hurried_read_keeps_to_the_page_cache_where_direct_io_has_lost(
    store: FileStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct.trial(0, "read").refuse()
    with hurry.hurry():
        store.reader("k")(0, aligned_buffer(256 * KIB))
    assert is_cached(path, 0, 256 * KIB)
