"""What the kernel tells of the file system that something lies on, by its type (statfs(2))."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_TMPFS: Final = 0x01021994
_RAMFS: Final = 0x858458F6
_ONE_KERNEL: Final = {
    0xEF53,  # ext2, ext3, ext4
    0x58465342,  # xfs
    0x9123683E,  # btrfs
    _TMPFS,
    _RAMFS,
    0xF2F52010,  # f2fs
    0x2FC12FC1,  # zfs
    0xCA451A4E,  # bcachefs
    0x794C7630,  # overlayfs
}
"""File systems whose flock every process that can write there respects."""

_STATFS_BYTES: Final = 256  # more than any machine's struct, which begins with the type
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def locks_are_believed(fd: int) -> bool:
    """Whether a flock on the file system of an open file is seen by everybody who can write there."""
    return _type_of(fd) in _ONE_KERNEL


def is_memory(path: Path) -> bool:
    """Whether `path` is, or would be made, on a file system that is gone when the machine stops.

    Raises:
        OSError: that cannot be seen.
    """
    with _opened(path) as fd:
        return _type_of(fd) in (_TMPFS, _RAMFS)


def free_bytes(path: Path) -> int:
    """What every user may still write where `path` is, or would be made.

    Raises:
        OSError: that cannot be seen.
    """
    with _opened(path) as fd:
        stats = os.fstatvfs(fd)
    return stats.f_bavail * stats.f_frsize


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor of `path`, or of the nearest folder above it that is there."""
    fd = None
    while fd is None:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            path = path.absolute().parent
    try:
        yield fd
    finally:
        os.close(fd)


def _type_of(fd: int) -> int | None:
    found = ctypes.create_string_buffer(_STATFS_BYTES)
    failed = _LIBC.fstatfs(fd, found)
    return None if failed else int(ctypes.c_ulong.from_buffer(found).value)
