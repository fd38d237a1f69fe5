"""What a power cut may leave of a block volume and its index: records what both are told, then replays.

The true store runs; its calls of `os` on the volume and SQLite's of its VFS on the index are recorded in one
order. After a cut each file holds what was flushed, and of the later writes none, all, some, or some
sectors. A dropped flush is one that the medium never got: so a mutation of the store is a filter here.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiering.errors import TieringError
from tiering.stores.block import BlockStore
from tiering.stores.block_index import span_of
from tiering.stores.block_layout import DATA_START

POLICIES = ("nothing more", "all writes", "some writes", "some pages", "some sectors")
UNITS = {"some pages": 4096, "some sectors": 512}
VOLUME = "volume.img"

State = dict[str, bytes]


@dataclass(frozen=True)
class Event:
    what: str
    """write, cut (truncate), flush, or done (an operation returned)."""

    file: str = ""
    offset: int = 0
    data: bytes = b""
    label: str = ""
    """The operation; of a flush also which of the volume or of the index in it this is."""


class _Vfs(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_int),
        ("file_bytes", ctypes.c_int),
        ("path_bytes", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("open", ctypes.c_void_p),
    )


INT, PTR, TEXT, I64 = ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64
OPEN = ctypes.CFUNCTYPE(INT, PTR, TEXT, ctypes.POINTER(PTR), INT, PTR)
WRITE = ctypes.CFUNCTYPE(INT, PTR, PTR, INT, I64)
TRUNCATE = ctypes.CFUNCTYPE(INT, PTR, I64)
SYNC = ctypes.CFUNCTYPE(INT, PTR, INT)
METHODS = 19  # slots of sqlite3_io_methods, version 3
WRITE_SLOT, TRUNCATE_SLOT, SYNC_SLOT = 3, 4, 5


class Recorder:
    """Events of the volume and the index in `folder` while `recording`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[Event] = []
        self.operation = ""
        self.bad = range(0)
        """Bytes of the volume that the medium refuses to write."""

        self._flushes: dict[str, int] = {}
        self._lock = threading.RLock()
        self._kept: list[Any] = []  # what C code points to

    def log(self, what: str, file: str, offset: int = 0, data: bytes = b"") -> None:
        with self._lock:
            label = self.operation
            if what == "flush":
                kind = "volume" if file == VOLUME else "index"
                number = self._flushes[kind] = self._flushes.get(kind, 0) + 1
                label = f"{self.operation} {kind} {number}"
            self.events.append(Event(what, file, offset, data, label))

    @contextmanager
    def doing(self, operation: str) -> Iterator[None]:
        self.operation, self._flushes = operation, {}
        yield
        self.events.append(Event("done", label=operation))

    @contextmanager
    def recording(self) -> Iterator[None]:
        names = {"pwrite": self._pwrite, "fdatasync": self._fdatasync, "ftruncate": self._ftruncate}
        real = {name: getattr(os, name) for name in names}
        library = ctypes.CDLL(_sqlite3.__file__)
        library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
        vfs = library.sqlite3_vfs_find(None).contents
        opened = vfs.open
        try:
            for name, call in names.items():
                setattr(os, name, _after(real[name], call))
            os.pwrite = self._refusing(os.pwrite)
            self._kept.append(OPEN(self._opening(OPEN(opened))))
            vfs.open = ctypes.cast(self._kept[-1], PTR).value
            yield
        finally:
            vfs.open = opened
            for name, function in real.items():
                setattr(os, name, function)

    def _name(self, fd: int) -> str | None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        return path.name if path.parent == self.folder else None

    def _pwrite(self, count: int, fd: int, data: Any, offset: int) -> None:
        if name := self._name(fd):
            self.log("write", name, offset, bytes(memoryview(data)[:count]))

    def _fdatasync(self, _: None, fd: int) -> None:
        if name := self._name(fd):
            self.log("flush", name)

    def _ftruncate(self, _: None, fd: int, nbytes: int) -> None:
        if name := self._name(fd):
            self.log("cut", name, nbytes)

    def _refusing(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(fd: int, data: Any, offset: int) -> int:
            reached = range(max(offset, self.bad.start), min(offset + len(data), self.bad.stop))
            if reached and self._name(fd) == VOLUME:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(fd, data, offset)

        return call

    def _opening(self, real: Any) -> Callable[..., int]:
        def call(vfs: int, path: bytes | None, file: Any, flags: int, out: int) -> int:
            code: int = real(vfs, path, file, flags, out)
            if code == 0 and path and Path(os.fsdecode(path)).parent == self.folder:
                file[0] = self._watched(file[0], Path(os.fsdecode(path)).name)
            return code

        return call

    def _watched(self, methods: int, name: str) -> int:
        """A copy of the methods of an open file that records what it does."""
        table = (PTR * METHODS).from_buffer_copy((PTR * METHODS).from_address(methods))

        def replace(slot: int, kind: Any, note: Callable[..., None]) -> None:
            real = kind(table[slot])

            def call(file: int, *args: int) -> int:
                code: int = real(file, *args)
                assert code == 0
                note(*args)
                return code

            self._kept.append(kind(call))
            table[slot] = ctypes.cast(self._kept[-1], PTR).value

        replace(
            WRITE_SLOT,
            WRITE,
            lambda data, count, at: self.log("write", name, at, ctypes.string_at(data, count)),
        )
        replace(TRUNCATE_SLOT, TRUNCATE, lambda nbytes: self.log("cut", name, nbytes))
        replace(SYNC_SLOT, SYNC, lambda _flags: self.log("flush", name))
        self._kept.append(table)
        return ctypes.addressof(table)


def _after(real: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        result = real(*args)
        note(result, *args)
        return result

    return call


def left_over(
    start: dict[str, bytes], events: list[Event], policy: str, dice: random.Random
) -> dict[str, bytes]:
    """Files after `events` and a power cut."""
    files = {name: bytearray(data) for name, data in start.items()}
    waiting: dict[str, list[Event]] = {}
    for event in events:
        if event.what == "flush":
            for old in waiting.pop(event.file, []):
                _apply(files, old)
        elif event.what != "done":
            waiting.setdefault(event.file, []).append(event)
    for event in (event for file in waiting.values() for event in file):
        if policy in UNITS and event.what == "write":
            unit = UNITS[policy]
            for at in range(0, len(event.data), unit):
                if dice.random() < 0.5:
                    piece = event.data[at : at + unit]
                    _apply(files, Event("write", event.file, event.offset + at, piece))
        elif policy == "all writes" or (policy != "nothing more" and dice.random() < 0.5):
            _apply(files, event)
    return {name: bytes(data) for name, data in files.items()}


def _apply(files: dict[str, bytearray], event: Event) -> None:
    data = files.setdefault(event.file, bytearray())
    size = event.offset if event.what == "cut" else event.offset + len(event.data)
    data.extend(bytes(max(0, size - len(data))))
    if event.what == "cut":
        del data[size:]
    else:
        data[event.offset : size] = event.data


def violation(folder: Path, files: dict[str, bytes], allowed: list[State], *, lose_index: bool) -> str | None:
    """What is wrong with the store that opens on `files`; None when it holds one of the `allowed` states."""
    for file in folder.iterdir():
        if file.name not in files or lose_index:
            file.unlink()
    for name, data in files.items():
        if name == VOLUME or not lose_index:
            (folder / name).write_bytes(data)
    try:
        with BlockStore("cut", folder / VOLUME) as store:
            found = {info.key: bytes(store.read(info.key)) for info in store.list()}
            problems = [problem for problem in store.check() if problem.key]
            info = store.info()
    except TieringError as error:
        return f"{type(error).__name__}: {error}"
    if found not in allowed:
        return f"holds {sorted(found)}, not one of {[sorted(state) for state in allowed]}"
    used_bytes = DATA_START + info.retired_bytes + sum(span_of(len(data)) for data in found.values())
    if info.used_bytes != used_bytes:
        return "leaks space"
    return f"{problems}" if problems else None
