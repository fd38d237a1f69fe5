"""Threads that work beside their caller, so that what computes and what waits for a medium overlap.

Invariant: every call is made exactly once, on the caller's own thread where no other can be started.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from tiering.closing import Closing

T = TypeVar("T")


class Helpers(Closing):
    """A few threads, started when they are needed; the end of the ``with`` waits for them.

    Args:
        name: what a list of threads calls them.
        threads: how many at most; by default as many as there are cores, and a few for those that wait.
    """

    def __init__(self, name: str, threads: int | None = None) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    def start(self, call: Callable[..., T], *arguments: object) -> Future[T]:
        """Make a call on another thread, or on this one where no other can be started."""
        future: Future[T] = Future()
        turn = threading.Lock()

        def run() -> None:
            if turn.acquire(blocking=False):
                try:
                    future.set_result(call(*arguments))
                except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
                    future.set_exception(error)

        try:
            self._pool.submit(run)
        except RuntimeError:  # it is queued all the same, so whoever is first makes the call
            run()
        return future

    def close(self) -> None:
        """Wait for what is running."""
        self._pool.shutdown()
