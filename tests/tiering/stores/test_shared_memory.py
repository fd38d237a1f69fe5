"""Memory that processes share: one capacity for all, and nothing left when they are killed."""

from __future__ import annotations

import contextlib
import os
import pickle
import secrets
import select
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.tiering.corpora import python
from tiering.errors import (
    CapacityExceeded,
    ConfigError,
    Conflict,
    DeadlineExceeded,
    NotFound,
    Unavailable,
    UsageError,
)
from tiering.stores.shared_memory import SharedMemoryStore

USER = """
import sys, threading
from tiering.errors import CapacityExceeded
from tiering.stores.shared_memory import SharedMemoryStore
store = SharedMemoryStore("child", sys.argv[1], int(sys.argv[2]))
"""
WRITE_FOR_EVER = (
    USER
    + """
def work(number):
    i = 0
    while True:
        i += 1
        try:
            store.write(f"{sys.argv[3]}/{number}/{i % 5}", [bytes([number]) * 170_000])
        except CapacityExceeded:
            store.delete(f"{sys.argv[3]}/{number}/{(i + 2) % 5}")
        if i == 10 and number == 0:  # one thread: two would mix their lines
            print("ready", flush=True)
for number in range(2):
    threading.Thread(target=work, args=(number,)).start()
"""
)
HOLD = USER + "store.write(sys.argv[3], [b'mine'])\nprint('ready', flush=True)\nsys.stdin.read()\n"


@pytest.fixture
def place() -> str:
    return f"test-{secrets.token_hex(8)}"


def holder_of(store: SharedMemoryStore) -> int:
    with store._connection() as connection:
        pid: int = connection.ask(None, do="hello", capacity=None)["pid"]
        return pid


@contextlib.contextmanager
def ended(pid: int) -> Iterator[None]:
    """Waits at its end until the process `pid` is gone."""
    watched = os.pidfd_open(pid)
    try:
        yield
        assert select.select([watched], [], [], 60)[0], "the holder lives on"
    finally:
        os.close(watched)


def address(place: str) -> str:
    return f"\0tiering-shm-{os.getuid()}-{place}"


def is_held(place: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        return probe.connect_ex(address(place)) == 0


def left_behind(place: str) -> list[str]:
    """Whatever the file systems and the kernel still show of it."""
    files = [
        str(path) for folder in ("/dev/shm", "/tmp") for path in Path(folder).glob("*") if place in path.name
    ]
    sockets = [line for line in Path("/proc/net/unix").read_text().splitlines() if place in line]
    return files + sockets


def test_shared_memory_ends_with_its_last_user(place: str) -> None:
    first, second = SharedMemoryStore("a", place), SharedMemoryStore("b", place)
    first.write("k", [b"v"])
    assert second.read("k") == b"v"
    with ended(holder_of(second)):
        first.close()
        assert second.read("k") == b"v"
        second.close()
    assert left_behind(place) == []
    with SharedMemoryStore("c", place) as third:
        assert list(third.list()) == []


def test_shared_memory_leaves_nothing_when_all_users_are_killed(place: str) -> None:
    with SharedMemoryStore("here", place, 1 << 20) as store:
        pid = holder_of(store)
        with (
            ended(pid),
            python(WRITE_FOR_EVER, place, 1 << 20, "a") as one,
            python(WRITE_FOR_EVER, place, 1 << 20, "b") as two,
        ):
            try:
                for child in (one, two):
                    assert child.stdout
                    assert child.stdout.readline() == "ready\n"
                for _ in range(20):  # under any interleaving
                    free = store.free_bytes()
                    assert free is not None
                    assert free >= 0
                    assert sum(info.nbytes for info in store.list()) <= 1 << 20
                one.kill()
                one.wait()
                assert holder_of(store) == pid
                store.close()
            finally:
                one.kill()
                two.kill()
    assert left_behind(place) == []


def test_shared_memory_user_killed_at_any_step_gives_its_room_back(place: str) -> None:
    """A writer is killed before its n-th step: what it had reserved is free again, what is there is whole."""
    with (
        SharedMemoryStore("here", place, 100_000) as store,
        ended(holder_of(store)),
        python(KILLED_AT, place, 100_000) as zygote,
    ):
        assert zygote.stdin
        assert zygote.stdout
        found = []
        for step in range(STEPS + 1):
            zygote.stdin.write(f"{step}\n")
            zygote.stdin.flush()
            killed = zygote.stdout.readline() == f"{signal.SIGKILL.value}\n"
            assert killed == (step < STEPS)
            used = 0
            for info in store.list():
                assert store.read(info.key) == info.key.encode() * 10_000
                used += info.nbytes
            while store.free_bytes() != 100_000 - used:  # the holder may hear of the death after us
                os.sched_yield()
            found.append([info.key for info in store.list()])
            for key in found[-1]:
                store.delete(key)
        assert [] in found
        assert ["one"] in found
        assert found[-1] == ["one", "two"]
        store.close()


STEPS = 12  # hello: ask and answer; each write: reserve, answer, fill, publish, answer
KILLED_AT = (
    USER
    + """
import os, signal
from tiering.stores import shared_memory
def step(real):
    def call(*given, **named):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return real(*given, **named)
    return call
sock = shared_memory.socket
sock.send_fds, sock.recv_fds = step(sock.send_fds), step(sock.recv_fds)
shared_memory._fill = step(shared_memory._fill)
for line in sys.stdin:
    child = os.fork()
    if not child:
        left = int(line)
        store.write("one", [b"one" * 10_000])
        store.write("two", [b"two" * 10_000])
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""
)


def test_shared_memory_starter_killed_before_it_spoke_blocks_nobody(place: str) -> None:
    with python(DIES_WHILE_STARTING, place) as child:
        assert child.wait(60) == -signal.SIGKILL
    assert left_behind(place) == []
    with SharedMemoryStore("here", place) as store, ended(holder_of(store)):
        store.write("k", [b"v"])
        store.close()


DIES_WHILE_STARTING = """
import os, signal, subprocess, sys
from tiering.stores import shared_memory
subprocess.run = lambda *given, **named: os.kill(os.getpid(), signal.SIGKILL)
shared_memory.SharedMemoryStore("child", sys.argv[1]).free_bytes()
"""


def test_shared_memory_killed_holder_is_told_once_and_then_empty(place: str) -> None:
    with SharedMemoryStore("here", place) as store:
        store.write("k", [b"v"])
        pid = holder_of(store)
        with ended(pid):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(Unavailable, match="its objects with it") as caught:
            store.read("k")
        assert caught.value.tier == "here"
        with pytest.raises(NotFound):
            store.read("k")
        with ended(holder_of(store)):
            store.close()


def test_shared_memory_holder_that_stands_still_keeps_nobody(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SharedMemoryStore("here", place) as patient, SharedMemoryStore("here", place) as store:
        patient.write("k", [b"v"])
        pid = holder_of(patient)
        monkeypatch.setattr("tiering.stores.shared_memory.ANSWER_SECONDS", 0.05)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(DeadlineExceeded, match="gave no answer"):
                store.read("k")
        finally:
            os.kill(pid, signal.SIGCONT)
        assert patient.read("k") == b"v"


def test_shared_memory_objects_outlive_their_writer(place: str) -> None:
    with SharedMemoryStore("here", place, 1 << 20) as store, ended(holder_of(store)):
        with python(HOLD, place, 1 << 20, "k") as child:
            assert child.stdout
            assert child.stdout.readline() == "ready\n"
            child.kill()
        assert store.read("k") == b"mine"
        store.close()


def test_shared_memory_capacity_is_one_for_all(place: str) -> None:
    with SharedMemoryStore("a", place, 10) as one, SharedMemoryStore("b", place, 10) as two:
        one.write("k", [b"123456"])
        with pytest.raises(CapacityExceeded, match="5 bytes do not fit: 4 of 10 are free"):
            two.write("l", [b"12345"])
        two.write("l", [b"1234"])
        assert (one.free_bytes(), two.free_bytes()) == (0, 0)
        one.delete("k")
        assert two.free_bytes() == 6
        with SharedMemoryStore("c", place) as any_capacity:
            assert any_capacity.read("l") == b"1234"
        with (
            SharedMemoryStore("d", place, 11) as other,
            pytest.raises(ConfigError, match="capacity of 10 bytes"),
        ):
            other.read("l")


def test_shared_memory_room_is_taken_before_bytes_are_written(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SharedMemoryStore("a", place, 10) as one, SharedMemoryStore("b", place, 10) as two:
        seen: list[Any] = []
        real = os.memfd_create

        def look(*given: Any) -> int:
            seen.append(two.free_bytes())
            return real(*given)

        monkeypatch.setattr(os, "memfd_create", look)
        one.write("k", [b"1234567"])
        assert seen == [3]
        with pytest.raises(Conflict):
            one.write("k", [b"1"], if_absent=True)
        assert (two.free_bytes(), len(seen)) == (3, 1)


def test_shared_memory_write_that_breaks_off_gives_its_room_back(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(BaseException): ...

    def fail(*_: object) -> None:
        raise Broken

    with SharedMemoryStore("a", place, 10) as store, SharedMemoryStore("b", place, 10) as other:
        other.free_bytes()
        monkeypatch.setattr("tiering.stores.shared_memory._fill", fail)
        with pytest.raises(Broken):
            store.write("k", [b"12345678"])
        while other.free_bytes() != 10:
            os.sched_yield()
        assert not other.exists("k")


def test_shared_memory_raced_openers_meet_in_one_memory(place: str) -> None:
    stores = [SharedMemoryStore(str(i), place) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda store: store.write(store.name, [b"v"]), stores))
    assert len({holder_of(store) for store in stores}) == 1
    assert [info.key for info in stores[0].list()] == list("01234567")
    with ended(holder_of(stores[0])):
        for store in stores:
            store.close()


def test_shared_memory_openers_and_closers_never_lose_what_is_held(place: str) -> None:
    """Holders end and begin all the time, and yet a call between them finds one."""

    def work(number: int) -> None:
        for i in range(12):
            with SharedMemoryStore(str(number), place) as store:
                store.write(f"{number}/{i}", [b"v"])
                assert store.read(f"{number}/{i}") == b"v"

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    while is_held(place):
        os.sched_yield()


def test_shared_memory_of_another_user_is_refused(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as squatter:
        squatter.bind(address(place).replace(f"-{os.getuid()}-", "-4242-"))
        squatter.listen()
        monkeypatch.setattr(os, "getuid", lambda: 4242)
        with SharedMemoryStore("a", place) as store, pytest.raises(ConfigError, match="holds the name"):
            store.read("k")


def test_shared_memory_holder_takes_no_stranger_and_no_nonsense(place: str) -> None:
    with SharedMemoryStore("a", place) as store:
        store.write("k", [b"v"])
        for nonsense in (b"{", b"[]", b'{"do": "get"}', b'{"do": "publish", "key": "k", "if_absent": false}'):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                client.connect(address(place))
                client.settimeout(60)
                client.send(nonsense)
                with contextlib.suppress(ConnectionError):
                    client.recv(1000)
        assert store.read("k") == b"v"


def test_shared_memory_store_is_not_pickled_and_opens_anew_in_a_fork(place: str) -> None:
    with SharedMemoryStore("a", place) as store, store.hold():  # the parent's connection stays
        store.write("k", [b"v"])
        with pytest.raises(TypeError, match="opens its own"):
            pickle.dumps(store)
        store._process = 1  # as a child finds it
        assert store.read("k") == b"v"
        assert store._process == os.getpid()
        with pytest.raises(UsageError):
            store.read("../k")


def test_shared_memory_holder_is_no_child_and_hears_no_terminal(place: str) -> None:
    with SharedMemoryStore("a", place) as store:
        pid = holder_of(store)
        told = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        parent, session = int(told[1]), int(told[3])
        assert parent != os.getpid()
        assert session != os.getsid(0)
        files = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()}
        assert all(file.startswith(("/dev/null", "/memfd:", "socket:", "anon_inode:")) for file in files)
