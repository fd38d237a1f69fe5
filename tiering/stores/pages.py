"""Memory for direct I/O: buffers on huge pages, and the address of a buffer.

Invariant: a buffer of `aligned_buffer` starts on a 2 MiB boundary, so that O_DIRECT takes it as it is.
With 4 KiB pages direct I/O is slower than the page cache, with huge ones faster.
"""

from __future__ import annotations

import contextlib
import mmap
from typing import Final

import numpy as np

PAGE_BYTES: Final = 4096
HUGE_PAGE_BYTES: Final = 2 << 20


def aligned_buffer(nbytes: int) -> memoryview:
    """A zeroed buffer on a 2 MiB boundary, of huge pages where the kernel has them."""
    area = mmap.mmap(-1, nbytes + HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without transparent huge pages
        area.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(area)
    start = -address_of(view) % HUGE_PAGE_BYTES
    return view[start : start + nbytes]


def address_of(view: memoryview) -> int:
    """Where the first byte of a buffer lies in memory."""
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0])


def round_up(nbytes: int, unit: int = PAGE_BYTES) -> int:
    """`nbytes` in whole units."""
    return -(-nbytes // unit) * unit
