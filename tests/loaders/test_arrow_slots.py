"""Slots of Arrow blocks: every type that is stored comes back as the table has it, in the order asked for."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loaders.arrow_ranges import Arena, Ranges
from loaders.arrow_slots import ROWS, ArrowSlots
from tests.corpora import memory_tier
from tiering import Corpus, ingest
from tiering.errors import FormatError, UsageError
from tiering.layout.arrow import normalise
from tiering.reader import BlockReader

N = 200
VALUES = np.arange(3 * N, dtype=np.int64)


def lists(rows: range, items: int) -> list[list[int]]:
    return [[row * 10 + item for item in range((row * 7) % items)] for row in rows]


def every_type() -> pa.Table:
    rows = range(N)
    inner = pa.list_(pa.field("item", pa.int16(), nullable=False), 3)
    points = pa.array([[[n % 99, 1, 2]] * (n % 4) for n in rows], pa.list_(inner))
    columns: dict[str, Any] = {
        "number": pa.array(rows, pa.int32()),
        "nullable": pa.array([None if n % 3 == 0 else n for n in rows], pa.uint8()),
        "flag": pa.array([n % 3 == 1 for n in rows]),
        "half": pa.array(np.arange(N, dtype=np.float16)),
        "day": pa.array([datetime.date(2020, 1, 1) + datetime.timedelta(n) for n in rows]),
        "money": pa.array([decimal.Decimal(n) / 4 for n in rows], pa.decimal128(12, 2)),
        "key": pa.array([bytes([n, 1, 2]) for n in rows], pa.binary(3)),
        "matrix": pa.array([[[n, 1], [2, 3]] for n in rows], pa.list_(pa.list_(pa.int64(), 2), 2)),
        "text": pa.array(["é" * (n % 5) for n in rows]),
        "large_text": pa.array([None if n % 7 == 0 else "x" * (n % 9) for n in rows], pa.large_string()),
        "bytes": pa.array([bytes([n]) * (n % 6) for n in rows]),
        "empty": pa.array([""] * N),
        "tokens": pa.array(lists(rows, 11), pa.list_(pa.uint16())),
        "large_tokens": pa.array(lists(rows, 5), pa.large_list(pa.int64())),
        "no_list": pa.array([None if n % 5 == 0 else [n] for n in rows], pa.list_(pa.float64())),
        "points": points,
        "inner_nulls": pa.array([[n, None] if n > N // 2 else [n] for n in rows], pa.list_(pa.int32())),
        "flags": pa.array([[True, False][: n % 3] for n in rows], pa.list_(pa.bool_())),
        "words": pa.array([["w" * n] * (n % 3) for n in rows], pa.list_(pa.string())),
        "nested": pa.array([[[n], []][: n % 3] for n in rows], pa.list_(pa.list_(pa.int64()))),
        "struct": pa.array([{"a": n, "b": "s" * (n % 4)} for n in rows]),
        "map": pa.array([[("k", n)] * (n % 2) for n in rows], pa.map_(pa.string(), pa.int64())),
        "nothing": pa.nulls(N),
    }
    table = pa.table(columns)
    return table.cast(normalise(table.schema))


TABLE = every_type()


@pytest.fixture(scope="module")
def corpus() -> Iterator[Corpus]:
    """Blocks of 16 rows, the last of 8."""
    with memory_tier() as tier:
        yield ingest(TABLE, tier, "c", block_rows=16, shard_size="16KiB", progress=False)


def filled(corpus: Corpus, columns: list[str] | None = None) -> tuple[ArrowSlots, list[int]]:
    """Slots with all blocks, and the first row of each."""
    reader = BlockReader(corpus, columns, ragged=True)
    blocks = [
        (shard, block, int(corpus.shard_rows[:shard].sum()) + 16 * block)
        for shard, rows in enumerate(corpus.shard_rows.tolist())
        for block in range(-(-rows // 16))
    ]
    slots = ArrowSlots(reader, len(blocks))
    for slot, (shard, block, _) in enumerate(blocks):
        slots.read(shard, block, slot)
    return slots, [first for _, _, first in blocks]


def gathered(slots: ArrowSlots, firsts: list[int], rows: list[int], cut: int = 0) -> pa.RecordBatch:
    """These rows, gathered in two pieces, the later one first."""
    slot_of = (np.searchsorted(firsts, rows, side="right") - 1).astype(np.int32)
    within = (np.asarray(rows) - np.asarray(firsts)[slot_of]).astype(np.int32)
    batch = slots.new_batch(len(rows))
    for start, stop in ((cut, len(rows)), (0, cut)):
        if start < stop:
            slots.gather(batch, start, slot_of[start:stop], within[start:stop])
    assert len(batch[ROWS]) == len(rows)
    whole: pa.RecordBatch = batch[ROWS].whole()
    whole.validate(full=True)
    return whole


@pytest.fixture(scope="module")
def all_types(corpus: Corpus) -> tuple[ArrowSlots, list[int]]:
    return filled(corpus)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.integers(0, N - 1), min_size=1, max_size=60), data=st.data())
def test_gather_gives_rows_of_every_type_in_order(
    all_types: tuple[ArrowSlots, list[int]], rows: list[int], data: st.DataObject
) -> None:
    found = gathered(*all_types, rows, data.draw(st.integers(0, len(rows) - 1)))
    assert found.schema.equals(TABLE.schema, check_metadata=True)
    wanted = TABLE.take(rows)
    for name in TABLE.schema.names:
        assert found[name].to_pylist() == wanted[name].to_pylist(), name


def test_rows_of_most_types_are_ranges_and_the_rest_is_taken_by_blocks(corpus: Corpus) -> None:
    slots, _ = filled(corpus)
    by_blocks = {r.field.name for r in slots._columns if r is not None and not r.noted.all()}
    assert by_blocks == {"inner_nulls"}
    others = {f.name for f, r in zip(TABLE.schema, slots._columns, strict=True) if r is None}
    assert others == {"flag", "flags", "words", "nested", "struct", "map", "nothing"}


def test_batch_keeps_its_rows_when_the_slots_are_read_again(corpus: Corpus) -> None:
    slots, firsts = filled(corpus, ["text", "tokens", "words"])
    kept = gathered(slots, firsts, [3, 70, 140])
    for slot in range(slots.count):
        slots.read(0, 0, slot)
    assert kept.to_pylist() == TABLE.select(["text", "tokens", "words"]).take([3, 70, 140]).to_pylist()


def test_rows_outside_of_their_column_are_refused() -> None:
    arena = Arena(1024)
    text = pa.array(["abc", "de"])
    arena.memory[:64] = 0
    arena.memory[:5] = np.frombuffer(text.buffers()[2], np.uint8, 5)
    ranges = Ranges.of(pa.field("text", pa.string()), 1, 2, arena)
    assert ranges is not None
    for offsets in ([0, 3, 2], [0, 9, 5]):
        data = pa.py_buffer(arena.memory[:5])
        bad = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(np.array(offsets, np.int32)), data])
        with pytest.raises(FormatError, match="'text' has rows that do not lie within"):
            ranges.note(0, bad)


def test_rows_that_are_too_many_for_their_type_are_refused() -> None:
    arena = Arena(1 << 20)
    ranges = Ranges.of(pa.field("text", pa.string()), 1, 1, arena)
    assert ranges is not None
    data = pa.py_buffer(arena.memory)
    text = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(np.array([0, 1 << 20], np.int32)), data])
    assert ranges.note(0, text)
    index = np.zeros(2048, np.int64)
    with pytest.raises(UsageError, match=r"2147483648 items, too many for string.*smaller batch_size"):
        ranges.take(index, index)
