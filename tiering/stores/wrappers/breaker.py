"""Stops asking a tier that is sick, and finds out when it is well again.

Invariant: while the circuit is open every call fails at once, without reaching the wrapped store; one probe
at a time is let through when the cooldown has passed, and only its success closes the circuit.

closed -> open: `failures` retryable failures in a row, with no success for `streak_seconds`.
open -> half open: `cooldown_seconds` later, for one call. half open -> closed or open: as that call ends.
An answer that is no failure of the tier (`NotFound`, `Conflict`, `CapacityExceeded`, ...) counts as success.
The state is this process's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeVar

from tiering.errors import TieringError, Unavailable
from tiering.stores.base import ObjectInfo, Store
from tiering.stores.wrappers.base import Guard

T = TypeVar("T")
State = Literal["closed", "open", "half open"]

log = logging.getLogger("tiering.stores.breaker")


class CircuitOpen(Unavailable):
    """The tier was not asked, because it failed too often a moment ago."""


class Breaker(Guard):
    """Fails at once while the tier is sick.

    Args:
        inner: the store.
        failures: retryable failures in a row that open the circuit.
        cooldown_seconds: from there to the first probe, and from one failed probe to the next.
        streak_seconds: the failures must also have lasted so long: a hiccup that many threads met at once
            is one hiccup.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        inner: Store,
        failures: int,
        cooldown_seconds: float,
        *,
        streak_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(inner)
        self._failures = failures
        self._cooldown_seconds = cooldown_seconds
        self._streak_seconds = streak_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._state: State = "closed"
        self._failed = 0
        self._failing_since = 0.0
        self._probe_at = 0.0
        self._last = ""

    @property
    def state(self) -> State:
        """Whether calls pass (``closed``), fail (``open``), or one of them is the probe (``half open``)."""
        return self._state

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._watch(prefix):
            yield from self.inner.list(prefix)

    def _call(self, key: str, call: Callable[[], T]) -> T:
        with self._watch(key):
            return call()

    def _numbers(self) -> Sequence[str]:
        return f"failures={self._failures}", f"seconds={self._cooldown_seconds:g}", f"state={self._state!r}"

    @contextmanager
    def _watch(self, key: str) -> Iterator[None]:
        """Let one call through, or not, and learn from how it ends."""
        probes = self._admit(key)
        try:
            yield
        except TieringError as error:
            if error.retryable:
                self._count_failure(error, probes=probes)
            else:
                self._count_success(probes=probes)
            raise
        except BaseException:  # interrupted, or a listing nobody read to its end: it says nothing of the tier
            self._give_up(probes=probes)
            raise
        self._count_success(probes=probes)

    def _admit(self, key: str) -> bool:
        """Whether the call is the probe; raises where it must not pass."""
        with self._lock:
            if self._state == "closed":
                return False
            left_seconds = self._probe_at - self._clock()
            if self._state == "open" and left_seconds <= 0:
                self._state = "half open"
                log.info("tier %s is probed", self.name)
                return True
            due = "is under way" if self._state == "half open" else f"is due in {left_seconds:.1f} s"
            refusal = CircuitOpen(
                f"not asked, after {self._failed} failures in a row (the last: {self._last})",
                tier=self.name,
                key=key or None,
                hint=f"The next probe {due}; another tier with a copy can be read meanwhile",
            )
            refusal.retry_after_seconds = max(0.0, left_seconds)
            raise refusal

    def _count_failure(self, error: TieringError, *, probes: bool) -> None:
        with self._lock:
            if self._state != "closed" and not probes:
                return  # it began before the circuit opened
            now = self._clock()
            if self._failed == 0:
                self._failing_since = now
            self._failed += 1
            self._last = error.message
            lasted = now - self._failing_since >= self._streak_seconds
            if probes or (self._failed >= self._failures and lasted):
                self._state, self._probe_at = "open", now + self._cooldown_seconds
                log.warning(
                    "tier %s is not asked for %g s after %d failures in a row: %s",
                    self.name,
                    self._cooldown_seconds,
                    self._failed,
                    error.message,
                )

    def _count_success(self, *, probes: bool) -> None:
        with self._lock:
            if self._state != "closed" and not probes:
                return
            self._failed = 0
            if probes:
                self._state = "closed"
                log.warning("tier %s answers again", self.name)

    def _give_up(self, *, probes: bool) -> None:
        with self._lock:
            if probes:
                self._state = "open"  # and the next probe is due now
