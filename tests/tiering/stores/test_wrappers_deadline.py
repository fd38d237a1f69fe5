"""Deadlines: a store that hangs keeps no caller, and no buffer of a caller is touched afterwards."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.tiering.stores.wrapper_tools import Blocked, Scripted, calls
from tiering.errors import Corrupt, DeadlineExceeded, NotFound
from tiering.stores.memory import MemoryStore
from tiering.stores.wrappers import Deadline, ReadOnly

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


def test_deadline_change_of_a_key_waits_for_the_one_before_that_was_given_up(blocked: Blocked) -> None:
    store = Deadline(blocked, SHORT)
    blocked.go.clear()
    with pytest.raises(DeadlineExceeded, match="no end of the call"):
        store.delete("k")
    with pytest.raises(DeadlineExceeded, match="an earlier write or delete of it was given up"):
        store.write("k", [b"new"])
    with pytest.raises(DeadlineExceeded, match="no end of the call"):
        store.write("other", [b"v"])  # a key of its own
    with ThreadPoolExecutor(1) as pool:
        store._seconds = LONG
        writing = pool.submit(store.write, "k", [b"new"])
        reading = pool.submit(store.read, "k")  # changes nothing, so it waits for nothing
        blocked.go.set()
        assert writing.result().nbytes == 3
        assert reading.result() == b"new"
    assert blocked.read("k") == b"new"  # the delete took effect before the write, not after it
    store.close()
    join_helpers()


@pytest.mark.parametrize(
    ("change", "other"),
    [
        (lambda store: store.delete("k"), lambda store: store.set_aside("k", "aside")),
        (lambda store: store.set_aside("k", "aside"), lambda store: store.delete("k")),
        (lambda store: store.write("k", [b"v", b"w"]), lambda store: store.write("k", [b"v", b"x"])),
        (lambda store: store.write("k", [b"v"]), lambda store: store.write("k", [b"v"], if_absent=True)),
    ],
)
def test_deadline_same_change_may_be_repeated_and_no_other(
    blocked: Blocked, change: Callable[[Deadline], object], other: Callable[[Deadline], object]
) -> None:
    store = Deadline(blocked, SHORT)
    blocked.go.clear()
    for _ in range(3):
        with pytest.raises(DeadlineExceeded, match="no end of the call"):
            change(store)
    with pytest.raises(DeadlineExceeded, match="an earlier write or delete of it"):
        other(store)
    blocked.go.set()
    store.close()
    join_helpers()


def test_deadline_says_when_what_was_given_up_can_do_nothing_more(blocked: Blocked) -> None:
    store = Deadline(blocked, SHORT)
    wrapped = ReadOnly(store)
    told: list[bytearray] = []
    assert wrapped.when_settled(lambda: told.append(bytearray()))
    assert len(told) == 1  # nothing was given up
    blocked.go.clear()
    for call in (lambda: store.read("k"), lambda: store.stat("k")):
        with pytest.raises(DeadlineExceeded):
            call()
    assert wrapped.when_settled(lambda: told.append(bytearray()))  # reads change nothing
    assert len(told) == 2
    with pytest.raises(DeadlineExceeded):
        store.write("k", [b"late"])
    done = threading.Event()

    def tell() -> None:
        told.append(MemoryStore.read(blocked, "k"))
        done.set()

    assert not wrapped.when_settled(tell)
    assert len(told) == 2
    blocked.go.set()
    assert done.wait(60)
    assert told[2] == b"late"
    store.close()
    join_helpers()


def test_deadline_waits_for_what_was_given_up_as_long_as_for_a_call(blocked: Blocked) -> None:
    store = Deadline(blocked, SHORT)
    blocked.go.clear()
    with pytest.raises(DeadlineExceeded):
        store.write("k", [b"late"])
    store._seconds = LONG
    told: list[bytearray] = []
    threading.Timer(SHORT, blocked.go.set).start()
    assert store.when_settled(lambda: told.append(blocked.read("k")))
    assert told == [b"late"]
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
