"""Files that stay open between reads, because a block is read faster than a path is walked.

Invariant: what is read is of the file that has the name now, or had it until it was replaced while the read
was under way: a file that has lost its last name is not read again, unless it can never change. At most
`KEPT_FILES` of a store stay open, twice each where they are read in a hurry; nobody closes one that another
thread reads.

A file that was evicted or replaced keeps its room on the disk until it is asked for again, pushed out by
others, or its `KeptFile` goes away; so whoever reads holds one no longer than its reads are near.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable
from typing import Final

from tiering.stores import direct
from tiering.stores.hurry import LEAST_BYTES, Descriptor, HurriedFile, hurries
from tiering.stores.scatter import Scatter

KEPT_FILES: Final = 128

_SETTLED_NS: Final = 2_000_000_000


class _Open(Descriptor):
    """An open file; closed when nobody refers to it any more."""

    __slots__ = ("_hurried",)

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._hurried: HurriedFile | None = None

    def read_into(self, offset: int, buffer: memoryview | Scatter) -> int:
        """Fill `buffer` from `offset` on, as far as the file goes; returns how much of it."""
        if not hurries() or buffer.nbytes < LEAST_BYTES:
            return direct.read_into(self.fd, offset, buffer)
        if self._hurried is None:
            self._hurried = HurriedFile(self.fd)
        return self._hurried.read_into(offset, buffer)


class KeptFile:
    """A file that `open_file` opens, when it is needed; anew once it has no name, but if it is `for_ever`."""

    __slots__ = ("__weakref__", "_files", "_for_ever", "_opened", "_reopen")

    def __init__(self, open_file: Callable[[], int], files: KeptFiles, *, for_ever: bool = False) -> None:
        self._reopen, self._files, self._for_ever = open_file, files, for_ever
        self._opened: _Open | None = None

    def read_into(self, offset: int, buffer: memoryview | Scatter) -> tuple[int, os.stat_result]:
        """Fill `buffer` from `offset` on, as far as the file goes.

        Returns how much of it, and what the file was after that. Raises OSError.
        """
        opened = self._opened
        if opened is not None:
            with contextlib.suppress(OSError):  # a stale handle
                done = opened.read_into(offset, buffer)
                stats = os.fstat(opened.fd)
                if stats.st_nlink or self._for_ever:
                    return done, stats
        opened = self._open()
        return opened.read_into(offset, buffer), os.fstat(opened.fd)

    def _open(self) -> _Open:
        try:
            opened = _Open(self._reopen())
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self._files.rest()  # those are a convenience, and this is not
            opened = _Open(self._reopen())
        self._opened = opened
        self._files.note(self)
        return opened

    def rest(self) -> None:
        """Stay open no longer than the reads under way."""
        self._opened = None


class KeptFiles:
    """Which of a store's files are open, the longest ones first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: deque[weakref.ref[KeptFile]] = deque()

    def note(self, file: KeptFile) -> None:
        """Say that a file was opened; closes another where there are too many."""
        with self._lock:
            self._open.append(weakref.ref(file))
            while len(self._open) > KEPT_FILES:
                self._close_one()

    def rest(self) -> None:
        """Close all that nobody reads now."""
        with self._lock:
            while self._open:
                self._close_one()

    def _close_one(self) -> None:
        file = self._open.popleft()()
        if file is not None:
            file.rest()


def identity_of(stats: os.stat_result) -> Hashable | None:
    """What tells a file's present bytes from any others; None where it was changed a moment ago.

    To be looked at after the bytes were read: whoever changes a file changes its times first. They are as
    coarse as a tick of the clock, so within it a second change would not show.
    """
    if abs(time.time_ns() - stats.st_ctime_ns) < _SETTLED_NS:
        return None
    return stats.st_dev, stats.st_ino, stats.st_size, stats.st_mtime_ns, stats.st_ctime_ns
