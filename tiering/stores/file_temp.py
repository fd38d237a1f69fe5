"""Names and locks of unfinished writes, so that those of dead writers, and no others, can be swept.

Invariant: a temporary file is swept only when its writer is proven dead. On a file system that one kernel
alone manages the proof is its lock, which the kernel frees when a process ends. Elsewhere (NFS, SMB, FUSE,
Lustre and all that is not known) a lock may reach no further than the machine that took it, so it is not
believed: there the name says who writes, and only a process of this boot and pid namespace can be seen to
have ended. What a crash of another machine leaves there is told as stray and stays until somebody who knows
deletes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from functools import lru_cache
from typing import Final

from tiering import process
from tiering.keys import TEMP_PREFIX
from tiering.process import ProcessId
from tiering.stores import file_systems

_SEPARATOR: Final = "~"


def new_name(*, believed: bool) -> str:
    """A name for an unfinished write of this process."""
    owner = "" if believed else _owner(os.getpid()) + _SEPARATOR
    return f"{TEMP_PREFIX}{owner}{secrets.token_hex(8)}"


def create(folder: int, name: str, *, believed: bool) -> int | None:
    """Create a file, locked where that says something; None if it or its folder was removed by then."""
    try:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except FileNotFoundError:
        return None
    try:
        if not believed:
            return fd
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def sweep(folder: int, name: str) -> bool:
    """Remove a temporary file whose writer is dead; whether it did."""
    owner = _owner_of(name)
    if owner and not owner.is_dead():
        return False
    try:
        fd = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:  # published, or removed by its writer
        return False
    try:
        if file_systems.locks_are_believed(fd):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif not owner:
            return False
        os.unlink(name, dir_fd=folder)
    except OSError:  # locked: its writer lives
        return False
    finally:
        os.close(fd)
    return True


def stray_bytes(folder: int, name: str) -> int | None:
    """Length of a temporary file of which it cannot be known whether its writer lives; else None."""
    owner = _owner_of(name)
    if owner and (owner.is_alive() or owner.is_dead()):
        return None
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:  # published, or removed by its writer
        return None
    try:
        return os.fstat(fd).st_size if owner or not file_systems.locks_are_believed(fd) else None
    finally:
        os.close(fd)


@lru_cache(maxsize=1)
def _owner(_pid: int) -> str:
    """Who this process is, found out once for it and once for each child."""
    return process.current().text().replace("/", _SEPARATOR)


def _owner_of(name: str) -> ProcessId | None:
    with contextlib.suppress(ValueError):
        return ProcessId.parse(
            name.removeprefix(TEMP_PREFIX).rpartition(_SEPARATOR)[0].replace(_SEPARATOR, "/")
        )
    return None
