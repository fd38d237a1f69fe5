"""Rates: growth per second, with time passed in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiering.monitor.rates import History, RateModel
from tiering.monitor.stats import Counters


def test_rate_is_growth_over_elapsed_time() -> None:
    model: RateModel[str] = RateModel()
    assert model.observe(100.0, {"a": 7}) == {}
    assert model.observe(102.0, {"a": 13}) == {"a": 3.0}


def test_rate_of_a_new_key_counts_from_zero() -> None:
    model: RateModel[str] = RateModel()
    model.observe(100.0, {"a": 7})
    assert model.observe(102.0, {"a": 7, "b": 10}) == {"a": 0.0, "b": 5.0}


def test_rate_is_averaged_over_the_span() -> None:
    model: RateModel[str] = RateModel(span_seconds=3.0)
    rates = [model.observe(float(now), {"a": total}) for now, total in enumerate([0, 0, 6, 6, 12, 12])]
    assert rates == [{}, {"a": 0.0}, {"a": 3.0}, {"a": 2.0}, {"a": 4.0}, {"a": 2.0}]


def test_rate_after_a_long_silence_uses_the_last_observation() -> None:
    model: RateModel[str] = RateModel(span_seconds=3.0)
    for now in (0.0, 1.0, 2.0):
        model.observe(now, {"a": 5})
    assert model.observe(102.0, {"a": 205}) == {"a": 2.0}


@pytest.mark.parametrize(("now", "total"), [(99.0, 20), (100.0, 20), (101.0, 5)])
def test_rate_starts_afresh_when_clock_or_total_goes_back(now: float, total: int) -> None:
    model: RateModel[str] = RateModel()
    model.observe(100.0, {"a": 10})
    assert model.observe(now, {"a": total}) == {}
    assert model.observe(now + 2, {"a": total + 6}) == {"a": 3.0}


def test_rate_starts_afresh_when_a_key_vanishes() -> None:
    model: RateModel[str] = RateModel()
    model.observe(100.0, {"a": 10, "b": 1})
    assert model.observe(101.0, {"b": 2}) == {}


@given(st.lists(st.tuples(st.floats(0.01, 1e4), st.integers(0, 10**15)), min_size=1, max_size=30))
def test_rates_of_growing_totals_are_never_negative(steps: list[tuple[float, int]]) -> None:
    model: RateModel[str] = RateModel()
    now, total = 0.0, 0
    for seconds, nbytes in steps:
        now, total = now + seconds, total + nbytes
        assert all(rate >= 0 for rate in model.observe(now, {"a": total}).values())


def test_history_has_rates_by_tier_and_direction_and_hit_ratio_of_the_span() -> None:
    counters = Counters()
    history = History(length=2, span_seconds=5.0)
    counters.add_cache(hits=1000)
    assert history.observe(10.0, counters.snapshot()).hit_ratio is None
    counters.add_moved("lake", "read", 30)
    counters.add_moved("disk", "write", 14)
    counters.add_cache(hits=3, misses=1)

    point = history.observe(12.0, counters.snapshot())

    assert point.bytes_per_second[("lake", "read")] == 15.0
    assert point.bytes_per_second[("disk", "write")] == 7.0
    assert point.hit_ratio == pytest.approx(0.75)
    history.observe(13.0, counters.snapshot())
    assert [point.seconds for point in history.points] == [12.0, 13.0]


def test_history_has_rows_a_second_and_what_loaders_wait_of_their_time() -> None:
    counters = Counters()
    history = History(span_seconds=5.0)
    counters.add_loaded(1000, 10**9, 10**9)
    first = history.observe(10.0, counters.snapshot())
    assert (first.rows_per_second, first.stall_share) == (None, None)
    counters.add_loaded(600, 2 * 10**9, 5 * 10**8)
    second = history.observe(12.0, counters.snapshot())
    assert (second.rows_per_second, second.stall_share) == (300.0, 0.25)
    for now in (20.0, 30.0):
        idle = history.observe(now, counters.snapshot())
    assert (idle.rows_per_second, idle.stall_share) == (None, None)


def test_history_without_requests_has_no_hit_ratio() -> None:
    counters = Counters()
    counters.add_cache(hits=5)
    history = History()
    for now in (10.0, 11.0):
        point = history.observe(now, counters.snapshot())
    assert point.hit_ratio is None
