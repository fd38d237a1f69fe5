"""Bounds how long a caller waits, also for a system call that never returns (a hard NFS mount, a dead disk).

Invariant: after `DeadlineExceeded` nobody touches the caller's buffers. The call goes on in a helper thread
that owns all it reads or writes: a read fills a private buffer and is copied when it is complete, a write
takes a copy of what could change. The cost is one memory copy of every transfer, its memory once more, and
a change of threads a call (some 20 us), so only a tier that asks for a deadline has this wrapper.

A call that was given up may still take effect later: nothing is known of a write that ended so. Threads that
are stuck cannot be ended; there are at most `MAX_THREADS` of them, and when all are stuck calls fail at once.
They are daemons: a process ends in spite of them.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

from tiering.digest import Buffer
from tiering.errors import DeadlineExceeded
from tiering.stores.base import ObjectInfo, Store
from tiering.stores.wrappers.base import Guard

T = TypeVar("T")

MAX_THREADS: Final = 32


class Deadline(Guard):
    """Gives a call up after `seconds`, which bound one attempt with all requests that it takes.

    Args:
        inner: the store.
        seconds: for one call; a listing is collected within it.
        max_threads: calls at a time; further ones wait for a thread within their deadline.
    """

    def __init__(self, inner: Store, seconds: float, *, max_threads: int = MAX_THREADS) -> None:
        super().__init__(inner)
        self._seconds = seconds
        self._helpers = _Helpers(f"deadline-{inner.name}", max_threads)

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        nbytes = buffer.nbytes

        def read() -> bytearray:
            private = bytearray(nbytes)
            self.inner.read_into(key, offset, memoryview(private))
            return private

        buffer[:] = self._call(key, read)

    def write(
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        private = [b if type(b) is bytes else memoryview(b).tobytes() for b in buffers]
        return self._call(key, lambda: self.inner.write(key, private, if_absent=if_absent, digest=digest))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        yield from self._call(prefix, lambda: [*self.inner.list(prefix)])

    def close(self) -> None:
        try:
            self._call("", self.inner.close)
        finally:
            self._helpers.close()

    def _call(self, key: str, call: Callable[[], T]) -> T:
        job = _Job(call)
        if problem := self._helpers.run(job, self._seconds):
            raise DeadlineExceeded(
                problem,
                tier=self.name,
                key=key or None,
                hint="Look at the network, mount or disk, or give a larger operation_deadline_seconds",
            )
        if job.error is not None:
            raise job.error
        result: T = job.result
        return result

    def _numbers(self) -> Sequence[str]:
        return (f"seconds={self._seconds:g}",)


class _Job:
    """One call on its way through a helper."""

    __slots__ = ("call", "error", "finished", "given_up", "result")

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.result: Any = None
        self.error: BaseException | None = None
        self.finished = False
        self.given_up = False


class _Helpers:
    """Daemon threads that run jobs."""

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._changed = threading.Condition()
        self._idle: list[queue.SimpleQueue[_Job | None]] = []
        self._threads = 0
        self._stuck = 0
        self._closed = False

    def run(self, job: _Job, seconds: float) -> str:
        """Run `job`; what is wrong when it did not come to its end within `seconds`."""
        end = time.monotonic() + seconds
        with self._changed:
            self._closed = False
            inbox = self._take(end)
            if inbox is None:
                return f"{self._stuck} of {self._limit} threads are stuck in earlier calls"
            inbox.put(job)
            try:
                while not job.finished:
                    if not self._changed.wait(end - time.monotonic()) and not job.finished:
                        return f"no end of the call within {seconds:g} s"
            finally:  # also after Ctrl-C
                if not job.finished:
                    job.given_up = True
                    self._stuck += 1
                    self._changed.notify_all()
        return ""

    def close(self) -> None:
        """End the threads: idle ones now, others when their call returns."""
        with self._changed:
            self._closed = True
            for inbox in self._idle:
                inbox.put(None)
            self._threads -= len(self._idle)
            self._idle.clear()

    def _take(self, end: float) -> queue.SimpleQueue[_Job | None] | None:
        """The inbox of a thread that waits for work, or None when there is none in time."""
        while not self._idle and self._threads >= self._limit:
            if self._stuck >= self._limit or not self._changed.wait(end - time.monotonic()):
                return None
        if self._idle:
            return self._idle.pop()
        inbox: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, args=(inbox,), name=self._name, daemon=True).start()
        self._threads += 1
        return inbox

    def _work(self, inbox: queue.SimpleQueue[_Job | None]) -> None:
        while (job := inbox.get()) is not None:
            try:
                job.result = job.call()
            except BaseException as error:  # noqa: BLE001  # it is the caller's
                job.error = error
            with self._changed:
                job.finished = True
                self._stuck -= job.given_up
                del job  # and the memory it holds
                if self._closed:
                    self._threads -= 1
                    self._changed.notify_all()
                    return
                self._idle.append(inbox)
                self._changed.notify_all()
