"""Blocks read whole: once for all lanes that need them, and no more of them kept than asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from loaders.whole import WholeBlocks
from tests.corpora import columns, memory_corpus
from tiering.errors import Unavailable
from tiering.reader import BlockReader
from tiering.stores.pages import PAGE_BYTES


class Counting(BlockReader):
    """Notes what is read; fails where told so."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.done: list[tuple[int, int, tuple[str, ...]]] = []
        self.failing = False

    def read(self, shard: int, block: int, slots: Mapping[str, memoryview]) -> None:
        if self.failing:
            raise Unavailable("no answer")
        self.done.append((shard, block, tuple(slots)))
        super().read(shard, block, slots)


@pytest.fixture(scope="module")
def made() -> Iterator[Any]:
    """70 rows in shards of 32, blocks of 8: the last block has 6 rows."""
    with memory_corpus(70, 8, 4) as corpus:
        yield corpus


@pytest.fixture
def reader(made: Any) -> Counting:
    return Counting(made)


def blocks_of(reader: BlockReader, most: int = 8) -> WholeBlocks:
    return WholeBlocks(reader, reader.corpus.shard_rows, most)


def check(found: Mapping[str, Any], first: int, count: int) -> None:
    for name, values in columns(range(first, first + count)).items():
        np.testing.assert_array_equal(found[name][:count], values)


def test_a_block_of_one_lane_is_read_into_the_memory_of_its_thread(reader: Counting) -> None:
    blocks = blocks_of(reader)
    first = blocks.read(0, 1, ["row", "pair"])
    check(first, 8, 8)
    second = blocks.read(2, 0, ["row", "pair"])
    check(second, 64, 6)
    assert second["row"] is first["row"]
    with ThreadPoolExecutor(1) as pool:
        third = pool.submit(blocks.read, 0, 0, ["row", "pair"]).result()
    assert third["row"] is not first["row"]
    assert len(reader.done) == 3
    for rows in (*first.values(), *third.values()):  # direct I/O takes it as it is
        assert rows.__array_interface__["data"][0] % PAGE_BYTES == 0


def test_a_block_of_several_lanes_is_read_once_until_all_its_rows_were_used(reader: Counting) -> None:
    blocks = blocks_of(reader)
    for shared in (3, 4, 1):
        check(blocks.read(0, 1, ["row", "pair"], shared), 8, 8)
    assert len(reader.done) == 1
    blocks.read(0, 1, ["row", "pair"], 3)
    assert len(reader.done) == 2


def test_columns_that_were_not_wanted_before_are_read_when_they_are(reader: Counting) -> None:
    blocks = blocks_of(reader)
    blocks.read(0, 1, ["row"], 3)
    check(blocks.read(0, 1, ["row", "pair"], 3), 8, 8)
    assert reader.done == [(0, 1, ("row",)), (0, 1, ("pair",))]


def test_of_more_blocks_than_are_kept_the_first_ones_are_read_again(reader: Counting) -> None:
    blocks = blocks_of(reader, 2)
    for block in (0, 1, 2, 0, 2):
        check(blocks.read(0, block, ["row", "pair"], 2), 8 * block, 8)
    assert [block for _, block, _ in reader.done] == [0, 1, 2, 0]


def test_threads_that_want_one_block_read_it_once(reader: Counting) -> None:
    blocks, together = blocks_of(reader), threading.Barrier(4)

    def read(_: int) -> None:
        together.wait(60)
        check(blocks.read(1, 0, ["row", "pair"], 2), 32, 8)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))
    assert len(reader.done) == 1


def test_a_block_that_could_not_be_read_is_read_when_it_is_asked_for_again(reader: Counting) -> None:
    blocks = blocks_of(reader)
    reader.failing = True
    with pytest.raises(Unavailable):
        blocks.read(0, 0, ["row"], 2)
    reader.failing = False
    check(blocks.read(0, 0, ["row", "pair"], 2), 0, 8)
