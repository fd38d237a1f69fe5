"""Locks that all processes of a node share: each is a file that one of them at a time holds.

Invariant: a lock is the kernel's (flock): it ends with its process, however that ends; nothing stale remains.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_POLL_SECONDS: Final = 0.02


@contextmanager
def locked(path: Path, wait_seconds: float) -> Iterator[bool]:
    """Hold the lock of a file, made if need be; yields whether it could be had in time."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + wait_seconds
    try:
        while not (held := try_lock(fd)) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        try:
            yield held
        finally:
            if held:
                fcntl.flock(fd, fcntl.LOCK_UN)  # a child forked meanwhile holds this descriptor too
    finally:
        os.close(fd)


def try_lock(fd: int) -> bool:
    """Take the lock of an open file if nobody has it; whether it is ours now."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(fd: int) -> bool:
    """Whether one who opened the file elsewhere holds its lock; those who ask do not disturb each other."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False
