"""Memory that is lent again: never to two at once, never for long, whatever forks, collects or fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.conformance.patterns import pattern
from tests.tiering.corpora import python
from tiering.digest import Buffer
from tiering.stores import pages
from tiering.stores.base import Store
from tiering.stores.block import BlockStore, format_volume
from tiering.stores.file import FileStore
from tiering.stores.pages import HUGE_PAGE_BYTES, PIECE_BYTES, address_of, borrowed, new_buffer

SMALL_PIECE = 4096


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> pages._Pool:
    pool = pages._Pool()
    monkeypatch.setattr(pages, "_pool", pool)
    return pool


@pytest.fixture
def small(pool: pages._Pool, monkeypatch: pytest.MonkeyPatch) -> pages._Pool:
    """What is lent has pages of small buffers, at most three of which are kept."""
    monkeypatch.setattr(pages, "PIECE_BYTES", SMALL_PIECE)
    monkeypatch.setattr(pages, "_KEPT_BYTES", 3 * SMALL_PIECE)
    return pool


class Lending(RuleBasedStateMachine):
    """Buffers, slices and arrays of them are made and let go of; each buffer holds its own number."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[tuple[int, Buffer | np.ndarray]] = []
        self.made = 0

    @rule(nbytes=st.sampled_from([SMALL_PIECE, SMALL_PIECE + 7, 2 * SMALL_PIECE]))
    def make(self, nbytes: int) -> None:
        self.made += 1
        buffer = memoryview(new_buffer(nbytes))
        assert (buffer.nbytes, buffer.format, buffer.readonly) == (nbytes, "B", False)
        buffer[:] = bytes([self.made % 256]) * nbytes
        self.held.append((self.made, buffer))

    @precondition(lambda self: self.held)
    @rule(place=st.integers(0, 20), how=st.sampled_from(["slice", "array", "asarray", "owner", "read-only"]))
    def derive(self, place: int, how: str) -> None:
        number, one = self.held[place % len(self.held)]
        view = memoryview(one)
        middle: Buffer | np.ndarray
        match how:
            case "slice":
                middle = view[1:-1]
            case "array":
                middle = np.frombuffer(view, np.uint8)[1:]
            case "asarray":
                middle = np.asarray(view)[:-1]
            case "owner":
                middle = np.asarray(view.obj)[:3]
            case _:
                middle = view.toreadonly()
        if len(middle) > 2:
            self.held.append((number, middle))

    @precondition(lambda self: self.held)
    @rule(place=st.integers(0, 20))
    def drop(self, place: int) -> None:
        self.held.pop(place % len(self.held))

    @rule()
    def keep_the_newest(self) -> None:
        del self.held[:-1]

    @rule(nbytes=st.integers(1, 2 * SMALL_PIECE))
    def borrow(self, nbytes: int) -> None:
        with borrowed(nbytes) as buffer:
            buffer[:] = bytes(nbytes)

    @rule()
    def tidy(self) -> None:
        pages._pool.tidy()

    @invariant()
    def everybody_sees_their_own(self) -> None:
        for number, one in self.held:
            assert set(bytes(one)) == {number % 256}
        assert sum(kept.nbytes for _, kept in pages._pool._kept) <= pages._KEPT_BYTES


def test_lent_buffers_never_alias(small: pages._Pool) -> None:
    run_state_machine_as_test(
        Lending, settings=settings(max_examples=25, stateful_step_count=40, derandomize=True, deadline=None)
    )


def test_lent_buffers_never_alias_between_threads(small: pages._Pool) -> None:
    def work(number: int) -> bool:
        right = True
        for turn in range(200):
            buffer = memoryview(new_buffer(SMALL_PIECE))
            buffer[:] = bytes([number]) * SMALL_PIECE
            array = np.frombuffer(buffer, np.uint8)
            del buffer
            with borrowed(turn + 1) as other:
                other[:] = bytes(turn + 1)
            right = right and bool((array == number).all())
        return right

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(1, 5)))


@pytest.fixture(params=["file", "block"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "file":
        yield FileStore("file", tmp_path / "root")
        return
    format_volume(tmp_path / "volume.img", 5 * PIECE_BYTES)
    with BlockStore("block", tmp_path / "volume.img") as blocks:
        yield blocks


def test_large_reads_use_memory_again_and_never_share_it(store: Store, pool: pages._Pool) -> None:
    data = [pattern(PIECE_BYTES + 5), pattern(PIECE_BYTES + 9)[::-1]]
    for key, bytes_ in zip("ab", data, strict=True):
        store.write(key, [bytes_])
    one, two = store.read("a"), store.read("b")
    assert [one, two] == data
    places = {address_of(one), address_of(two)}
    assert len(places) == 2
    assert all(place % HUGE_PAGE_BYTES == 0 for place in places)
    memoryview(one)[:] = bytes(len(one))  # the caller's own
    assert two == data[1]
    assert store.read("a") == data[0]
    del one, two
    assert address_of(store.read("b")) in places


@pytest.mark.parametrize("nbytes", [0, 1, PIECE_BYTES - 1])
def test_small_buffer_is_a_bytearray(nbytes: int) -> None:
    data = new_buffer(nbytes)
    memoryview(data)[:] = pattern(nbytes)
    assert isinstance(data, bytearray)
    assert data == pattern(nbytes)


def test_borrowed_buffer_is_lent_again_and_never_twice_at_once(pool: pages._Pool) -> None:
    with borrowed(5) as one, borrowed(7) as two:
        places = {address_of(one), address_of(two)}
        assert len(places) == 2
        assert all(place % HUGE_PAGE_BYTES == 0 for place in places)
        assert (one.nbytes, two.nbytes) == (5, 7)
    with borrowed(PIECE_BYTES) as again:
        assert address_of(again) in places


def test_buffers_are_kept_up_to_a_limit(small: pages._Pool) -> None:
    given = [small.take(size * SMALL_PIECE) for size in (1, 2, 1, 3)]
    for buffer in given:
        small.give(buffer)
    assert [view.nbytes // SMALL_PIECE for _, view in small._kept] == [3]


def test_buffers_that_nobody_wants_are_let_go(small: pages._Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(pages, "time", SimpleNamespace(monotonic=lambda: now[0]))
    early, late = small.take(SMALL_PIECE), small.take(SMALL_PIECE)
    small.give(early)
    now[0] += pages._KEPT_SECONDS
    small.give(late)
    small.tidy()
    assert [kept is late for _, kept in small._kept] == [True]
    assert small._tidying  # comes again
    now[0] += pages._KEPT_SECONDS
    small.tidy()
    assert small._kept == []
    assert small._tidying is None


def test_nothing_is_kept_where_no_thread_would_let_it_go(
    small: pages._Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    small.give(small.take(SMALL_PIECE))
    assert small._kept == []


def test_buffer_that_is_collected_while_the_pool_is_busy_is_let_go(small: pages._Pool) -> None:
    buffer = new_buffer(SMALL_PIECE)
    with small._lock:  # a collection can begin in the midst of `take`
        del buffer
    assert small._kept == []


FORKS = """
import os, signal
from tiering.stores import pages

with pages.borrowed(1):
    pass
live = memoryview(pages.new_buffer(pages.PIECE_BYTES))
live[0] = 5
with pages._pool._lock:  # as another thread of the parent may hold it
    child = os.fork()
    if not child:
        signal.alarm(20)
        with pages.borrowed(1) as own:
            own[0] = 8
        assert live[0] == 5
        live[0] = 6
        place = pages.address_of(live)
        del live
        assert pages.address_of(pages.new_buffer(pages.PIECE_BYTES)) == place
        os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert live[0] == 5
"""


def test_pool_is_usable_in_a_child_that_was_forked_while_it_was_locked() -> None:
    with python(FORKS) as process:
        assert process.wait(60) == 0
