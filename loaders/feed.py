"""Feeds, and what those that read do: put the reads of windows that come, ahead of batches that need them.

Invariant: one thread at a time puts reads: one of `loaders.reads`, ahead of the caller, or the caller's own
where those of its next batch are not put yet.
"""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable

from loaders.reads import Reading, Reads
from loaders.slots import Batch
from tiering.closing import Closing


class Feed(Closing):
    """Batches of some lanes of one epoch, from a position on. Use as a context manager."""

    @property
    @abstractmethod
    def stall_seconds(self) -> float:
        """How long the caller of `batch` waited for bytes, so far."""

    @abstractmethod
    def batch(self, start: int, stop: int) -> Batch:
        """Rows at positions [start, stop) of every lane, lane by lane; lanes that end before give fewer.

        Must be called with neighbouring ranges, from the first position on.
        """


class ReadingFeed(Feed):
    """A feed that reads; it owns threads.

    Args:
        read: reads a block, given a job that `_load_next` put.
        start: position where every lane begins.
        threads: the most that read blocks ahead; None for as many as help.
    """

    stall_seconds: float = 0.0

    def __init__(self, read: Callable[..., None], start: int, threads: int | None) -> None:
        self._planning = threading.Lock()  # held by who puts reads
        self._unread: deque[Reading] = deque()  # by position
        self._ready = start  # windows that begin before have been put
        self._reads = Reads(read, self._load, threads)

    def close(self) -> None:
        """Stop reading; when this returns, nothing is written to any more. Idempotent."""
        self._reads.close()

    @abstractmethod
    def _load_next(self) -> bool:
        """Put the reads of the windows needed next that there is room for; whether there were some."""

    def _load(self) -> bool:
        """Put more reads, unless another thread does; whether some were put."""
        if not self._planning.acquire(blocking=False):
            return False
        try:
            return self._load_next()
        finally:
            self._planning.release()

    def _load_until(self, position: int) -> None:
        """Put the reads of all windows that begin before `position`, as far as there is room."""
        begun = time.perf_counter()
        with self._planning:
            while self._ready < position and self._load_next():
                pass
        self._reads.poke()
        self.stall_seconds += time.perf_counter() - begun

    def _wait(self, ready: int) -> None:
        """Wait for the reads of all windows that begin before `ready`."""
        while self._unread and self._unread[0].position < ready:
            reading = self._unread[0]
            if reading.left or reading.error is not None:
                begun = time.perf_counter()
                try:
                    self._reads.wait(reading)
                finally:
                    self.stall_seconds += time.perf_counter() - begun
            self._unread.popleft()
