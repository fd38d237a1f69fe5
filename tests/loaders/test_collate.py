"""Collating against Python that does it row by row."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loaders.collate import Pack, Pad, as_it_is, choose_collate
from loaders.packing import best_fit_decreasing
from tiering.errors import UsageError

ROWS = st.lists(st.lists(st.integers(0, 99), max_size=12), min_size=1, max_size=20)
TOKENS = pa.list_(pa.uint16())
KINDS = st.sampled_from(
    [pa.list_(pa.uint16()), pa.large_list(pa.int64()), pa.list_(pa.float32()), pa.string()]
)


def batch_of(rows: list[list[int]], kind: pa.DataType = TOKENS) -> pa.RecordBatch:
    """A ragged column and a fixed one, as a slice of a longer batch."""
    values: list[Any] = [bytes(row).decode() for row in rows] if kind == pa.string() else rows
    around = [values[0], *values, values[-1]]
    return pa.record_batch({"x": pa.array(around, kind), "n": np.arange(len(around)) - 1}).slice(1, len(rows))


def dtype_of(kind: pa.DataType) -> np.dtype[Any]:
    return np.dtype(np.uint8 if kind == pa.string() else kind.value_type.to_pandas_dtype())


@settings(max_examples=60, deadline=None)
@given(ROWS, KINDS, st.sampled_from([None, 1, 5, 100]), st.sampled_from([1, 4]))
def test_pad_gives_each_row_and_its_length(
    rows: list[list[int]], kind: pa.DataType, max_length: int | None, multiple_of: int
) -> None:
    out = Pad(value=7, max_length=max_length, multiple_of=multiple_of)(batch_of(rows, kind))
    kept = [row[:max_length] for row in rows]
    width = max(map(len, kept))
    width = -(-width // multiple_of) * multiple_of
    assert out["x"].dtype == dtype_of(kind)
    assert out["x"].shape == (len(rows), width)
    assert out["x"].tolist() == [row + [7] * (width - len(row)) for row in kept]
    assert out["x_lengths"].tolist() == [len(row) for row in kept]
    assert out["n"].tolist() == list(range(len(rows)))


@settings(max_examples=60, deadline=None)
@given(ROWS, KINDS)
def test_pack_gives_all_values_and_where_rows_end(rows: list[list[int]], kind: pa.DataType) -> None:
    out = Pack()(batch_of(rows, kind))
    ends = out["x_cu_seqlens"]
    assert (out["x"].dtype, ends.dtype) == (dtype_of(kind), np.int32)
    assert len(ends) == len(rows) + 1
    assert [out["x"][a:b].tolist() for a, b in pairwise(ends)] == rows
    assert ends[-1] == len(out["x"])
    assert out["x_max_seqlen"] == max(map(len, rows))
    assert out["n"].tolist() == list(range(len(rows)))


@settings(max_examples=100, deadline=None)
@given(ROWS, KINDS, st.sampled_from([3, 12, 40]), st.sampled_from(["split", "truncate"]))
def test_packed_rows_hold_every_value_once(
    rows: list[list[int]], kind: pa.DataType, length: int, long: Any
) -> None:
    out = Pack(length=length, value=5, long=long)(batch_of(rows, kind))
    marks = [out[f"x_{mark}"] for mark in ("segments", "positions", "rows")]
    assert all(mark.dtype == np.int32 and mark.shape == out["x"].shape for mark in marks)
    found: dict[tuple[int, int], int] = {}
    for values, *of_row in zip(out["x"].tolist(), *(mark.tolist() for mark in marks), strict=True):
        assert len(values) == length
        pieces: dict[int, list[tuple[int, int]]] = {}
        for value, segment, position, row in zip(values, *of_row, strict=True):
            if not segment:
                assert (value, position, row) == (5, 0, -1)
                continue
            assert (row, position) not in found
            found[row, position] = value
            pieces.setdefault(segment, []).append((row, position))
        assert list(pieces) == list(range(1, len(pieces) + 1))  # in order, no gap, padding behind
        for piece in pieces.values():  # of one row, without a gap
            (row, first), count = piece[0], len(piece)
            assert piece == [(row, first + step) for step in range(count)]
            assert first % length == 0
    kept = [row[: length if long == "truncate" else None] for row in rows]
    assert found == {(r, p): value for r, row in enumerate(kept) for p, value in enumerate(row)}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=40))
def test_best_fit_decreasing_keeps_its_bound(lengths: list[int]) -> None:
    bins, places = best_fit_decreasing(np.array(lengths, np.int64), 20)
    used = [False] * (20 * (max(bins.tolist(), default=-1) + 1))
    for packed, place, length in zip(bins.tolist(), places.tolist(), lengths, strict=True):
        assert place + length <= 20
        assert not any(used[packed * 20 + place : packed * 20 + place + length])
        used[packed * 20 + place : packed * 20 + place + length] = [True] * length
    fewest = -(-sum(lengths) // 20)
    halves = sum(length > 10 for length in lengths)  # no two of them fit together
    assert len(used) // 20 <= max(fewest, halves) * 2  # what any fit keeps


def test_best_fit_decreasing_of_known_lengths_is_this() -> None:
    bins, places = best_fit_decreasing(np.array([3, 7, 5, 5, 2, 10, 1]), 10)
    assert bins.tolist() == [1, 1, 2, 2, 3, 0, 3]
    assert places.tolist() == [7, 0, 0, 5, 0, 0, 2]


def test_columns_of_equal_lengths_are_packed_alike() -> None:
    rows = [[1] * n for n in (5, 2, 8, 3, 3)]
    batch = pa.record_batch({"tokens": pa.array(rows), "labels": pa.array([[9] * len(row) for row in rows])})
    out = Pack(length=8)(batch)
    assert out["tokens"].shape == (3, 8)
    for mark in ("segments", "positions", "rows"):
        assert np.array_equal(out[f"tokens_{mark}"], out[f"labels_{mark}"])


def test_pack_with_a_fixed_number_of_rows_fills_them_up_or_says_how_many_it_needs() -> None:
    batch = batch_of([[1, 2, 3], [4, 5]])
    out = Pack(length=3, packed_rows=4)(batch)
    assert out["x"].tolist() == [[1, 2, 3], [4, 5, 0], [0, 0, 0], [0, 0, 0]]
    with pytest.raises(UsageError, match="needs 2 packed rows of 3 for column 'x', more than 1"):
        Pack(length=3, packed_rows=1)(batch)


def test_pack_of_a_long_row_is_an_error_by_default() -> None:
    with pytest.raises(
        UsageError, match=r"row 1 of a batch has 4 values of column 'x', over the 3 of a packed row.*split"
    ):
        Pack(length=3)(batch_of([[1], [1, 2, 3, 4]]))


def test_batch_of_empty_rows_is_padded_and_packed() -> None:
    batch = batch_of([[], []])
    assert Pad()(batch)["x"].shape == (2, 0)
    assert Pack()(batch)["x_cu_seqlens"].tolist() == [0, 0, 0]
    assert Pack(length=4)(batch)["x"].shape == (0, 4)


@pytest.mark.parametrize(
    "column", [pa.array([[1], None]), pa.array([[1], [None]]), pa.array(["a", None])], ids=str
)
@pytest.mark.parametrize("collate", [Pad(), Pack(), Pack(length=4)])
def test_nulls_are_refused(column: pa.Array, collate: Any) -> None:
    with pytest.raises(UsageError, match=r"column 'x' has 1 nulls in a batch.*collate='arrow'"):
        collate(pa.record_batch({"x": column}))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Pad(max_length=0),
        lambda: Pad(multiple_of=0),
        lambda: Pack(length=0),
        lambda: Pack(length=4, packed_rows=0),
        lambda: Pack(long="split"),
        lambda: Pack(length=4, long="cut"),  # type: ignore[arg-type]
    ],
)
def test_options_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(UsageError):
        make()


def schema(**kinds: pa.DataType) -> pa.Schema:
    return pa.schema(list(kinds.items()))


def test_choose_collate_without_a_choice_wants_one_for_ragged_columns_alone() -> None:
    assert choose_collate(None, schema(x=pa.int64())) is None
    assert choose_collate("pad", schema(x=pa.int64())) is None
    assert choose_collate("arrow", schema(x=pa.int64())) is as_it_is
    assert choose_collate("pack", schema(x=pa.string())) == Pack()
    assert choose_collate(repr, schema(x=pa.string())) is repr
    with pytest.raises(UsageError, match=r"'x' of type string has no fixed shape.*'arrow'.*'pad' and 'pack'"):
        choose_collate(None, schema(n=pa.int8(), x=pa.string()))


@pytest.mark.parametrize(
    ("collate", "kinds", "message"),
    [
        ("stack", {"x": pa.string()}, "collate = 'stack' is none of arrow, pad, pack"),
        (3, {"x": pa.string()}, "collate = 3 is no function"),
        (Pad, {"x": pa.string()}, "is no function"),
        ("pad", {"x": pa.list_(pa.string())}, "'x' of type list<.*> cannot be padded"),
        ("pack", {"x": pa.struct([("a", pa.int8())])}, "'x' of type struct<.*> cannot be packed"),
        (Pad(value=-1), {"x": pa.string()}, "value = -1 is no uint8, as column 'x' has"),
        (Pack(length=8, value=0.5), {"x": pa.list_(pa.int32())}, "value = 0.5 is no int32"),
        ("pad", {"x": pa.string(), "x_lengths": pa.int8()}, "x_lengths has the name of what comes beside"),
        ("pack", {"x": pa.string(), "x_cu_seqlens": pa.int8()}, "x_cu_seqlens has the name"),
        (Pack(length=8), {"x": pa.string(), "x_rows": pa.int8()}, "x_rows has the name"),
    ],
)
def test_choose_collate_refuses_what_cannot_be(
    collate: Any, kinds: dict[str, pa.DataType], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        choose_collate(collate, schema(**kinds))
