import re

import numpy as np
import pytest

from policies.checks import number, whole, whole_ids, whole_list


@pytest.mark.parametrize("value", [1.0, "1", None, np.float64(1)])
def test_whole_refuses_what_is_no_integer(value: object) -> None:
    with pytest.raises(ValueError, match=r"lanes must be a whole number, not .*; e\.g\. lanes=8"):
        whole("lanes", value, least=1, example=8)  # type: ignore[arg-type]


def test_whole_returns_an_int_at_both_ends_of_its_range() -> None:
    assert [whole("n", np.uint8(n), least=3, below=6, example=4) for n in (3, 5)] == [3, 5]
    assert type(whole("n", np.uint8(3), least=3, example=4)) is int


@pytest.mark.parametrize(
    ("value", "message"), [(2, "n must be at least 3, not 2"), (6, "n must be below 6, not 6")]
)
def test_whole_refuses_a_number_out_of_range(value: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        whole("n", value, least=3, below=6, example=4)


def test_whole_list_repeats_one_number_and_keeps_many() -> None:
    assert whole_list("sizes", 5, 3) == [5, 5, 5]
    assert whole_list("sizes", np.array([1, 2, 3], dtype=np.uint32), 3) == [1, 2, 3]
    assert whole_list("sizes", [], 0) == []


@pytest.mark.parametrize(
    "values",
    [
        [1, 2],
        [[1], [2], [3]],
        1.5,
        [1.0, 2.0, 3.0],
        [1, -1, 1],
        -1,
        1 << 60,
        [1 << 63, 1, 1],
        ["a", "b", "c"],
    ],
)
def test_whole_list_refuses_another_shape_type_sign_or_sum(values: object) -> None:
    with pytest.raises(ValueError, match=r"sizes must be .* e\.g\. sizes=4096"):
        whole_list("sizes", values, 3)  # type: ignore[arg-type]


def test_whole_list_takes_a_sum_just_below_the_most() -> None:
    assert whole_list("sizes", [(1 << 60) - 1024, 0], 2) == [(1 << 60) - 1024, 0]
    with pytest.raises(ValueError, match=r"sizes must be below 2\*\*60 in all, not up to 288230376151711744"):
        whole_list("sizes", 1 << 58, 4)


def test_whole_ids_are_any_ints_in_a_row() -> None:
    assert whole_ids("ids", [3, -1]).tolist() == [3, -1]
    assert whole_ids("ids", np.array([2**64 - 1], dtype=np.uint64)).tolist() == [2**64 - 1]
    assert whole_ids("ids", []).tolist() == []


@pytest.mark.parametrize("values", [1, [[1]], [0.5], ["a"]])
def test_whole_ids_refuse_another_shape_or_type(values: object) -> None:
    with pytest.raises(
        ValueError, match=r"ids must be a flat sequence of ints, not .* e\.g\. ids=\[1, 2, 1\]"
    ):
        whole_ids("ids", values)


@pytest.mark.parametrize("value", [0, 0.5, np.float32(2.5), np.int64(3)])
def test_number_takes_what_is_finite_and_at_least_0(value: float) -> None:
    assert number("speed", value, example=1.0) == value


@pytest.mark.parametrize(
    ("value", "limits", "message"),
    [
        (-1.0, {}, "speed must be at least 0 and finite, not -1.0; e.g. speed=1.0"),
        (float("nan"), {}, "speed must be at least 0 and finite, not nan"),
        (float("inf"), {}, "not inf"),
        (0, {"above": 0}, "speed must be above 0 and finite, not 0"),
        (5, {"below": 5}, "speed must be at least 0 and below 5, not 5"),
        (True, {}, "not True"),
        ("fast", {}, "not 'fast'"),
    ],
)
def test_number_refuses_what_is_out_of_range(value: float, limits: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        number("speed", value, example=1.0, **limits)
