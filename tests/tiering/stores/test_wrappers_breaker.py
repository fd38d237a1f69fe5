"""The breaker: closed, open, half open, closed."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.tiering.stores.wrapper_tools import Blocked, Clock, Scripted, calls
from tiering.errors import (
    CapacityExceeded,
    Conflict,
    Corrupt,
    DeadlineExceeded,
    NotFound,
    TieringError,
    Unavailable,
    UsageError,
)
from tiering.stores.wrappers import Breaker, CircuitOpen


def breaker(inner: Any, failures: int = 3, cooldown: float = 30, **given: Any) -> tuple[Breaker, Clock]:
    clock = Clock()
    return Breaker(inner, failures, cooldown, clock=clock, **given), clock


def fail(store: Breaker, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises((Unavailable, DeadlineExceeded)) as caught:
            store.stat("k")
        assert not isinstance(caught.value, CircuitOpen)


@pytest.fixture
def sick() -> Scripted:
    """A store that fails until its script is cleared."""
    inner = Scripted([Unavailable("no route")] * 1000)
    inner.inner.write("k", [b"v"])
    return inner


def test_breaker_opens_after_failures_in_a_row_and_then_asks_nobody(sick: Scripted) -> None:
    store, clock = breaker(sick)
    fail(store, 3)
    assert (store.state, sick.calls) == ("open", 3)
    clock.now += 12
    for name, call in calls().items():
        with pytest.raises(CircuitOpen) as caught:
            call(store)
        assert "after 3 failures in a row (the last: no route)" in str(caught.value), name
        assert "The next probe is due in 18.0 s" in str(caught.value)
        assert (caught.value.tier, caught.value.retry_after_seconds) == ("lake", 18)
        assert isinstance(caught.value, Unavailable)
    assert sick.calls == 3


@pytest.mark.parametrize("name", calls())
def test_breaker_counts_failures_of_every_call(sick: Scripted, name: str) -> None:
    store, _ = breaker(sick, 1)
    with pytest.raises(Unavailable):
        calls()[name](store)
    assert store.state == "open"


@pytest.mark.parametrize("name", calls())
def test_breaker_probe_of_any_kind_closes_it(sick: Scripted, name: str) -> None:
    store, clock = breaker(sick, 1)
    fail(store)
    sick.script.clear()
    clock.now += 30
    calls()[name](store)
    assert store.state == "closed"
    fail_again = [Unavailable("x")]
    sick.script[:] = fail_again
    fail(store)


def test_breaker_success_begins_the_count_anew(sick: Scripted) -> None:
    sick.script[2] = sick.script[5] = None
    store, _ = breaker(sick)
    for _ in range(2):
        fail(store, 2)
        store.stat("k")
    assert store.state == "closed"
    fail(store, 3)
    assert store.state == "open"


@pytest.mark.parametrize("kind", [NotFound, Conflict, Corrupt, CapacityExceeded, UsageError])
def test_breaker_takes_an_answer_for_health(kind: type[TieringError]) -> None:
    store, _ = breaker(Scripted([Unavailable("x"), kind("no"), Unavailable("x")] + [kind("no")] * 9), 2)
    fail(store)
    with pytest.raises(kind):
        store.stat("k")
    fail(store)
    for _ in range(9):
        with pytest.raises(kind):
            store.stat("k")
    assert store.state == "closed"


def test_breaker_failed_probe_opens_it_for_another_cooldown(sick: Scripted) -> None:
    store, clock = breaker(sick)
    fail(store, 3)
    for _ in range(3):
        clock.now += 30
        before = sick.calls
        fail(store)
        assert (store.state, sick.calls) == ("open", before + 1)
        clock.now += 29.9
        with pytest.raises(CircuitOpen):
            store.stat("k")
        clock.now -= 29.9


def test_breaker_lets_one_probe_through_at_a_time() -> None:
    inner = Blocked()
    inner.write("k", [b"v"])
    store, clock = breaker(inner, 1)
    store._count_failure(Unavailable("x"), probes=False)
    clock.now += 30
    inner.go.clear()
    inner.entered = threading.Semaphore(0)
    with ThreadPoolExecutor(1) as pool:
        probe = pool.submit(store.stat, "k")
        assert inner.entered.acquire(timeout=60)
        assert store.state == "half open"
        with pytest.raises(CircuitOpen, match="The next probe is under way"):
            store.stat("k")
        inner.go.set()
        assert probe.result().nbytes == 1
    assert store.state == "closed"


def test_breaker_interrupted_probe_gives_its_place_to_the_next(sick: Scripted) -> None:
    store, clock = breaker(sick, 1)
    fail(store)
    clock.now += 30
    sick.script[:] = [KeyboardInterrupt()]  # type: ignore[list-item]
    with pytest.raises(KeyboardInterrupt):
        store.stat("k")
    store.stat("k")
    assert store.state == "closed"


def test_breaker_listing_that_nobody_read_to_its_end_is_no_probe(sick: Scripted) -> None:
    sick.inner.write("l", [b"v"])
    store, clock = breaker(sick, 1)
    fail(store)
    sick.script.clear()
    clock.now += 30
    listing = store.list()
    next(listing)
    assert store.state == "half open"
    listing.close()  # type: ignore[attr-defined]
    assert store.state == "open"
    assert len(list(store.list())) == 2
    assert store.state == "closed"


def test_breaker_old_calls_do_not_speak_for_a_new_state(sick: Scripted) -> None:
    store, clock = breaker(sick, 1)
    assert store._admit("k") is False  # began while it was closed
    fail(store)
    store._count_success(probes=False)
    assert store.state == "open"
    clock.now += 20
    store._count_failure(Unavailable("late"), probes=False)  # does not move the probe either
    clock.now += 10
    sick.script.clear()
    store.stat("k")
    assert store.state == "closed"


def test_breaker_hiccup_of_many_threads_is_one_hiccup(sick: Scripted) -> None:
    store, clock = breaker(sick, 3, streak_seconds=15)
    fail(store, 50)
    assert store.state == "closed"
    clock.now += 14.9
    fail(store)
    assert store.state == "closed"
    clock.now += 0.1
    fail(store)
    assert store.state == "open"


def test_breaker_logs_each_change_once(sick: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "tiering.stores.breaker")
    store, clock = breaker(sick)
    fail(store, 3)
    for _ in range(5):
        with pytest.raises(CircuitOpen):
            store.stat("k")
    sick.script.clear()
    clock.now += 30
    store.stat("k")
    store.stat("k")
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "tier lake is not asked for 30 s after 3 failures in a row: no route",
        "tier lake answers again",
    ]
