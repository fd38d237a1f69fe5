"""Rows of equal length that go to places of their own in memory: read there straight from a file, or copied.

Invariant: only the places named are written to. Whoever makes a `Scatter` keeps the memory behind the places
alive until it was filled.

One copy is what a row costs on its way from the page cache into a batch, and the kernel makes it (readv(2)):
no buffer between, no pass over the rows in Python. It copies long rows from memory, too (process_vm_readv(2)
of this very process): numpy would hold the interpreter's lock for the few hundred rows of a block.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any, Final

import numpy as np

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_preadv: Final = _LIBC.preadv64 if hasattr(_LIBC, "preadv64") else _LIBC.preadv
_preadv.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64]
_preadv.restype = ctypes.c_ssize_t
_copy_vectors: Final = getattr(_LIBC, "process_vm_readv", None)
if _copy_vectors is not None:
    _copy_vectors.argtypes = [ctypes.c_int, *2 * [ctypes.c_void_p, ctypes.c_ulong], ctypes.c_ulong]
    _copy_vectors.restype = ctypes.c_ssize_t
_LONG_BYTES: Final = 256  # of a row; shorter ones are copied faster by numpy
_MOST_VECTORS: Final = os.sysconf("SC_IOV_MAX")
_VECTOR_BYTES: Final = 16  # of a struct iovec: address and length

Int64s = np.ndarray[Any, np.dtype[np.int64]]


def vectors(addresses: Int64s, row_bytes: int) -> Int64s:
    """What a `Scatter` is made of: int64, shape (rows, 2): the address and the length of each row."""
    made = np.empty((len(addresses), 2), np.int64)
    made[:, 0], made[:, 1] = addresses, row_bytes
    return made


class Scatter:
    """Consecutive rows, and where in memory each of them goes.

    Args:
        vectors: int64, shape (rows, 2), C-contiguous: addresses of writable memory for `row_bytes` bytes,
            which do not overlap, and that length, as `vectors` makes them.
        row_bytes: length of a row.
    """

    __slots__ = ("_vectors", "nbytes", "row_bytes")

    def __init__(self, vectors: Int64s, row_bytes: int) -> None:
        self._vectors, self.row_bytes = vectors, row_bytes
        self.nbytes = len(vectors) * row_bytes
        """Of all rows together."""

    def part(self, begin: int, end: int) -> Scatter:
        """Rows [begin, end)."""
        return Scatter(self._vectors[begin:end], self.row_bytes)

    def read(self, fd: int, offset: int) -> int:
        """Read the rows from a file, from `offset` on, as far as it goes; returns how many bytes.

        Raises:
            OSError: the file cannot be read.
        """
        begin, done, rows = self._vectors.__array_interface__["data"][0], 0, len(self._vectors)
        for first in range(0, rows, _MOST_VECTORS):
            count = min(_MOST_VECTORS, rows - first)
            got = _read(fd, begin + first * _VECTOR_BYTES, count, offset + done)
            done += got
            if got < count * self.row_bytes:
                break
        return done

    def copy(self, rows: np.ndarray[Any, Any]) -> None:
        """Copy rows from memory: C-contiguous, any dtype and shape, of `nbytes` bytes."""
        if not self.nbytes or (self.row_bytes >= _LONG_BYTES and self._copy_by_kernel(rows)):
            return
        addresses = self._vectors[:, 0]
        first = int(addresses.min())
        # One array over all places, an element at each byte: a single assignment reaches those meant.
        span = int(addresses.max()) - first + 1
        memory = (ctypes.c_char * (span - 1 + self.row_bytes)).from_address(first)
        row = np.dtype((np.void, self.row_bytes))
        places: np.ndarray[Any, Any] = np.ndarray((span,), row, memory, strides=(1,))
        places[addresses - first] = rows.reshape(-1).view(np.uint8).view(row)

    def _copy_by_kernel(self, rows: np.ndarray[Any, Any]) -> bool:
        """Whether the kernel has copied the rows; it may be forbidden to, in a container."""
        if _copy_vectors is None:
            return False
        rows = np.ascontiguousarray(rows)
        to, source = (array.__array_interface__["data"][0] for array in (self._vectors, rows))
        for first in range(0, len(self._vectors), _MOST_VECTORS):
            count = min(_MOST_VECTORS, len(self._vectors) - first)
            nbytes = count * self.row_bytes
            run = (ctypes.c_size_t * 2)(source + first * self.row_bytes, nbytes)
            if _copy_vectors(os.getpid(), to + first * _VECTOR_BYTES, count, run, 1, 0) != nbytes:
                return False
        return True


def _read(fd: int, vectors: int, count: int, offset: int) -> int:
    while (got := _preadv(fd, vectors, count, offset)) < 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return int(got)
