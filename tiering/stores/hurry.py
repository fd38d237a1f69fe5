"""Blocks that somebody waits for: read from the page cache if they are there, else past it.

Invariant: what is read is the same either way; where the way past the page cache is closed, only speed is
lost.

To bring a block into the page cache takes a processor several times as long as to read it from an NVMe drive:
its pages are found, entered one by one, and copied from. So a thread that says that it hurries reads what is
not cached directly (O_DIRECT) into memory. Blocks that nobody waits for go through the page cache, where the
next epoch finds them, and so does one of eight that somebody waits for: of a corpus that fits the memory each
epoch adds to it, however fast it is read.

Only from Linux 6.5 on, which says what is cached (cachestat(2)). On much older ones a fork at the same
instant could leave direct I/O with memory that is no longer this process's.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import mmap
import os
import threading
from collections.abc import Iterator
from typing import Final

import numpy as np

from tiering.stores import direct
from tiering.stores.pages import PAGE_BYTES, address_of, borrowed, copy, round_up
from tiering.stores.scatter import Scatter

LEAST_BYTES: Final = 128 << 10
"""Shorter reads go through the page cache: those are cheap, and often of an index that is read again."""

_CACHED_ONE_IN: Final = 8
_TRUSTED: Final = 3  # reads after one that was cached: their neighbours are as a rule
_LOOKED_AT_BYTES: Final = 1 << 20  # of a longer read its begin says whether it is cached
_CACHESTAT: Final = 451  # on every processor; libraries have no function for it yet
_syscall: Final = ctypes.PyDLL(None).syscall  # keeps the interpreter: the call takes less than to give it up
_syscall.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint]
_syscall.restype = ctypes.c_long


class _Thread(threading.local):
    hurries = False
    page: memoryview | None = None


_thread = _Thread()
_turn = itertools.count(1)
_closed: set[int] = set()  # devices (`st_dev`) whose files are not read past the page cache


@contextlib.contextmanager
def hurry(*, on: bool = True) -> Iterator[None]:
    """Say whether somebody waits for what this thread reads meanwhile."""
    before, _thread.hurries = _thread.hurries, on
    try:
        yield
    finally:
        _thread.hurries = before


def hurries() -> bool:
    """Whether somebody waits for what this thread reads."""
    return _thread.hurries


class Descriptor:
    """An open file; closed when nobody refers to it any more."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)


class HurriedFile:
    """An open file that is read in a hurry; usable from many threads.

    Args:
        fd: the file, open for as long as this is used.
    """

    __slots__ = ("_device", "_direct", "_fd", "_trusted")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._device = os.fstat(fd).st_dev
        self._direct: Descriptor | None = None  # of its own: O_DIRECT is a state of the open file
        self._trusted = 0  # how many of the next reads are taken for cached

    def read_into(self, offset: int, buffer: memoryview | Scatter) -> int:
        """Fill `buffer` from `offset` on; returns how much of it, less only where the file ends.

        Raises:
            OSError: the file cannot be read.
        """
        if self._goes_past(offset, buffer.nbytes) and self._read_past(offset, buffer):
            return buffer.nbytes
        return direct.read_into(self._fd, offset, buffer)

    def _goes_past(self, offset: int, nbytes: int) -> bool:
        if self._trusted > 0:
            self._trusted -= 1
            return False
        if self._device in _closed or direct.trial(self._device, "read").verdict is False:
            return False
        cached = is_cached(self._fd, offset, min(nbytes, _LOOKED_AT_BYTES))
        if cached is None:
            _closed.add(self._device)
        elif cached:
            self._trusted = _TRUSTED
        return cached is False and next(_turn) % _CACHED_ONE_IN != 0

    def _read_past(self, offset: int, buffer: memoryview | Scatter) -> bool:
        """Whether all of `buffer` could be filled past the page cache."""
        opened = self._direct or self._open_direct()
        if opened is None:
            return False
        self._direct = opened
        try:
            return _read_direct(opened.fd, offset, buffer)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            _closed.add(self._device)  # refused only when it is used
            return False

    def _open_direct(self) -> Descriptor | None:
        """The same file once more, whatever its name holds now."""
        try:
            return Descriptor(os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_DIRECT))
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):  # those pass
                _closed.add(self._device)
            return None


def is_cached(fd: int, offset: int, nbytes: int) -> bool | None:
    """Whether all of a range is in the page cache; None where the kernel does not tell."""
    found = (ctypes.c_uint64 * 5)()  # struct cachestat: first the number of cached pages
    if _syscall(_CACHESTAT, fd, (ctypes.c_uint64 * 2)(offset, nbytes), found, 0) != 0:
        return None
    return bool(found[0] > (offset + nbytes - 1) // PAGE_BYTES - offset // PAGE_BYTES)


def _read_direct(fd: int, offset: int, buffer: memoryview | Scatter) -> bool:
    """Whether it could be read whole: not so where the file ends before."""
    skip = offset % PAGE_BYTES
    if isinstance(buffer, memoryview) and skip == 0 and address_of(buffer) % PAGE_BYTES == 0:
        whole = buffer.nbytes // PAGE_BYTES * PAGE_BYTES
        last = _thread.page = _thread.page or memoryview(mmap.mmap(-1, PAGE_BYTES))
        if os.preadv(fd, [buffer[:whole], last], offset) < buffer.nbytes:
            return False
        buffer[whole:] = last[: buffer.nbytes - whole]
        return True
    with borrowed(round_up(skip + buffer.nbytes)) as bounce:
        if os.preadv(fd, [bounce], offset - skip) < skip + buffer.nbytes:
            return False
        if isinstance(buffer, Scatter):
            buffer.copy(np.frombuffer(bounce, np.uint8, buffer.nbytes, skip))
        else:
            copy(buffer, bounce[skip : skip + buffer.nbytes])
    return True
