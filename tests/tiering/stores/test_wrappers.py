"""What holds for every wrapper, and how a tier composes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tiering.stores.wrapper_tools import Scripted, calls
from tiering import Tier, open_tier
from tiering.errors import ConfigError, UsageError
from tiering.monitor.stats import COUNTERS
from tiering.stores import open as open_module
from tiering.stores.base import ObjectInfo, Store
from tiering.stores.file import FileStore
from tiering.stores.memory import MemoryStore
from tiering.stores.wrappers import (
    Breaker,
    Counted,
    Deadline,
    Guard,
    ReadOnly,
    Retry,
    Throttle,
    Wrapper,
)

METHODS = sorted(
    name
    for name, member in vars(Store).items()
    if inspect.isfunction(member) and not name.startswith("_") and name != "reader"
)
"""What a wrapper passes on; `reader` is made of its own `read_into` instead, so that it goes round none."""
CALLS = set(METHODS) - {"close", "when_settled"}
"""Those that ask the medium."""


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Tier]]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    made: list[Tier] = []

    def make(url: str | Path, **given: Any) -> Tier:
        made.append(open_tier(url, "t", **given))
        return made[-1]

    yield make
    for tier in made:
        tier.close()


def stack(store: Store) -> list[type]:
    """Kinds of wrappers from the outermost to the store."""
    kinds: list[type] = []
    while isinstance(store, Wrapper):
        kinds.append(type(store))
        store = store.inner
    return kinds


@pytest.mark.parametrize("method", METHODS)
def test_wrapper_passes_every_method_of_a_store_on(method: str) -> None:
    assert method in vars(Wrapper)
    passed: list[tuple[Any, ...]] = []

    class Inner(MemoryStore):
        pass

    def record(self: Store, *given: Any, **named: Any) -> Any:
        passed.append((*given, *named.items()))
        return "answer"

    setattr(Inner, method, record)
    real = getattr(Store, method)
    given = {
        parameter.name: object()
        for parameter in inspect.signature(real).parameters.values()
        if parameter.name != "self"
    }
    wrapper = Wrapper(Inner("m"))
    answer = getattr(wrapper, method)(**given)
    assert answer in ("answer", None)
    assert (answer is None) == (inspect.signature(real).return_annotation == "None")
    told = [value[1] if isinstance(value, tuple) else value for value in passed[0]]
    assert told == list(given.values())
    assert (wrapper.name, wrapper.kind) == ("m", "memory")


@pytest.mark.parametrize("method", sorted(CALLS))
def test_guard_passes_every_method_through_its_one_function(method: str) -> None:
    assert method in vars(Guard)


def test_reader_of_a_wrapper_goes_through_it_at_every_read(tmp_path: Path) -> None:
    guarded = []

    class Watched(Guard):
        def _call(self, key: str, call: Callable[[], Any]) -> Any:
            guarded.append(key)
            return call()

        def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
            return self.inner.list(prefix)

    files = FileStore("disk", tmp_path)
    files.write("k", [b"value"])
    for outer in (Counted, ReadOnly, Wrapper):
        read = outer(Watched(files)).reader("k")
        buffer = bytearray(2)
        for offset in (0, 3):
            before = len(guarded)
            read(offset, memoryview(buffer))
            assert len(guarded) == before + 1
        assert buffer == b"ue"


def test_guard_test_knows_every_call() -> None:
    assert {name.removesuffix("_if_absent") for name in calls()} == CALLS


def test_counted_counts_what_arrived_once() -> None:
    COUNTERS.reset()
    inner = Scripted([None, None, ConfigError("no")])
    store = Counted(inner)
    store.write("k", [b"12", b"345"])
    store.read_into("k", 1, memoryview(bytearray(3)))
    with pytest.raises(ConfigError):
        store.read("k")
    store.read("k")
    assert COUNTERS.snapshot()["moved"] == {"lake": {"read": 8, "write": 5}}


def test_read_only_refuses_what_changes() -> None:
    inner = Scripted()
    looks = {"read_into", "read", "list", "children", "stat", "exists", "locate", "strays", "free_bytes"}
    looks |= {"is_volatile"}
    for name in calls().keys() - looks:  # a method that is new changes something until it is listed here
        with pytest.raises(UsageError, match="read-only"):
            calls()[name](ReadOnly(inner))
    assert inner.calls == 0


def test_open_wraps_only_what_is_asked_for(opened: Callable[..., Tier], tmp_path: Path) -> None:
    assert stack(opened(tmp_path / "a").store) == [Counted]
    assert stack(opened("memory://plain").store) == [Counted]
    assert stack(opened("s3://bucket").store) == [Counted, Retry, Breaker]
    off = {"retry_attempts": 1, "breaker_failures": 0}
    assert stack(opened("s3://bucket", options=off).store) == [Counted]
    assert stack(opened(tmp_path / "b", read_only=True).store) == [Counted, ReadOnly]
    assert stack(opened(tmp_path / "c", options={"max_requests_per_second": 5}).store) == [Counted, Throttle]


EVERY = {
    "retry_attempts": 3,
    "retry_seconds": 20,
    "breaker_failures": 7,
    "breaker_seconds": 11,
    "operation_deadline_seconds": 60,
    "max_bytes_per_second": "200MB",
    "max_requests_per_second": 1000,
}


@pytest.mark.parametrize("kind", ["file", "memory", "object"])
def test_open_composes_in_one_order_and_shows_its_numbers(
    opened: Callable[..., Tier], tmp_path: Path, kind: str
) -> None:
    url = {"file": str(tmp_path / "x"), "memory": "memory://every", "object": "s3://bucket/x"}[kind]
    tier = opened(url, options=EVERY, read_only=True)
    assert tier.kind == kind
    assert stack(tier.store) == [Counted, ReadOnly, Retry, Breaker, Throttle, Deadline]
    shown = repr(tier.store)
    for words in (
        "Counted(ReadOnly(Retry(Breaker(Throttle(Deadline(<",
        "seconds=60), bytes_per_second=2e+08, requests_per_second=1000)",
        "failures=7, seconds=11, state='closed'), attempts=3, seconds=20)))",
    ):
        assert words in shown


def test_open_full_stack_works_and_closes(opened: Callable[..., Tier], tmp_path: Path) -> None:
    tier = opened(tmp_path / "x", options=EVERY)
    tier.store.write("k", [b"value"], if_absent=True)
    assert tier.store.read("k") == b"value"
    assert [info.key for info in tier.store.list()] == ["k"]
    tier.close()
    assert tier.store.exists("k")


def test_open_that_fails_in_a_wrapper_closes_the_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "none"))
    closed = []
    monkeypatch.setattr(MemoryStore, "close", lambda store: closed.append(store.name))
    tier = open_tier("memory://closes", "t", options={"max_requests_per_second": 1})
    with pytest.raises(ConfigError, match="XDG_RUNTIME_DIR"):
        open_module.open_store(tier)
    assert closed == ["t"]


def test_open_hands_the_store_its_own_options_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        open_module, "_connect", lambda tier, options: seen.append(options) or MemoryStore("t")
    )
    tier = open_tier("s3://bucket", "t", options={**EVERY, "region": "eu", "max_bytes_per_second": 5 << 40})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_module, "Throttle", lambda store, *_: store)
        open_module.open_store(tier).close()
    assert seen == [{"region": "eu"}]
