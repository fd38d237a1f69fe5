"""Jobs for children of the zygote in bad surroundings: another user, a full disk, no memory, a mad clock."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import resource
import time
from pathlib import Path
from typing import Any

from tests.faults import work
from tests.faults.jobs import find
from tests.faults.steps import one_by_one, typed_error_of
from tiering import graph
from tiering.stores.file import FileStore

NOBODY = 65534
CLONE_NEWNS, MS_RDONLY, MS_REMOUNT, MS_REC, MS_PRIVATE = 0x20000, 1, 32, 0x4000, 1 << 18  # Linux


def as_nobody(job: str, *arguments: Any) -> Any:
    """Do a job as a user whom permissions bind."""
    if not os.geteuid():
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    return find(job)(*arguments)


class PrivateDisk:
    """A tmpfs in a mount namespace of this process alone: gone with it, however it ends."""

    def __init__(self, folder: str, options: str) -> None:
        self._folder, self._libc = folder.encode(), ctypes.CDLL(None, use_errno=True)
        Path(folder).mkdir()
        self._do(self._libc.unshare(CLONE_NEWNS))
        self._do(self._libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
        self._do(self._libc.mount(b"tmpfs", self._folder, b"tmpfs", 0, options.encode()))

    def remount(self, options: str = "", *, read_only: bool = False) -> None:
        flags = MS_REMOUNT | (MS_RDONLY if read_only else 0)
        self._do(self._libc.mount(b"none", self._folder, None, flags, options.encode()))

    @staticmethod
    def _do(answer: int) -> None:
        if answer:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def can_mount(folder: str) -> bool:
    try:
        PrivateDisk(folder, "size=64k")
    except OSError:
        return False
    return True


def move_to_a_full_disk(source: str, folder: str, size: str, *facts: Any) -> str:
    """Move to a disk without room, then with; the error of the first."""
    disk, place = PrivateDisk(folder, f"size={size}"), f"{folder}/t"
    FileStore.free_bytes = lambda self: None  # type: ignore[method-assign]  # full in mid-move, not before
    told = typed_error_of("move_rows", source, place)
    assert not list(Path(folder).rglob(".tmp-*"))
    disk.remount("size=1m")
    assert work.move_again(source, place, *facts) == ("absent" if told else "whole")
    return told


def move_to_a_disk_that_becomes_read_only(source: str, folder: str, step: int, *facts: Any) -> list[Any]:
    """The disk is remounted read-only before the `step`-th creation of a file, then writable again."""
    disk, place, opened, left = PrivateDisk(folder, "size=1m"), f"{folder}/t", os.open, [step]

    def counted(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & os.O_CREAT and (str(path).startswith(folder) or "dir_fd" in options):
            left[0] -= 1
            if left[0] == 0:
                disk.remount(read_only=True)
        return opened(path, flags, *args, **options)

    graph._on_threads = one_by_one
    os.open = counted  # type: ignore[assignment]
    told = typed_error_of("move_rows", source, place)
    os.open = opened
    disk.remount()
    return [told, work.move_again(source, place, *facts), left[0] <= 0]


def with_memory(spare_bytes: int, job: str, *arguments: Any) -> str:
    """The error of a job whose process may take so many bytes of address space more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + spare_bytes, before[1]))
    try:
        return typed_error_of(job, *arguments)
    except MemoryError:
        return "MemoryError"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def with_clock(seed: int, job: str, *arguments: Any) -> Any:
    """Do a job while the wall clock jumps by years at each look, back and forward."""
    dice, real = random.Random(seed), time.time
    time.time = lambda: real() + dice.choice([-1, 1]) * dice.uniform(0, 1e9)
    time.time_ns = lambda: int(time.time() * 1e9)
    return find(job)(*arguments)


def forget_pages(place: str) -> list[int]:
    """Drop all files from the page cache; how many of their pages there were, and how many are left."""
    counts = [0, 0]
    for path in sorted(Path(place).rglob("*")):
        if path.is_file() and path.stat().st_size:
            with path.open("rb") as file:
                file.read()
                counts[0] += _resident(file)
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                counts[1] += _resident(file)
    return counts


def _resident(file: Any) -> int:
    """Pages of a file in the page cache."""
    pages = -(-os.fstat(file.fileno()).st_size // mmap.PAGESIZE)
    with mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as view:
        held = (ctypes.c_ubyte * pages)()
        address = ctypes.addressof(there := ctypes.c_char.from_buffer(view))
        answer = ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(view)), held)
        del there
    assert answer == 0
    return sum(byte & 1 for byte in held)
