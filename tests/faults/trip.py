"""Kills this very process before its n-th change of the disk, counted over everything that changes one.

Arming replaces functions of `os`, the engine's claims of room and positioned writes, and the statements of
SQLite: what the file and the block tier use to change anything.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from collections.abc import Callable
from typing import Any

from tiering.stores import block_index, block_stream, direct, file

CALLS = ("write", "fsync", "fdatasync", "link", "unlink", "rename", "mkdir", "rmdir", "posix_fallocate")


class Tripwire:
    """Counts steps; at the last one the process dies, after half of the write where it is `torn`."""

    def __init__(self, steps: int, torn: bool) -> None:
        self._left, self._torn = steps, torn
        self._lock = threading.Lock()

    def step(self, half: Callable[[], object] | None = None) -> None:
        """One change of the disk is about to happen."""
        with self._lock:
            if self._left == 0:
                if self._torn and half:
                    half()
                os.kill(os.getpid(), signal.SIGKILL)
            self._left -= 1

    def around(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, counted."""

        def call(*args: Any, **options: Any) -> Any:
            self.step()
            return real(*args, **options)

        return call


def arm(steps: int, torn: bool) -> None:
    """Let this process die before its change number `steps`, counted from 0."""
    wire = Tripwire(steps, torn)
    write, opened, connect = os.write, os.open, sqlite3.connect

    def write_step(fd: int, data: Any) -> int:
        wire.step(lambda: write(fd, memoryview(data)[: len(data) // 2]))
        return write(fd, data)

    def stepping(put: Callable[[int, int, memoryview], None]) -> Callable[[int, int, memoryview], None]:
        def put_step(fd: int, offset: int, view: memoryview) -> None:
            half = len(view) // 2 // block_stream.PAGE_BYTES * block_stream.PAGE_BYTES
            wire.step(lambda: put(fd, offset, view[:half]))
            put(fd, offset, view)

        return put_step

    def open_step(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            wire.step()
        return opened(path, flags, *args, **options)

    def connect_step(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*args, **options)
        connection.set_trace_callback(lambda _statement: wire.step())
        return connection

    for name in CALLS:
        setattr(os, name, wire.around(getattr(os, name)))
    os.write, os.open = write_step, open_step  # type: ignore[assignment]
    file._preallocate = wire.around(file._preallocate)
    for module in (block_stream, direct):
        module._put = stepping(module._put)
    block_index.sqlite3.connect = connect_step  # type: ignore[assignment]
