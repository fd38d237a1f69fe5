"""File store on disks and servers that fail: a typed error, the old object, and nothing else left."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiering.errors import CapacityExceeded, Conflict, TieringError, Unavailable, UsageError
from tiering.stores import file, file_systems, file_tree
from tiering.stores.file import FileStore

BIG = 9 << 20


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore("file", tmp_path / "root")


def temps(store: FileStore) -> list[Path]:
    return sorted(store.root.rglob(".tmp-*"))


def failing(number: int, times: int = 1 << 30) -> Callable[..., Any]:
    """A call of the system that fails, the first `times` times."""

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        left = [times]

        def call(*arguments: Any, **options: Any) -> Any:
            if left[0]:
                left[0] -= 1
                raise OSError(number, os.strerror(number))
            return real(*arguments, **options)

        return call

    return wrap


@pytest.mark.parametrize("nbytes", [9, BIG])
@pytest.mark.parametrize("call", ["open", "dup", "write", "fdatasync", "rename", "link", "close"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EMFILE])
def test_write_that_fails_leaves_the_old_object_and_nothing_else(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, call: str, number: int, nbytes: int
) -> None:
    store.write("old", [b"old"])
    key, if_absent = ("new", True) if call == "link" else ("old", False)
    names = ["write", "pwrite"] if call == "write" else [call]
    with monkeypatch.context() as patched:
        for name in names:
            real = getattr(os, name)
            wrapped = failing(number)(real)

            def one(*a: Any, real: Any = real, wrapped: Any = wrapped, name: str = name, **o: Any) -> Any:
                if name == "open" and not a[1] & os.O_CREAT:
                    return real(*a, **o)
                if name == "close":
                    writable = Path(f"/proc/self/fd/{a[0]}").readlink().name.startswith(".tmp-")
                    real(*a)
                    return wrapped() if writable else None
                return wrapped(*a, **o)

            patched.setattr(os, name, one)
        with pytest.raises(TieringError) as caught:
            store.write(key, [bytes(nbytes)], if_absent=if_absent)
    assert type(caught.value) is (CapacityExceeded if number == errno.ENOSPC else Unavailable)
    assert caught.value.tier == "file"
    assert ("ulimit -n" in str(caught.value)) == (number == errno.EMFILE)
    assert [info.key for info in store.list()] == ["old"]
    assert store.read("old") == b"old"
    assert temps(store) == []
    store.write(key, [b"again"])
    assert store.read(key) == b"again"


@pytest.mark.parametrize("nbytes", [9, BIG])
def test_sync_that_failed_is_not_tried_again_on_the_same_file(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, nbytes: int
) -> None:
    synced = []

    def sync(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        if len(synced) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", sync)
    with pytest.raises(Unavailable):
        store.write("k", [bytes(nbytes)])
    assert len(synced) == 1
    with (store.root / "holds the inode's number").open("wb"):
        store.write("k", [bytes(nbytes)])
    assert len(synced) == 2


def test_full_disk_is_told_before_a_byte_is_written(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: Any) -> int:
        pytest.fail("bytes were written")

    stats = os.statvfs(store.root.parent)
    for call in ("write", "pwrite"):
        monkeypatch.setattr(os, call, write)
    monkeypatch.setattr(file._LIBC, "fallocate", lambda *_: pytest.fail("room was claimed of all others"))

    monkeypatch.setattr(file, "total_bytes", lambda _buffers: stats.f_blocks * stats.f_frsize * 2)
    with pytest.raises(CapacityExceeded):
        store.write("k", [b"x"])
    assert list(store.root.iterdir()) == []


def test_file_system_that_cannot_preallocate_is_written_to(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    class Libc:
        @staticmethod
        def fallocate(*arguments: Any) -> int:
            tried.append(arguments)
            ctypes.set_errno(errno.EINTR if len(tried) == 1 else errno.EOPNOTSUPP)
            return -1

    monkeypatch.setattr(file, "_LIBC", Libc)
    store.write("k", [b"bytes"])
    assert store.read("k") == b"bytes"
    assert len(tried) == 2


@pytest.mark.parametrize(
    ("call", "error", "if_absent"), [("link", FileExistsError, True), ("rename", FileNotFoundError, False)]
)
def test_answer_that_was_lost_is_known_for_success(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, call: str, error: type[OSError], if_absent: bool
) -> None:
    real = getattr(os, call)

    def lost(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        number = errno.EEXIST if error is FileExistsError else errno.ENOENT
        raise error(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, lost)
        store.write("k", [b"mine"], if_absent=if_absent)
    assert store.read("k") == b"mine"
    with pytest.raises(Conflict):
        store.write("k", [b"later"], if_absent=True)
    assert temps(store) == []


def test_link_that_another_won_is_a_conflict(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link

    def overtaken(*arguments: Any, **options: Any) -> None:
        (store.root / "k").write_bytes(b"theirs")
        real(*arguments, **options)

    monkeypatch.setattr(os, "link", overtaken)
    with pytest.raises(Conflict):
        store.write("k", [b"mine"], if_absent=True)
    assert store.read("k") == b"theirs"
    assert temps(store) == []


READS: list[Callable[[FileStore], object]] = [
    lambda store: store.read("a/k"),
    lambda store: store.stat("a/k"),
    lambda store: list(store.list("a")),
]


@pytest.mark.parametrize("number", range(3))
def test_stale_handle_is_opened_again_a_few_times(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store.write("a/k", [b"bytes"])
    expected = READS[number](store)
    for times in (1, 3, 1 << 30):
        with monkeypatch.context() as patched:
            patched.setattr(os, "fstat", failing(errno.ESTALE, times)(os.fstat))
            patched.setattr(file_tree, "_names", failing(errno.ESTALE, times)(file_tree._names))
            if times < 4:
                assert READS[number](store) == expected
            else:
                with pytest.raises(Unavailable):
                    READS[number](store)


def test_write_begins_anew_after_a_stale_handle_but_not_once_its_name_may_be_given(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", failing(errno.ESTALE, times=2)(os.fdatasync))
        store.write("k", [b"bytes"], if_absent=True)
    assert store.read("k") == b"bytes"
    with monkeypatch.context() as patched:
        patched.setattr(os, "link", failing(errno.ESTALE, times=1)(os.link))
        with pytest.raises(Unavailable):
            store.write("other", [b"bytes"], if_absent=True)
    assert [info.key for info in store.list()] == ["k"]
    assert temps(store) == []


def test_file_system_that_cannot_be_seen_is_a_typed_error(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: Path) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(store.root))

    monkeypatch.setattr(file_systems, "_opened", refuse)
    for ask in (store.free_bytes, store.is_volatile):
        with pytest.raises(UsageError, match="Permission denied at"):
            ask()


def test_free_bytes_is_what_this_user_may_use(store: FileStore) -> None:
    stats = os.statvfs(store.root.parent)
    free = store.free_bytes()
    assert free is not None
    assert abs(free - stats.f_bavail * stats.f_frsize) < 1 << 33  # others write, too
    assert free <= stats.f_blocks * stats.f_frsize
