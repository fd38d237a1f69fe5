"""A power cut of a block volume: what was told is true, what was in flight is old or new, whole."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.block_power import POLICIES, VOLUME, Event, Recorder, State, left_over, violation
from tiering.stores.block import BlockStore, format_volume
from tiering.stores.block_index import span_of
from tiering.stores.pages import PAGE_BYTES

STRIDE = int(os.environ.get("TIERING_POWER_STRIDE", "8"))
"""Cut the power after every write and flush (1), or after every eighth."""

MIB = 1 << 20
CHECKPOINT_PAGES = 12
NEAR = 24
"""How many changes after a missing flush the power is cut."""


@dataclass(frozen=True)
class Recording:
    start: dict[str, bytes]
    events: list[Event]
    states: list[State]
    """Before the first operation and after each."""


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder in memory where there is one: a thousand volumes are opened in it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """An opening, writes, overwrites, deletes, reused space, checkpoints, growth and bad pages."""
    folder = tmp_path_factory.mktemp("recorded")
    path = folder / VOLUME
    format_volume(path, MIB)
    with BlockStore("record", path) as store:
        store.write("kept", [b"k" * 9000])
        store.write("gone", [b"g" * 5000])
    start = {file.name: file.read_bytes() for file in folder.iterdir()}
    state = {"kept": b"k" * 9000, "gone": b"g" * 5000}
    states = [state]
    dice = random.Random(11)
    recorder = Recorder(folder)
    with recorder.recording():
        with recorder.doing("open"):
            store = BlockStore("record", path)
            store._index._db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        states.append(state)
        for number in range(24):
            key = "gone" if number == 0 else f"k{dice.randrange(4)}"
            if key in state and (number == 0 or dice.random() < 0.4):
                with recorder.doing("delete"):
                    store.delete(key)
                state = {name: data for name, data in state.items() if name != key}
            else:
                data = bytes([number + 1]) * dice.randrange(30_000)
                with recorder.doing("overwrite" if key in state else "write"):
                    store.write(key, [data])
                state = {**state, key: data}
            states.append(state)
            if number == 15:
                with recorder.doing("grow"):
                    store.grow(MIB + 65536)
                states.append(state)
        recorder.bad = bad_pages(store)
        with recorder.doing("retire"):
            store.write("moved", [b"m" * 20_000])
        states.append({**state, "moved": b"m" * 20_000})
        assert store.info().retired_bytes == len(recorder.bad)
    store.close()
    return Recording(start, recorder.events, states)


def bad_pages(store: BlockStore) -> range:
    """Two pages in the midst of where the next object of 20,000 bytes would lie."""
    span = span_of(20_000)
    offset = store._space.take(span)
    assert offset
    store._space.give(offset, span)
    return range(offset + 2 * PAGE_BYTES, offset + 4 * PAGE_BYTES)


def cuts(
    disk: Path, recording: Recording, events: list[Event], places: Iterable[int], seed: int = 5
) -> Iterator[str]:
    """Violations after cuts of the power, with the index and without."""
    dice = random.Random(seed)
    for cut in places:
        done = sum(event.what == "done" for event in events[:cut])
        allowed = recording.states[done : done + 2]
        for policy in POLICIES:
            files = left_over(recording.start, events[:cut], policy, dice)
            for lose_index in (False, True):
                if what := violation(disk, files, allowed, lose_index=lose_index):
                    yield f"cut {cut}, {policy}, index {'lost' if lose_index else 'kept'}: {what}"


def test_power_cut_at_any_instant_leaves_what_was_told(disk: Path, recording: Recording) -> None:
    assert {event.what for event in recording.events} == {"write", "cut", "flush", "done"}
    assert {event.file for event in recording.events} >= {VOLUME, f"{VOLUME}.index", f"{VOLUME}.index-wal"}
    places = range(0, len(recording.events) + 1, STRIDE)
    assert list(cuts(disk, recording, recording.events, places)) == []


@pytest.mark.parametrize(
    "flush",
    [
        "write volume 1",  # data, before the header
        "write volume 2",  # header, before the commit
        "overwrite volume 3",  # the old header's zeros, before it is said to be replaced
        "delete volume 1",  # zeros, before the space is used again
        "delete index",  # a commit; one of a write is made good by the mark on the volume
        "open volume 1",  # one superblock, before the other is touched
        "grow volume 1",  # zeros of the new room and its size, before the superblock
    ],
)
def test_store_without_this_flush_is_caught(disk: Path, recording: Recording, flush: str) -> None:
    events: list[Event] = []
    places: dict[int, None] = {}
    for event in recording.events:
        if event.what == "flush" and event.label.startswith(flush):
            places |= dict.fromkeys(range(len(events), len(events) + NEAR))
        else:
            events.append(event)
    assert places, "no such flush"
    found = (what for seed in range(16) for what in cuts(disk, recording, events, places, seed))
    assert next(found, None)
