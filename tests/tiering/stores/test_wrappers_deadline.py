"""Deadlines: a store that hangs keeps no caller, and no buffer of a caller is touched afterwards."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.tiering.stores.wrapper_tools import Blocked, Scripted, calls
from tiering.errors import Corrupt, DeadlineExceeded, NotFound
from tiering.stores.wrappers import Deadline

SHORT = 0.05
"""Seconds that a call which never ends is given; nothing depends on how long it really takes."""
LONG = 250.0


@pytest.fixture
def blocked() -> Iterator[Blocked]:
    """A store that holds an object and blocks once its `go` is cleared."""
    store = Blocked()
    store.write("k", [b"value"])
    yield store
    store.go.set()


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "deadline-lake"]


def join_helpers() -> None:
    for thread in helpers():
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize("name", calls())
def test_deadline_ends_every_call_that_hangs(blocked: Blocked, name: str) -> None:
    store = Deadline(blocked, SHORT)
    blocked.go.clear()
    with pytest.raises(DeadlineExceeded, match=r"no end of the call within 0\.05 s") as caught:
        calls()[name](store)
    assert caught.value.tier == "lake"
    assert caught.value.retryable
    assert "operation_deadline_seconds" in str(caught.value)
    blocked.go.set()
    store.close()
    join_helpers()


def test_deadline_close_ends_too(blocked: Blocked, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Deadline(blocked, SHORT)
    blocked.go.clear()
    monkeypatch.setattr(blocked, "close", blocked.go.wait)
    with pytest.raises(DeadlineExceeded):
        store.close()
    blocked.go.set()
    join_helpers()


def test_deadline_read_never_touches_the_buffer_after_it_gave_up(blocked: Blocked) -> None:
    blocked.go.clear()
    buffer = bytearray(b".....")
    store = Deadline(blocked, SHORT)
    with pytest.raises(DeadlineExceeded):
        store.read_into("k", 0, memoryview(buffer))
    blocked.left = threading.Semaphore(0)
    blocked.go.set()
    assert blocked.left.acquire(timeout=60)  # the read has come to its end
    assert buffer == b"....."
    store.close()
    join_helpers()
    assert buffer == b"....."


def test_deadline_write_publishes_what_it_was_given_whatever_becomes_of_the_buffer(blocked: Blocked) -> None:
    blocked.go.clear()
    buffer = bytearray(b"given")
    store = Deadline(blocked, SHORT)
    with pytest.raises(DeadlineExceeded):
        store.write("new", [buffer, b"!"])
    buffer[:] = b"later"
    blocked.left = threading.Semaphore(0)
    blocked.go.set()
    assert blocked.left.acquire(timeout=60)
    assert blocked.read("new") == b"given!"
    store.close()
    join_helpers()


def test_deadline_that_is_kept_changes_nothing(blocked: Blocked) -> None:
    store = Deadline(blocked, LONG)
    buffer = bytearray(b".......")
    store.read_into("k", 1, memoryview(buffer)[2:5])
    assert buffer == b"..alu.."
    with pytest.raises(Corrupt):
        store.read_into("k", 1, memoryview(buffer))
    assert buffer == b"..alu.."
    with pytest.raises(NotFound) as caught:
        store.stat("none")
    assert caught.value.key == "none"
    assert len(helpers()) == 1  # calls one after the other need one thread
    store.close()
    join_helpers()


def test_deadline_stuck_threads_are_bounded_and_calls_then_fail_at_once(blocked: Blocked) -> None:
    blocked.go.clear()
    store = Deadline(blocked, SHORT, max_threads=2)
    for _ in range(2):
        with pytest.raises(DeadlineExceeded, match="no end"):
            store.stat("k")
    patient = store
    patient._seconds = LONG  # and yet the next call does not wait
    with pytest.raises(DeadlineExceeded, match="2 of 2 threads are stuck"):
        patient.stat("k")
    assert len(helpers()) == 2
    blocked.go.set()
    while store._helpers._stuck:
        pass
    assert patient.stat("k").nbytes == 5  # they come back
    assert len(helpers()) == 2
    store.close()
    join_helpers()


def test_deadline_calls_beyond_the_threads_wait_for_one(blocked: Blocked) -> None:
    store = Deadline(blocked, LONG, max_threads=2)
    blocked.entered = threading.Semaphore(0)
    blocked.go.clear()
    with ThreadPoolExecutor(6) as pool:
        reads = [pool.submit(store.read, "k") for _ in range(6)]
        for _ in range(2):
            assert blocked.entered.acquire(timeout=60)
        assert not blocked.entered.acquire(blocking=False)
        blocked.go.set()
        assert [bytes(read.result()) for read in reads] == [b"value"] * 6
    assert len(helpers()) == 2
    store.close()
    join_helpers()


def test_deadline_helper_keeps_no_memory_of_what_it_did() -> None:
    class Kept(Exception): ...

    error = Kept()
    gone = weakref.ref(error)
    store = Deadline(Scripted([error]), LONG)
    with pytest.raises(Kept):
        store.stat("k")
    del error
    gc.collect()
    assert gone() is None
    store.close()
    join_helpers()
