"""Memory for direct I/O and for large reads: buffers on huge pages, lent and reused, and their addresses.

Invariant: a buffer of this module that is large starts on a 2 MiB boundary, so that O_DIRECT takes it as it
is, and has one user at a time. With 4 KiB pages direct I/O is slower than the page cache, with huge ones
faster; and a fresh page costs more processor time than the copy into it, so what its last user has let go of
is lent again.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Final

import numpy as np

from tiering.digest import Buffer

PAGE_BYTES: Final = 4096
HUGE_PAGE_BYTES: Final = 2 << 20
PIECE_BYTES: Final = 8 << 20
"""What direct I/O moves at a time, and the unit in which buffers are lent."""

_KEPT_BYTES: Final = 768 << 20  # what eight threads move with: a shard and a few pieces each
_KEPT_SECONDS: Final = 5.0
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_new_bytes: Final = ctypes.pythonapi.PyByteArray_FromStringAndSize
_new_bytes.restype = ctypes.py_object
_new_bytes.argtypes = [ctypes.c_char_p, ctypes.c_ssize_t]


def aligned_buffer(nbytes: int) -> memoryview:
    """A zeroed buffer on a 2 MiB boundary, of huge pages where the kernel has them.

    Raises:
        MemoryError: there is no such room, which is no failure of a medium.
    """
    try:
        area = mmap.mmap(-1, nbytes + HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no room for a buffer of {nbytes} bytes") from error
    with contextlib.suppress(OSError):  # a kernel without transparent huge pages
        area.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(area)
    start = -address_of(view) % HUGE_PAGE_BYTES
    return view[start : start + nbytes]


class _Pool:
    """Buffers that wait to be lent again, the longest unused first.

    At most 768 MiB wait, and none for more than 10 seconds.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew, in a child of a fork: the lock may be held by a thread that is not there."""
        self._lock = threading.Lock()
        self._kept: list[tuple[float, memoryview]] = []
        self._tidying: threading.Timer | None = None

    def take(self, nbytes: int) -> memoryview:
        """A buffer of `nbytes` that nobody else has, with any content."""
        with self._lock:
            if self._tidying is None:
                self._tidy_later()
            for place in reversed(range(len(self._kept))):
                if self._kept[place][1].nbytes == nbytes:
                    return self._kept.pop(place)[1]
        return aligned_buffer(nbytes)

    def give(self, buffer: memoryview) -> None:
        """Keep what nobody uses any more. Never waits: the garbage collector may call it at any instant."""
        surplus = []  # unmapped after the lock is free, for it takes its time
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._tidying:  # else it would stay for ever
                self._kept.append((time.monotonic(), buffer))
            while sum(kept.nbytes for _, kept in self._kept) > _KEPT_BYTES:
                surplus.append(self._kept.pop(0))
        finally:
            self._lock.release()

    def tidy(self) -> None:
        """Let go of what nobody has wanted for a while; come again while anything is left."""
        with self._lock:
            limit = time.monotonic() - _KEPT_SECONDS
            surplus = [kept for kept in self._kept if kept[0] <= limit]
            self._kept = self._kept[len(surplus) :]
            self._tidying = None
            if self._kept:
                self._tidy_later()

    def _tidy_later(self) -> None:
        timer = threading.Timer(_KEPT_SECONDS, self.tidy)
        timer.daemon = True
        with contextlib.suppress(RuntimeError):  # no more threads: nothing is kept
            timer.start()
            self._tidying = timer


_pool = _Pool()
os.register_at_fork(after_in_child=lambda: _pool.reset())


@contextlib.contextmanager
def borrowed(nbytes: int) -> Iterator[memoryview]:
    """Lend a buffer with any content; nobody may look at it after the block."""
    buffer = _pool.take(round_up(max(nbytes, 1), PIECE_BYTES))
    yield buffer[:nbytes]
    _pool.give(buffer)  # not after an error: a traceback may still refer to it


def new_buffer(nbytes: int) -> bytearray | memoryview:
    """A writable buffer with any content, the caller's alone for as long as anything refers to it.

    A large one is a memoryview of memory that is lent again once it and all slices and arrays of it are gone.
    """
    if nbytes < PIECE_BYTES:
        data: bytearray = _new_bytes(None, nbytes)
        return data
    memory = _pool.take(round_up(nbytes, PIECE_BYTES))
    # All views keep this array alive: numpy looks for the owner of memory below an array only, and below
    # this one is none.
    owner = np.ndarray(nbytes, np.uint8, memory)
    weakref.finalize(owner, _pool.give, memory).atexit = False
    return memoryview(owner)


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
    if isinstance(view, memoryview) and view.nbytes and not view.readonly:
        return ctypes.addressof(ctypes.c_char.from_buffer(view))  # many times as fast
    return np.frombuffer(view, np.uint8).ctypes.data


def copy(target: memoryview, source: memoryview) -> None:
    """Copy the bytes of `source` over `target`, of the same length, without the GIL."""
    np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))


def round_up(nbytes: int, unit: int = PAGE_BYTES) -> int:
    """`nbytes` in whole units."""
    return -(-nbytes // unit) * unit
