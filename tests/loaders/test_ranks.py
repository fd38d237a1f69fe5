from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.ranks import MAX_LANES, choose_lanes, find_rank
from tiering.errors import UsageError


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_rank_without_arguments_or_environment_is_the_only_one() -> None:
    assert find_rank(None, None) == (0, 1)


def test_rank_comes_from_the_environment_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert find_rank(None, None) == (3, 4)


def test_rank_as_given_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert find_rank(1, 2) == (1, 2)


@pytest.mark.parametrize(("rank", "world_size"), [(0, None), (None, 2)])
def test_rank_given_by_half_is_refused(rank: int | None, world_size: int | None) -> None:
    with pytest.raises(UsageError, match="both or neither"):
        find_rank(rank, world_size)


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 2), (2, 2), (0, 0), (0, -1)])
def test_rank_outside_of_its_world_is_refused(rank: int, world_size: int) -> None:
    with pytest.raises(UsageError, match="count from 0"):
        find_rank(rank, world_size)


def test_rank_in_the_environment_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(UsageError, match="RANK or WORLD_SIZE"):
        find_rank(None, None)


@pytest.mark.parametrize(
    ("batch_size", "world_size", "lanes"),
    [(256, 1, 64), (256, 8, 64), (100, 1, 4), (100, 8, 32), (7, 1, 1), (1, 64, 64), (12, 2, 8)],
)
def test_lanes_are_by_default_the_largest_power_of_two_that_divides_the_global_batch(
    batch_size: int, world_size: int, lanes: int
) -> None:
    assert choose_lanes(None, batch_size, world_size) == lanes


@given(st.integers(1, 5000), st.integers(1, 300))
def test_lanes_chosen_by_default_fit_or_the_hint_names_some_that_do(batch_size: int, world_size: int) -> None:
    try:
        lanes = choose_lanes(None, batch_size, world_size)
    except UsageError as error:
        named = (error.hint or "").partition("[")[2].partition("]")[0].split(",")
        lanes = choose_lanes(int(named[0]), batch_size, world_size)
    else:
        assert lanes <= MAX_LANES
    assert batch_size * world_size % lanes == 0
    assert lanes % world_size == 0


@pytest.mark.parametrize("lanes", [0, -1, 3, 512])
def test_lanes_that_do_not_divide_the_global_batch_are_refused_with_an_example(lanes: int) -> None:
    with pytest.raises(UsageError, match="does not divide the global batch of 256 rows") as caught:
        choose_lanes(lanes, 256, 1)
    assert caught.value.hint == "Example: lanes=64"


def test_world_size_that_does_not_divide_the_lanes_is_refused_with_lanes_that_fit() -> None:
    with pytest.raises(UsageError, match="world size 3 does not divide the 64 lanes") as caught:
        choose_lanes(None, 256, 3)
    assert "[3, 6, 12, 24, 48, 96]" in str(caught.value)
