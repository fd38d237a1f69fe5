"""Reads: in order, by as many threads as are worth it, and by whoever waits."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from loaders import reads
from loaders.reads import Reading, Reads
from tiering.errors import Unavailable
from tiering.stores.hurry import hurries

PATIENCE_SECONDS = 60


def jobs(*blocks: int) -> list[tuple[int, int, int]]:
    return [(0, block, block) for block in blocks]


class Reader:
    """Notes who read what; waits for `gate` in its own threads, where there is one."""

    def __init__(self) -> None:
        self.done: list[tuple[int, str]] = []
        self.gate: threading.Event | None = None
        self.begun = threading.Semaphore(0)

    def read(self, shard: int, block: int, slot: int) -> None:
        self.begun.release()
        thread = threading.current_thread().name
        if self.gate is not None and thread.startswith("tiering-read"):
            assert self.gate.wait(PATIENCE_SECONDS)
        self.done.append((block, thread))


@pytest.fixture
def reader() -> Iterator[Reader]:
    made = Reader()
    yield made
    if made.gate is not None:
        made.gate.set()


def test_one_thread_reads_fast_blocks_in_order(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "_SLOW_SECONDS", PATIENCE_SECONDS)
    pool = Reads(reader.read, lambda: False, 4)
    reading = Reading(0)
    pool.put(reading, jobs(*range(50)))
    pool.poke()
    pool.close()
    assert {thread for _, thread in reader.done} <= {"tiering-read_0"}
    assert [block for block, _ in reader.done] == list(range(len(reader.done)))


@pytest.mark.parametrize(
    ("seldom", "turn_seconds", "far"),
    [(16, 0.0, False), (8, 0.0, True), (1, 0.0, True), (1, 0.1, True), (1, 0.3, False)],
)
def test_reads_that_wait_seldom_or_for_the_interpreter_are_no_reason_for_more_threads(
    monkeypatch: pytest.MonkeyPatch, seldom: int, turn_seconds: float, far: bool
) -> None:
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds: float) -> None:
        clock.now += seconds + turn_seconds

    fake = SimpleNamespace(perf_counter=lambda: clock.now, thread_time=lambda: 0.0, sleep=sleep)
    monkeypatch.setattr(reads, "time", fake)
    threads = []

    def read(shard: int, block: int, slot: int) -> None:
        threads.append(threading.current_thread().name)
        clock.now += 1.0 if block % seldom == seldom - 1 else 0.0

    pool = Reads(read, lambda: False, None)
    pool.put(Reading(0), jobs(*range(64)))
    pool.poke()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(threads) < 64 and time.monotonic() < deadline:
        time.sleep(0.001)
    pool.close()
    assert pool._far == far
    assert (pool._wanted > 1) == far


def test_slow_blocks_are_read_by_all_threads_at_a_time(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "_SLOW_SECONDS", -1.0)
    barrier = threading.Barrier(3, timeout=PATIENCE_SECONDS)

    def read(shard: int, block: int, slot: int) -> None:
        if block >= 8:  # the threads that there are by now
            barrier.wait()

    pool = Reads(read, lambda: False, 3)
    warm, reading = Reading(0), Reading(1)
    pool.put(warm, jobs(*range(8)))
    pool.put(reading, jobs(*range(8, 14)))
    pool.poke()
    with pool._changed:
        assert pool._changed.wait_for(lambda: not reading.left, PATIENCE_SECONDS)
    pool.close()


def test_who_waits_reads_what_nobody_has_begun(reader: Reader) -> None:
    reader.gate = threading.Event()
    pool = Reads(reader.read, lambda: False, 1)
    first, second = Reading(0), Reading(1)
    pool.put(first, jobs(0))
    pool.poke()
    assert reader.begun.acquire(timeout=PATIENCE_SECONDS)
    pool.put(second, jobs(1, 2))
    pool.wait(second)
    assert reader.done == [(1, "MainThread"), (2, "MainThread")]
    reader.gate.set()
    pool.wait(first)
    pool.close()
    assert [block for block, _ in reader.done] == [1, 2, 0]


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (4, 3), (64, 4)])
def test_who_waits_has_more_threads_help_where_processors_are_left(
    reader: Reader, monkeypatch: pytest.MonkeyPatch, cores: int, threads: int
) -> None:
    monkeypatch.setattr(reads, "_SLOW_SECONDS", PATIENCE_SECONDS)
    monkeypatch.setattr(reads, "_cores", lambda: cores)
    pool = Reads(reader.read, lambda: False, 4)
    for number in range(6):
        reading = Reading(number)
        pool.put(reading, jobs(number))
        pool.wait(reading)
    reader.gate = threading.Event()
    for _ in range(6):
        reader.begun.acquire()
    pool.put(Reading(9), jobs(*range(9, 20)))
    pool.poke()
    for _ in range(threads):
        assert reader.begun.acquire(timeout=PATIENCE_SECONDS)
    assert not reader.begun.acquire(timeout=0.05)
    reader.gate.set()
    pool.close()


def test_reads_hurry_after_a_wait_and_for_longer_when_it_comes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reads, "_SLOW_SECONDS", PATIENCE_SECONDS)  # else a busy machine adds a thread
    hurried: list[bool] = []
    pool = Reads(lambda *_: hurried.append(hurries()), lambda: False, 1)
    with contextlib.closing(pool):
        for _ in range(2):
            pool._hurried = 0
            first, others = Reading(0), Reading(1)
            pool.put(first, jobs(0))
            pool.put(others, jobs(*range(300)))
            pool.wait(first)
            while pool._read_next():
                pass
    assert hurried == [True] * 64 + [False] * 237 + [True] * 128 + [False] * 173
    assert not hurries()


def test_waits_for_reads_that_hurry_do_not_make_it_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "_SLOW_SECONDS", PATIENCE_SECONDS)  # else a busy machine adds a thread
    hurried: list[bool] = []
    pool = Reads(lambda *_: hurried.append(hurries()), lambda: False, 1)
    with contextlib.closing(pool):
        for position in range(3):
            reading = Reading(position)
            pool.put(reading, jobs(position))
            pool.wait(reading)
        pool.put(Reading(3), jobs(*range(100)))
        while pool._read_next():
            pass
    assert hurried == [True] * (2 + 64) + [False] * 37


def test_reads_that_nobody_waits_for_do_not_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "_SLOW_SECONDS", PATIENCE_SECONDS)  # else a busy machine adds a thread
    hurried: list[bool] = []
    pool = Reads(lambda *_: hurried.append(hurries()), lambda: False, 1)
    with contextlib.closing(pool):
        reading = Reading(0)
        pool.put(reading, jobs(*range(70)))
        while pool._read_next():
            pass
        pool.wait(reading)  # it is there
        pool.put(reading, jobs(*range(70)))
        while pool._read_next():
            pass
    assert hurried == [False] * 140


def test_an_error_is_raised_where_its_block_is_waited_for() -> None:
    def read(shard: int, block: int, slot: int) -> None:
        if block == 1:
            raise Unavailable("gone")

    pool = Reads(read, lambda: False, 2)
    good, bad = Reading(0), Reading(1)
    pool.put(good, jobs(0))
    pool.put(bad, jobs(1))
    pool.poke()
    pool.wait(good)
    with pytest.raises(Unavailable, match="gone"):
        pool.wait(bad)
    pool.close()


def test_closed_reads_begin_nothing_and_say_so(reader: Reader) -> None:
    pool = Reads(reader.read, lambda: False, 1)
    pool.close()
    reading = Reading(0)
    pool.put(reading, jobs(0))
    pool.poke()
    with pytest.raises(RuntimeError, match="closed"):
        pool.wait(reading)
    assert reader.done == []


def test_a_thread_that_ran_out_of_blocks_asks_for_more(reader: Reader) -> None:
    last = Reading(5)
    more = [lambda: pool.put(Reading(0), jobs(0)), lambda: pool.put(last, jobs(1))]

    def refill() -> bool:
        if not more:
            return False
        more.pop(0)()
        return True

    last.left = 1  # of its block
    pool = Reads(reader.read, refill, 1)
    pool.poke()
    with pool._changed:
        assert pool._changed.wait_for(lambda: last.left == 1 and len(reader.done) == 2, PATIENCE_SECONDS)
    pool.close()
    assert [block for block, _ in reader.done] == [0, 1]


def test_a_forked_child_closes_nothing(reader: Reader) -> None:
    pool = Reads(reader.read, lambda: False, 2)
    with pool._changed, warnings.catch_warnings():  # as a reading thread holds it now and then
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork with threads is what is tested
        child = os.fork()
        if not child:
            signal.alarm(PATIENCE_SECONDS)
            pool.close()
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    pool.close()
