"""Integrated prefetching against the least stall there is, on cases small enough to try every schedule."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.simulation import CacheModel, Outcome, TierModel, simulate_trace
from tests.policies.prefetch_model import least_stall, least_stall_by_lp

FUTURE = st.lists(st.integers(0, 3), min_size=1, max_size=8)
CELLS, FETCH = st.integers(1, 3), st.integers(1, 4)


def aggressive(future: list[int], cells: int, fetch_units: int, slots: int = 1) -> Outcome:
    tier = TierModel(fetch_units, math.inf, slots=slots)
    cache = CacheModel(cells, "integrated", 1 << 20, demand_slots=0)
    return simulate_trace(future, 1, tier, cache, compute_seconds=1.0)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(FUTURE, CELLS, FETCH)
def test_least_stall_is_the_optimum_of_the_linear_program(
    future: list[int], cells: int, fetch_units: int
) -> None:
    assert least_stall_by_lp(future, cells, fetch_units) == pytest.approx(
        least_stall(future, cells, fetch_units), abs=1e-6
    )


@settings(derandomize=True, max_examples=150, deadline=None)
@given(FUTURE, CELLS, FETCH)
def test_integrated_with_one_slot_is_within_the_factor_of_aggressive(
    future: list[int], cells: int, fetch_units: int
) -> None:
    stall = least_stall(future, cells, fetch_units)
    outcome = aggressive(future, cells, fetch_units)
    assert outcome.stall_seconds >= stall
    factor = min(1 + fetch_units / cells, 2)
    assert outcome.elapsed_seconds <= factor * (len(future) + stall)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=7), CELLS, st.integers(1, 3), st.integers(2, 3))
def test_integrated_with_several_slots_is_never_below_the_optimum(
    future: list[int], cells: int, fetch_units: int, slots: int
) -> None:
    outcome = aggressive(future, cells, fetch_units, slots)
    assert outcome.stall_seconds >= least_stall(future, cells, fetch_units, slots)


def test_integrated_is_not_always_optimal() -> None:
    """The known weakness of Aggressive: it may evict too early. So the factor above does tell something."""
    future = [1, 3, 0, 0, 1, 2, 0]
    assert least_stall(future, 2, 4) == 15
    assert aggressive(future, 2, 4).stall_seconds == 18
