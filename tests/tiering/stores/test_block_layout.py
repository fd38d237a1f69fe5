"""Free space never overlaps and is all reusable; header pages say only the truth."""

from __future__ import annotations

import secrets
from uuid import uuid4

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tiering.digest import digest
from tiering.stores.block_index import Entry
from tiering.stores.block_layout import Superblock, pack_header, parse_header
from tiering.stores.block_medium import PAGE_BYTES
from tiering.stores.block_space import FreeSpace

START, STOP = 3, 103
STEPS = st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=60)


def runs_of(taken: dict[int, int]) -> list[tuple[int, int]]:
    """Free (offset, length) runs between `taken`, as a naive model sees them."""
    runs, at = [], START
    for offset, length in [*sorted(taken.items()), (STOP, 0)]:
        assert offset >= at, "extents overlap"
        if offset > at:
            runs.append((at, offset - at))
        at = offset + length
    return runs


@given(STEPS)
@settings(deadline=None)
def test_free_space_any_history_equals_the_model(steps: list[tuple[bool, int]]) -> None:
    space, taken = FreeSpace(START, STOP, []), dict[int, int]()
    for grow, number in steps:
        if grow or not taken:
            lengths = [length for _, length in runs_of(taken) if length >= number]
            offset = space.take(number)
            assert (offset is None) == (not lengths)
            if offset is not None:
                at = min((length, run) for run, length in runs_of(taken) if length >= number)[1]
                assert offset == at, "not the best fit"
                taken[offset] = number
        else:
            offset = sorted(taken)[number % len(taken)]
            space.give(offset, taken.pop(offset))
        runs = runs_of(taken)
        assert space.nbytes == sum(length for _, length in runs)
        assert space.largest_bytes == max((length for _, length in runs), default=0)
    again = FreeSpace(START, STOP, taken.items())
    assert (again.nbytes, again.largest_bytes) == (space.nbytes, space.largest_bytes)
    for offset in sorted(taken):
        space.give(offset, taken[offset])
    assert space.take(STOP - START) == START


def test_free_space_pinned_extent_waits_for_its_last_reader() -> None:
    space = FreeSpace(0, 10, [])
    offset = space.take(4)
    assert offset == 0
    space.pin(0)
    space.pin(0)
    space.give(0, 4)
    space.unpin(0)
    assert space.take(7) is None
    space.unpin(0)
    assert space.take(10) == 0


def test_free_space_unpinned_extent_that_is_still_taken_stays_taken() -> None:
    space = FreeSpace(0, 10, [(0, 4)])
    space.pin(0)
    space.unpin(0)
    assert space.nbytes == 6


@pytest.mark.parametrize("taken", [[(0, 4), (3, 2)], [(8, 3)], [(-1, 2)], [(2, 0)]])
def test_free_space_impossible_extents_are_refused(taken: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="overlaps or leaves"):
        FreeSpace(0, 10, taken)


def header(entry: Entry) -> tuple[Superblock, bytearray]:
    superblock = Superblock(uuid4(), 1 << 20, 1, secrets.token_bytes(16))
    return superblock, bytearray(pack_header(superblock.volume, entry))


@given(st.integers(0, PAGE_BYTES * 8 - 1))
@settings(deadline=None, max_examples=50)
def test_header_any_flipped_bit_is_seen(bit: int) -> None:
    entry = Entry("a/b", 8192, 5, 7, digest(b"12345"))
    superblock, page = header(entry)
    assert parse_header(memoryview(page), superblock, 8192) == entry
    page[bit // 8] ^= 1 << bit % 8
    assert parse_header(memoryview(page), superblock, 8192) is None


def test_header_elsewhere_or_of_another_volume_counts_for_nothing() -> None:
    entry = Entry("a/b", 8192, 5, 7, digest(b"12345"))
    superblock, page = header(entry)
    assert parse_header(memoryview(page), superblock, 12288) is None
    other, _ = header(entry)
    assert parse_header(memoryview(page), other, 8192) is None
    beyond = Entry("a/b", 8192, 1 << 20, 7, entry.digest)
    superblock, page = header(beyond)
    assert parse_header(memoryview(page), superblock, 8192) is None
    hostile = Entry("../b", 8192, 5, 7, entry.digest)
    superblock, page = header(hostile)
    assert parse_header(memoryview(page), superblock, 8192) is None
