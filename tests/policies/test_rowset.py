import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Order
from policies.order import rowset
from policies.order.rowset import Bits, Runs, equal, row_set

PROFILE = settings(max_examples=50, deadline=None, derandomize=True)


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    total = draw(st.integers(1, 3000))
    dice = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    runs = dice.random(total) < draw(st.sampled_from([0.0, 0.003, 0.03, 0.5, 1.0]))
    return np.logical_xor.accumulate(runs) if draw(st.booleans()) else runs


@PROFILE
@given(masks(), st.sampled_from([512, 1 << 20]))
def test_row_set_ranks_and_selects_as_the_mask_does(mask: np.ndarray, chunk: int) -> None:
    rows = np.flatnonzero(mask)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(np.int8), [0]))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rowset, "_CHUNK", chunk)
        patch.setattr(rowset, "_PART", 100)
        kept = row_set(mask, len(mask))
        others = [
            row_set(rows, len(mask)),
            row_set(edges.reshape(-1, 2), len(mask)),
            row_set(kept, len(mask)),
        ]
        assert all(equal(kept, other) for other in others)
        assert kept.rank(np.arange(len(mask) + 1)).tolist() == [0, *np.cumsum(mask).tolist()]
        assert kept.select(np.arange(len(rows))).tolist() == rows.tolist()


def test_row_set_takes_the_smaller_encoding() -> None:
    dice = np.random.default_rng(7)
    scattered = dice.random(1_000_000) < 0.5
    assert isinstance(row_set(scattered, 1_000_000), Bits)
    assert isinstance(row_set(np.flatnonzero(scattered), 1_000_000), Bits)
    assert row_set(scattered, 1_000_000).nbytes < 1_000_000 / 8 * 1.13
    few = np.repeat(dice.random(1000) < 0.5, 1000)
    assert isinstance(row_set(few, 1_000_000), Runs)
    assert row_set(few, 1_000_000).nbytes < 16 * 1000


def test_row_sets_differ_where_their_rows_do() -> None:
    mask = np.random.default_rng(7).random(100_000) < 0.5
    other = mask.copy()
    other[5] = ~other[5]
    assert not equal(row_set(mask, 100_000), row_set(other, 100_000))
    assert not equal(row_set([3], 10), row_set([4], 10))
    assert not equal(row_set([3], 10), None)
    assert equal(None, None)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([True] * 9, r"keep must be a mask of the 10 rows, .* not bool of shape \(9,\)"),
        ([1.5], "keep must be a mask of the 10 rows, .* not float64"),
        ([[1, 2, 3]], r"not int64 of shape \(1, 3\)"),
        (3, r"not int64 of shape \(\)"),
        ([-1, 3], r"keep must name rows in \[0, 10\), not -1 to 3"),
        ([3, 10], r"keep must name rows in \[0, 10\), not 3 to 10"),
        ([[3, 11]], r"keep must name rows in \[0, 10\), not 3 to 11"),
        ([3, 3], "keep must be ascending, each row once"),
        ([4, 3], "keep must be ascending"),
        ([[3, 3]], "no range empty"),
        ([[0, 4], [3, 5]], "keep must be ascending"),
    ],
)
def test_order_refuses_rows_that_are_no_subset(keep: object, message: str) -> None:
    with pytest.raises(ValueError, match=message + r".*; for example keep="):
        Order([6, 4], keep=keep)  # type: ignore[arg-type]
