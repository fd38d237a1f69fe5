"""Bounds how long a caller waits, also for a system call that never returns (a hard NFS mount, a dead disk).

Invariant: after `DeadlineExceeded` nobody touches the caller's buffers. The call goes on in a helper thread
that owns all it reads or writes: a read fills a private buffer and is copied when it is complete, a write
takes a copy of what could change. The cost is one memory copy of every transfer, its memory once more, and
a change of threads a call (some 20 us), so only a tier that asks for a deadline has this wrapper.

A call that was given up may still take effect later: nothing is known of a write that ended so. So what
changes a key waits for an earlier change of that key which was given up, unless it is the same one once more;
and `when_settled` tells when none can take effect any more, which is how long claims are held.

Threads that are stuck cannot be ended; there are at most `MAX_THREADS` of them, and when all are stuck calls
fail at once. They are daemons: a process ends in spite of them.
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
        change = ("write", if_absent, private)
        return self._call(
            key, lambda: self.inner.write(key, private, if_absent=if_absent, digest=digest), change
        )

    def delete(self, key: str) -> None:
        self._call(key, lambda: self.inner.delete(key), ("delete",))

    def set_aside(self, key: str, aside: str) -> bool:
        return self._call(key, lambda: self.inner.set_aside(key, aside), ("set aside", aside))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        yield from self._call(prefix, lambda: [*self.inner.list(prefix)])

    def close(self) -> None:
        try:
            self._call("", self.inner.close)
        finally:
            self._helpers.close()

    def when_settled(self, then: Callable[[], None]) -> bool:
        """Waits up to the deadline for them; where that is too short a thread goes on waiting."""
        return self._helpers.when_settled(then, self._seconds)

    def _call(self, key: str, call: Callable[[], T], change: tuple[object, ...] | None = None) -> T:
        job = _Job(call, key, change)
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
    """One call on its way through a helper.

    Args:
        call: what is done.
        key: the object it is about.
        change: what it does to the object, equal for two calls that leave it the same; None where it only
            reads.
    """

    __slots__ = ("call", "change", "error", "finished", "key", "result")

    def __init__(self, call: Callable[[], Any], key: str, change: tuple[object, ...] | None) -> None:
        self.call = call
        self.key = key
        self.change = change
        self.result: Any = None
        self.error: BaseException | None = None
        self.finished = False

    def could_be_undone_by(self, earlier: _Job) -> bool:
        """Whether `earlier`, should it take effect after this one, would leave the object another one."""
        if self.change is None or earlier.change is None or self.key != earlier.key:
            return False
        return self.change != earlier.change


class _Helpers:
    """Daemon threads that run jobs."""

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._changed = threading.Condition()
        self._idle: list[queue.SimpleQueue[_Job | None]] = []
        self._threads = 0
        self._stuck: list[_Job] = []
        """Given up, and not at their end."""
        self._closed = False

    def run(self, job: _Job, seconds: float) -> str:
        """Run `job`; what is wrong when it did not come to its end within `seconds`."""
        end = time.monotonic() + seconds
        with self._changed:
            self._closed = False
            while any(map(job.could_be_undone_by, self._stuck)):
                if not self._changed.wait(end - time.monotonic()):
                    return "an earlier write or delete of it was given up, and has no end yet"
            inbox = self._take(end)
            if inbox is None:
                return f"{len(self._stuck)} of {self._limit} threads are stuck in earlier calls"
            inbox.put(job)
            try:
                while not job.finished:
                    if not self._changed.wait(end - time.monotonic()) and not job.finished:
                        return f"no end of the call within {seconds:g} s"
            finally:  # also after Ctrl-C
                if not job.finished:
                    self._stuck.append(job)
                    self._changed.notify_all()
        return ""

    def when_settled(self, then: Callable[[], None], seconds: float) -> bool:
        """Call `then` after the changes that are stuck now; whether they ended within `seconds`."""
        with self._changed:
            changes = [job for job in self._stuck if job.change is not None]
            settled = self._changed.wait_for(lambda: all(job.finished for job in changes), seconds)
        if settled:
            then()
            return True

        def wait() -> None:
            with self._changed:
                self._changed.wait_for(lambda: all(job.finished for job in changes))
            then()

        threading.Thread(target=wait, name=self._name, daemon=True).start()
        return False

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
            if len(self._stuck) >= self._limit or not self._changed.wait(end - time.monotonic()):
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
                if job in self._stuck:
                    self._stuck.remove(job)
                del job  # and the memory it holds
                if self._closed:
                    self._threads -= 1
                    self._changed.notify_all()
                    return
                self._idle.append(inbox)
                self._changed.notify_all()
