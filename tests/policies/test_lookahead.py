import math

import pytest

from policies.prefetch import Lookahead, bandwidth_delay_bytes


def observe(lookahead: Lookahead, *, fetched: int = 50, wasted: int = 0, stall: float = 0.0) -> int:
    return lookahead.observe(
        requested_bytes=100, fetched_bytes=fetched, wasted_bytes=wasted, stall_seconds=stall
    )


def test_bandwidth_delay_bytes_counts_the_item_itself() -> None:
    assert bandwidth_delay_bytes(0.03, 1e9) == 30_000_000
    assert bandwidth_delay_bytes(0.03, 1e9, 7) == 30_000_007


def test_lookahead_widens_with_stalls_and_flat_egress_up_to_its_limit() -> None:
    lookahead = Lookahead(100, most_bytes=200)
    assert [observe(lookahead, stall=0.1) for _ in range(3)] == [151, 200, 200]
    assert observe(lookahead) == 200


def test_lookahead_narrows_when_prefetched_bytes_are_wasted_down_to_its_limit() -> None:
    lookahead = Lookahead(100, least_bytes=60)
    assert [observe(lookahead, wasted=1, stall=0.1) for _ in range(3)] == [75, 60, 60]


def test_lookahead_takes_back_a_widening_that_raised_egress() -> None:
    lookahead = Lookahead(100)
    assert observe(lookahead, stall=0.1) == 151
    assert observe(lookahead, fetched=60, stall=0.1) == 113


def test_lookahead_stays_where_egress_rises_by_itself() -> None:
    lookahead = Lookahead(100)
    assert observe(lookahead, fetched=50) == 100
    assert observe(lookahead, fetched=60, stall=0.1) == 100
    assert observe(lookahead, fetched=61, stall=0.1) == 151


def test_lookahead_limits_default_to_half_and_sixteen_times_the_start() -> None:
    lookahead = Lookahead(100)
    for _ in range(20):
        observe(lookahead, stall=0.1)
    assert lookahead.nbytes == 1600
    for _ in range(20):
        observe(lookahead, wasted=1)
    assert lookahead.nbytes == 50
    assert lookahead.round_bytes > lookahead.nbytes


@pytest.mark.parametrize(
    ("start", "options", "message"),
    [
        (-1, {}, "start_bytes must be at least 0"),
        (10, {"least_bytes": 11}, "least_bytes must be below 11"),
        (10, {"most_bytes": 9}, "most_bytes must be at least 10"),
    ],
)
def test_lookahead_refuses_limits_that_the_start_breaks(
    start: int, options: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Lookahead(start, **options)


@pytest.mark.parametrize(
    ("latency", "bandwidth", "message"),
    [
        (-1.0, 1.0, "latency_seconds must be at least 0"),
        (math.nan, 1.0, "latency_seconds"),
        (1.0, 0.0, "bandwidth_bytes_per_second must be above 0"),
        (1.0, math.inf, "bandwidth_bytes_per_second must be above 0 and finite"),
    ],
)
def test_bandwidth_delay_bytes_refuses_what_is_no_link(
    latency: float, bandwidth: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bandwidth_delay_bytes(latency, bandwidth)
