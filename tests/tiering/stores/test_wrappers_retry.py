"""Retries: which errors, how often, how long, how many in all."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiering.stores.wrapper_tools import Clock, Scripted, calls
from tiering.digest import Buffer
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
from tiering.stores.base import ObjectInfo
from tiering.stores.memory import MemoryStore
from tiering.stores.wrappers import CircuitOpen, Retry, RetryBudget


def retry(inner: Any, attempts: int = 4, seconds: float = 1e9, **given: Any) -> tuple[Retry, Clock]:
    clock = Clock()
    given = {"chance": lambda: 1.0, "budget": RetryBudget(1, 1000), **given}
    return Retry(inner, attempts, seconds, clock=clock, sleep=clock.sleep, **given), clock


@pytest.mark.parametrize("name", calls())
def test_retry_repeats_every_call_until_it_succeeds(name: str) -> None:
    inner = Scripted([Unavailable("1"), DeadlineExceeded("2"), Unavailable("3")])
    inner.inner.write("k", [b"v"])
    store, clock = retry(inner)
    calls()[name](store)
    assert inner.calls == 4
    assert clock.slept == [0.25, 0.5, 1.0]


@pytest.mark.parametrize("name", calls())
def test_retry_gives_up_after_its_attempts_with_the_last_error(name: str) -> None:
    inner = Scripted([Unavailable(str(i)) for i in range(9)])
    store, _ = retry(inner, 3)
    with pytest.raises(Unavailable, match="2"):
        calls()[name](store)
    assert inner.calls == 3


@pytest.mark.parametrize("kind", [NotFound, Corrupt, CapacityExceeded, UsageError, Conflict, CircuitOpen])
def test_retry_leaves_alone_what_no_repetition_helps(kind: type[TieringError]) -> None:
    for name, call in calls().items():
        if name == "exists" and kind is NotFound:
            continue
        inner = Scripted([kind("no")])
        store, clock = retry(inner)
        with pytest.raises(kind):
            call(store)
        assert (inner.calls, clock.slept) == (1, [])


def test_retry_pauses_are_full_jitter_with_a_cap() -> None:
    chances = itertools.cycle([0.5, 0.0, 1.0])
    inner = Scripted([Unavailable("x")] * 10)
    store, clock = retry(inner, 11, chance=lambda: next(chances))
    store.exists("k")
    longest = [min(20.0, 0.25 * 2**i) for i in range(10)]
    assert clock.slept == [
        pause * share for pause, share in zip(longest, itertools.cycle([0.5, 0.0, 1.0]), strict=False)
    ]
    assert max(clock.slept) <= 20


def test_retry_waits_as_long_as_the_server_asks() -> None:
    busy = Unavailable("slow down")
    busy.retry_after_seconds = 7.5
    store, clock = retry(Scripted([busy, Unavailable("x")]), chance=lambda: 0.0)
    store.exists("k")
    assert clock.slept == [7.5, 0.0]
    busy.retry_after_seconds = 61.0
    store, clock = retry(Scripted([busy]), seconds=60)
    with pytest.raises(Unavailable, match="slow down"):  # longer than it may wait: told at once
        store.exists("k")
    assert clock.slept == []


@given(
    st.integers(1, 30),
    st.floats(0.1, 100),
    st.lists(st.floats(0, 20), min_size=30, max_size=30),
    st.floats(0, 0.999),
)
def test_retry_begins_no_attempt_after_its_time(
    attempts: int, seconds: float, lasts: list[float], share: float
) -> None:
    begun: list[float] = []
    clock = Clock(0.0)

    class Slow(MemoryStore):
        def exists(self, key: str) -> bool:
            begun.append(clock.now)
            clock.now += lasts[len(begun) - 1]
            raise Unavailable("x")

    store = Retry(
        Slow("m"),
        attempts,
        seconds,
        clock=clock,
        sleep=clock.sleep,
        chance=lambda: share,
        budget=RetryBudget(1, 1000),
    )
    with pytest.raises(Unavailable):
        store.exists("k")
    assert 1 <= len(begun) <= attempts
    assert begun[-1] <= seconds


def test_retry_budget_is_a_share_of_all_calls() -> None:
    inner = Scripted([Unavailable("x")] * 100_000)
    store, _ = retry(inner, 10, budget=RetryBudget(0.2, 5))
    for _ in range(1000):
        with pytest.raises(Unavailable):
            store.exists("k")
    assert inner.calls - 1000 == 5 + 199  # the burst, and a fifth; the first call's share found it full
    inner.script.clear()
    for _ in range(100):
        store.exists("k")
    inner.script = [Unavailable("x")] * 5
    assert not store.exists("k")  # well again, the budget fills


def test_retry_lists_only_before_the_first_item() -> None:
    class Breaks(Scripted):
        def list(self, prefix: str = "") -> Any:
            for i, info in enumerate(super().list(prefix)):
                if i == 1:
                    raise Unavailable("in the middle")
                yield info

    inner = Breaks([Unavailable("x")])
    for key in ("a", "b"):
        inner.inner.write(key, [b"v"])
    store, clock = retry(inner)
    got = []
    with pytest.raises(Unavailable, match="in the middle"):  # noqa: PT012  # what came before it counts
        for info in store.list():
            got.append(info.key)  # noqa: PERF401
    assert (got, len(clock.slept)) == (["a"], 1)


BUFFERS: Sequence[Sequence[Buffer]] = (
    [b"value"],
    [b"va", bytearray(b"lu"), memoryview(b"e")],
    [],
    [b"", b""],
)


@pytest.mark.parametrize("buffers", BUFFERS, ids=["one", "three", "none", "empty"])
def test_retry_create_whose_answer_got_lost_finds_itself(buffers: Sequence[Buffer]) -> None:
    inner = Scripted([Unavailable("lost")], after=True)
    store, _ = retry(inner)
    info = store.write("k", buffers, if_absent=True)
    assert info == inner.stat("k")
    assert inner.inner.read("k") == b"".join(buffers)


@pytest.mark.parametrize("theirs", [b"other", b"valu", b"values", b""])
def test_retry_create_that_meets_other_bytes_is_a_conflict(theirs: bytes) -> None:
    inner = Scripted([Unavailable("x")])
    inner.inner.write("k", [theirs])
    store, _ = retry(inner)
    with pytest.raises(Conflict):
        store.write("k", [b"value"], if_absent=True)
    assert inner.inner.read("k") == theirs


def test_retry_create_that_meets_bytes_that_grow_is_a_conflict() -> None:
    class Grows(Scripted):
        def stat(self, key: str) -> ObjectInfo:
            info = super().stat(key)
            self.inner.write(key, [b"value and more"])  # another writer, between size and bytes
            return info

    inner = Grows([Unavailable("x")])
    inner.inner.write("k", [b"value"])
    store, _ = retry(inner)
    with pytest.raises(Conflict):
        store.write("k", [b"value"], if_absent=True)


def test_retry_create_at_the_first_attempt_meets_even_equal_bytes_as_a_conflict() -> None:
    inner = Scripted()
    inner.inner.write("k", [b"value"])
    store, _ = retry(inner)
    with pytest.raises(Conflict):
        store.write("k", [b"value"], if_absent=True)
    assert inner.calls == 1


def test_retry_create_whose_rival_is_gone_is_a_conflict() -> None:
    inner = Scripted([Unavailable("x"), Conflict("was there a moment ago")])
    store, _ = retry(inner)
    with pytest.raises(Conflict, match="a moment ago"):
        store.write("k", [b"value"], if_absent=True)


def test_retry_create_reads_back_with_retries() -> None:
    script: list[Exception | None] = [
        Unavailable("write"),
        None,
        Unavailable("stat"),
        None,
        Unavailable("read"),
    ]
    inner = Scripted(script)
    inner.inner.write("k", [b"value"])
    store, clock = retry(inner)
    store.write("k", [b"value"], if_absent=True)
    assert len(clock.slept) == 3
