"""Memory for direct I/O and for large reads: buffers on huge pages, lent and reused, and their addresses.

Invariant: a buffer of `aligned_buffer` or `borrowed` starts on a 2 MiB boundary, so that O_DIRECT takes it
as it is. With 4 KiB pages direct I/O is slower than the page cache, with huge ones faster; and a fresh page
costs as much processor time as the copy into it, so what is borrowed is given back and lent again.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
from collections.abc import Iterator
from typing import Final

import numpy as np

from tiering.digest import Buffer

PAGE_BYTES: Final = 4096
HUGE_PAGE_BYTES: Final = 2 << 20
PIECE_BYTES: Final = 8 << 20
"""What direct I/O moves at a time, and the unit in which buffers are lent."""

_KEPT_BYTES: Final = 256 << 20
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_new_bytes: Final = ctypes.pythonapi.PyByteArray_FromStringAndSize
_new_bytes.restype = ctypes.py_object
_new_bytes.argtypes = [ctypes.c_char_p, ctypes.c_ssize_t]


def aligned_buffer(nbytes: int) -> memoryview:
    """A zeroed buffer on a 2 MiB boundary, of huge pages where the kernel has them."""
    area = mmap.mmap(-1, nbytes + HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without transparent huge pages
        area.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(area)
    start = -address_of(view) % HUGE_PAGE_BYTES
    return view[start : start + nbytes]


class _Pool:
    """Buffers that wait to be lent again, the longest unused first."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew, in a child of a fork: the lock may be held by a thread that is not there."""
        self._lock = threading.Lock()
        self._kept: list[memoryview] = []

    def take(self, nbytes: int) -> memoryview:
        with self._lock:
            for place in reversed(range(len(self._kept))):
                if self._kept[place].nbytes == nbytes:
                    return self._kept.pop(place)
        return aligned_buffer(nbytes)

    def give(self, buffer: memoryview) -> None:
        with self._lock:
            self._kept.append(buffer)
            while sum(kept.nbytes for kept in self._kept) > _KEPT_BYTES:
                self._kept.pop(0)


_pool = _Pool()
os.register_at_fork(after_in_child=_pool.reset)


@contextlib.contextmanager
def borrowed(nbytes: int) -> Iterator[memoryview]:
    """Lend a buffer with any content; nobody may look at it after the block.

    Up to 256 MiB of what was given back is kept in this process for the next ones.
    """
    buffer = _pool.take(round_up(max(nbytes, 1), PIECE_BYTES))
    yield buffer[:nbytes]
    _pool.give(buffer)  # not after an error: a traceback may still refer to it


def uninitialised_bytes(nbytes: int) -> bytearray:
    """A bytearray to be overwritten as a whole; a large one is on huge pages, for a third of the faults."""
    data: bytearray = _new_bytes(None, nbytes)
    if nbytes >= 2 * HUGE_PAGE_BYTES:
        begin = address_of(data)
        first, last = round_up(begin, HUGE_PAGE_BYTES), (begin + nbytes) // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
        # Advice: a kernel that does not take it gives small pages.
        _LIBC.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_HUGEPAGE)
    return data


def is_resident(fd: int, offset: int, nbytes: int) -> bool:
    """Whether samples of ``[offset, offset + nbytes)`` of an open file all lie in the page cache.

    Where the kernel does not tell this user (a file of somebody else) it says yes.
    """
    start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    length = offset + nbytes - start
    if start + length > os.fstat(fd).st_size:
        return True  # a range beyond the end is the page cache's to refuse
    with mmap.mmap(fd, length, prot=mmap.PROT_READ, offset=start) as area:
        base = address_of(area)
        state = ctypes.c_ubyte()
        for at in (0, length // 3, 2 * length // 3, length - 1):
            page = ctypes.c_void_p(base + at // PAGE_BYTES * PAGE_BYTES)
            if _LIBC.mincore(page, ctypes.c_size_t(1), ctypes.byref(state)) != 0 or not state.value & 1:
                return False
    return True


def address_of(view: Buffer | mmap.mmap) -> int:
    """Where the first byte of a buffer lies in memory."""
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0])


def copy(target: memoryview, source: memoryview) -> None:
    """Copy the bytes of `source` over `target`, of the same length, without the GIL."""
    np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))


def round_up(nbytes: int, unit: int = PAGE_BYTES) -> int:
    """`nbytes` in whole units."""
    return -(-nbytes // unit) * unit
