"""Reads of blocks, done by a few threads and by whoever waits for them.

Invariant: blocks are begun in the order in which they were put; after `close` none is begun, and when it
returns nobody writes to a slot any more.

Blocks in the page cache come at the speed of a copy: one thread ahead of the training is enough for them, a
second one would take its processor time and its turns at the interpreter. Others have a latency that only
more threads hide. So where reads wait for long a thread is added, up to the most that are allowed; what they
wait for their turn at the interpreter does not count, nor does one among many. Whoever waits for a block that
nobody has begun to read reads it, and where processors are left has one more thread help. After a wait reads
hurry for a while (`tiering.stores.hurry`): what is not in the page cache comes sooner past it.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from tiering.stores.hurry import hurry

_SLOW_SECONDS: Final = 5e-4  # that a read waits and does not work: for a disk, a server, not the page cache
_FAR_SECONDS: Final = 2e-3
_RECENT: Final = 16
_TURNS: Final = 4  # how often a read gives up the interpreter, for calls of the system
_THREADS: Final = 4
_MOST_THREADS: Final = 32
_HURRIED: Final = 64  # reads after one was waited for
_MOST_HURRIED: Final = 1 << 16


class Reading:
    """Blocks that are needed at one position: how many are not read yet, and what went wrong."""

    __slots__ = ("error", "left", "position")

    def __init__(self, position: int) -> None:
        self.position = position
        self.left = 0
        self.error: BaseException | None = None


Job = tuple[Any, ...]
"""What is read: arguments of `read`."""


class Reads:
    """Reads blocks into slots.

    Args:
        read: reads a block, given a job; called by many threads at a time.
        refill: puts more blocks, if there are some that could be read now; whether it did.
        threads: the most that read ahead; None for four, and of what is far away for more, up to 32, as long
            as somebody waits for it.
    """

    def __init__(self, read: Callable[..., None], refill: Callable[[], bool], threads: int | None) -> None:
        self._read, self._refill = read, refill
        self._allowed, self._most = threads or _THREADS, threads or _MOST_THREADS
        self._jobs: deque[tuple[Reading, Job]] = deque()
        self._changed = threading.Condition()
        self._wanted = 1  # threads; more when reads are slow, or waited for
        self._idle_cores = min(self._allowed, _cores() - 1)  # beside the caller's
        self._active = 0
        self._poked = self._closed = False
        self._idle: deque[float] = deque(maxlen=_RECENT)  # seconds that the last reads waited
        self._far = False  # whether they were of something far away
        self._hurried = 0  # how many of the next reads hurry
        self._run = _HURRIED // 2
        self._process = os.getpid()
        self._pool = ThreadPoolExecutor(self._most, thread_name_prefix="tiering-read")

    def close(self) -> None:
        """Stop. Idempotent; in a forked child, where none of the threads is, there is nothing to stop."""
        if self._process != os.getpid():
            return  # a thread of the parent may have held the lock
        with self._changed:
            self._closed = True
            self._jobs.clear()
            self._changed.notify_all()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def put(self, reading: Reading, jobs: Iterable[Job]) -> None:
        """Have blocks read for `reading`."""
        new = [(reading, job) for job in jobs]
        with self._changed:
            reading.left += len(new)
            if not self._closed:
                self._jobs.extend(new)

    def poke(self) -> None:
        """Say that blocks were put, or could be."""
        with self._changed:
            self._poked = True
            while self._active < self._wanted and not self._closed:
                self._active += 1
                self._pool.submit(self._work)

    def wait(self, reading: Reading) -> None:
        """Return when its blocks are read; raise the error of one that failed.

        Raises:
            RuntimeError: closed before.
        """
        if reading.left:
            self._hurry()
        while reading.left and reading.error is None and not self._closed:
            if self._next_is_of(reading):
                self._wanted = min(self._wanted + 1, max(self._wanted, self._idle_cores))
                if self._read_next():
                    continue
            with self._changed:
                while reading.left and reading.error is None and not self._closed:
                    if self._next_is_of(reading):
                        break
                    if self._far and self._jobs and self._active == self._allowed:
                        self._allowed = min(self._allowed + 1, self._most)
                    self._changed.wait()
        if reading.error is not None:
            raise reading.error
        if reading.left:
            raise RuntimeError("the window feed is closed")

    def _hurry(self) -> None:
        """Have the next reads hurry; for twice as many, if those without haste were too slow once more."""
        if self._hurried <= 0:
            self._run = min(2 * self._run, _MOST_HURRIED)
        self._hurried = self._run

    def _next_is_of(self, reading: Reading) -> bool:
        try:
            return self._jobs[0][0] is reading
        except IndexError:
            return False

    def _work(self) -> None:
        """Read until there is nothing left to read."""
        while True:
            while self._read_next():
                pass
            try:
                if self._refill():
                    continue
            except BaseException:
                with self._changed:
                    self._active -= 1
                raise  # whoever needs those blocks meets it again
            with self._changed:
                if self._closed or not (self._poked or self._jobs):
                    self._active -= 1
                    return
                self._poked = False

    def _read_next(self) -> bool:
        """Read the block that is needed first; False where there is none."""
        try:
            reading, job = self._jobs.popleft()
        except IndexError:
            return False
        began, busy = time.perf_counter(), time.thread_time()
        error = None
        hurried = self._hurried > 0
        self._hurried -= hurried
        try:
            with hurry(on=hurried):
                self._read(*job)
        except BaseException as caught:  # noqa: BLE001  # raised where the block is waited for
            error = caught
        idle_seconds = time.perf_counter() - began - (time.thread_time() - busy)
        if idle_seconds > _FAR_SECONDS:  # in the store, or in the queue for the interpreter?
            began = time.perf_counter()
            time.sleep(0)
            idle_seconds = max(0.0, idle_seconds - _TURNS * (time.perf_counter() - began))
        with self._changed:
            self._idle.append(idle_seconds)
            idle_seconds = sorted(self._idle)[-2:][0]  # one of them may have waited for something else
            self._far = idle_seconds > _FAR_SECONDS
            reading.left -= 1
            reading.error = reading.error or error
            if not reading.left or error is not None:
                self._changed.notify_all()
            more = idle_seconds > _SLOW_SECONDS and self._active < self._allowed
            if more and self._jobs and not self._closed:
                self._active += 1
                self._wanted = self._active
                self._pool.submit(self._work)
        return True


def _cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
