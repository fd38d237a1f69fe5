"""Repeats what may succeed the second time.

Invariant: only errors that are `retryable` are met by another attempt, and no attempt begins when `seconds`
have passed since the first. Retries are at most a share of all calls of the store, so a server that is sick
under its load is not stormed.

Pauses grow exponentially with full jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog,
2015), and are never shorter than the server's own Retry-After.

A conditional create whose attempt failed may have succeeded all the same, so that the next attempt meets its
own object: on `Conflict` after a failure the object is read back, and equal bytes are success. Two writers of
the same bytes may then both be told that they created it; writers that must know one another by it write
something of their own, as claims do.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from tiering.digest import Buffer
from tiering.errors import Conflict, NotFound, TieringError, Unavailable
from tiering.stores.base import ObjectInfo, Store, total_bytes
from tiering.stores.wrappers.base import Guard
from tiering.stores.wrappers.breaker import CircuitOpen

T = TypeVar("T")

FIRST_PAUSE_SECONDS: Final = 0.25
"""The longest first pause; it doubles with each attempt."""
LONGEST_PAUSE_SECONDS: Final = 20.0

log = logging.getLogger("tiering.stores.retry")


class RetryBudget:
    """How many retries all calls of a store may make together: a token bucket filled by the calls themselves.

    Args:
        share: retries per call, in the long run.
        burst: retries that are there at the start, and at most.
    """

    def __init__(self, share: float = 0.2, burst: float = 20.0) -> None:
        self._share = share
        self._burst = burst
        self._tokens = burst
        self._lock = threading.Lock()

    def count_call(self) -> None:
        """A call was begun."""
        with self._lock:
            self._tokens = min(self._burst, self._tokens + self._share)

    def take(self) -> bool:
        """Whether one more retry is allowed; counts it."""
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


class Retry(Guard):
    """Makes up to `attempts` attempts at every call.

    Args:
        inner: the store.
        attempts: with the first one.
        seconds: no attempt begins later than this after the first.
        budget: shared by all calls.
        clock, sleep, chance: seconds that never go back, a pause, numbers in [0, 1); tests give their own.
    """

    def __init__(
        self,
        inner: Store,
        attempts: int,
        seconds: float,
        *,
        budget: RetryBudget | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(inner)
        self.attempts = attempts
        self.seconds = seconds
        self.budget = budget or RetryBudget()
        self.clock = clock
        self.sleep = sleep
        self.chance = chance

    def write(
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        if not if_absent:
            return super().write(key, buffers, digest=digest)
        attempts = _Attempts(self)
        while True:
            try:
                return self.inner.write(key, buffers, if_absent=True, digest=digest)
            except Conflict:
                if attempts.made == 1 or not self._holds(key, buffers):
                    raise
                return self.stat(key)
            except TieringError as error:
                if not attempts.another(error):
                    raise

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        attempts = _Attempts(self)
        while True:  # until the first item: what was handed out cannot be taken back
            try:
                found = self.inner.list(prefix)
                first = next(found)
            except StopIteration:
                return
            except TieringError as error:
                if not attempts.another(error):
                    raise
            else:
                break
        yield first
        yield from found

    def _call(self, key: str, call: Callable[[], T]) -> T:
        attempts = _Attempts(self)
        while True:
            try:
                return call()
            except TieringError as error:
                if not attempts.another(error):
                    raise

    def _holds(self, key: str, buffers: Sequence[Buffer]) -> bool:
        """Whether `key` holds just these bytes."""
        try:
            if self.stat(key).nbytes != total_bytes(buffers):
                return False
            there = memoryview(self.read(key))
        except NotFound:
            return False
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            if there[: view.nbytes] != view:
                return False
            there = there[view.nbytes :]
        return not there.nbytes

    def _numbers(self) -> Sequence[str]:
        return f"attempts={self.attempts}", f"seconds={self.seconds:g}"


class _Attempts:
    """The attempts at one call."""

    def __init__(self, retry: Retry) -> None:
        self.made = 1
        self._retry = retry
        self._began = retry.clock()
        retry.budget.count_call()

    def another(self, error: TieringError) -> bool:
        """Whether to try again; the pause has passed then."""
        retry = self._retry
        # An open circuit is no answer of the tier: whoever has another copy shall not wait for it.
        if not error.retryable or isinstance(error, CircuitOpen) or self.made >= retry.attempts:
            return False
        longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (self.made - 1))
        pause = retry.chance() * longest
        if isinstance(error, Unavailable):
            pause = max(pause, error.retry_after_seconds or 0.0)
        if retry.clock() - self._began + pause > retry.seconds or not retry.budget.take():
            return False
        log.info("tier %s: attempt %d failed, the next in %.2f s: %s", retry.name, self.made, pause, error)
        retry.sleep(pause)
        self.made += 1
        return True
