"""Reusable memory for ciphertext.

Invariant: at most `KEPT` free buffers of at most `KEPT_BYTES` stay; a buffer has one user at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tiering.stores.pages import HUGE_PAGE_BYTES, aligned_buffer, round_up

KEPT: Final = 2
KEPT_BYTES: Final = 80 << 20
"""Enough for the ciphertext of a shard of 64 MiB."""
_SMALL_BYTES: Final = 1 << 20


class BufferPool:
    """Lends buffers; usable from many threads."""

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    @contextmanager
    def lend(self, nbytes: int) -> Iterator[memoryview]:
        """A buffer of `nbytes` that holds anything, until the end of the ``with``."""
        if nbytes <= _SMALL_BYTES:
            yield memoryview(bytearray(nbytes))
            return
        try:
            whole = self._free.pop()
        except IndexError:
            whole = memoryview(b"")
        if whole.nbytes < nbytes:
            whole = aligned_buffer(round_up(nbytes, HUGE_PAGE_BYTES))
        try:
            yield whole[:nbytes]
        finally:
            if len(self._free) < KEPT and whole.nbytes <= KEPT_BYTES:
                self._free.append(whole)

    def clear(self) -> None:
        """Give back what nobody uses."""
        self._free.clear()
