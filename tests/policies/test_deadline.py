import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.deadline import Delivery, Refusal, Schedule
from policies.simulation import TierModel

TIER = TierModel(3.0, 2.0, slots=2, request_price=0.5, egress_price_per_gb=1e9)


def delivery(count: int = 3, nbytes: int = 4, **options: float) -> Delivery[int]:
    return Delivery(list(range(count)), nbytes, TIER, **{"deadline_seconds": 112.0, **options})


def scheduled(found: Schedule[int] | Refusal) -> Schedule[int]:
    assert isinstance(found, Schedule)
    return found


def refused(found: Schedule[int] | Refusal) -> Refusal:
    assert isinstance(found, Refusal)
    return found


def test_plan_takes_the_slowest_rate_that_is_in_time() -> None:
    plan = scheduled(delivery().plan(100.0))
    # Both slots begin at once: 3 s, then 4 bytes; the third waits for the first, 3 s more, then its 4 bytes.
    assert plan.rate_bytes_per_second == pytest.approx(8 / 6)
    assert [(start.item, start.nbytes) for start in plan.starts] == [(0, 4), (1, 4), (2, 4)]
    assert [start.start_seconds for start in plan.starts] == pytest.approx([100.0, 100.0, 106.0])
    assert [start.done_seconds for start in plan.starts] == pytest.approx([106.0, 109.0, 112.0])
    assert plan.done_seconds == pytest.approx(112.0)
    assert plan.cost == 3 * 0.5 + 12


def test_plan_refuses_for_bandwidth_and_says_what_would_do() -> None:
    found = refused(delivery(bandwidth_bytes_per_second=1.0).plan(100.0))
    assert found.short == ("bandwidth",)
    assert found.bandwidth_needed_bytes_per_second == pytest.approx(8 / 6)
    assert found.deadline_needed_seconds == 100 + 3 + 12 * 1.0
    assert found.fits == 2
    assert found.reason == (
        "3 items of 12 bytes need 15 s at 1 bytes a second, and 12 s are left: 1.33333 bytes a second would "
        "do, or a deadline of 115.0; the first 2 of the items left could be had"
    )


def test_plan_refuses_for_time_where_no_bandwidth_would_do() -> None:
    found = refused(delivery(deadline_seconds=105.0).plan(100.0))
    assert (found.short, found.bandwidth_needed_bytes_per_second) == (("time",), math.inf)
    assert found.deadline_needed_seconds == 100 + 5 + 3 + 2
    assert found.fits == 1
    assert "no bandwidth would do with 2 slots of 3.0 s latency" in found.reason
    assert refused(delivery(deadline_seconds=99.0).plan(100.0)).short == ("time",)


def test_plan_refuses_for_money_and_says_how_much() -> None:
    found = refused(delivery(money=10.0).plan(100.0))
    assert (found.short, found.money_needed, found.fits) == (("money",), 13.5, 2)
    assert "it costs 13.5 in all, 3.5 more than may be spent" in found.reason
    both = refused(delivery(money=10.0, bandwidth_bytes_per_second=1.0).plan(100.0))
    assert both.short == ("bandwidth", "money")


def test_replan_leaves_out_what_is_done_and_counts_what_it_cost() -> None:
    wanted = delivery(money=13.5)
    plan = scheduled(wanted.replan(106.0, [0, 2]))
    assert [(start.item, start.start_seconds) for start in plan.starts] == [(1, 106.0)]
    assert plan.rate_bytes_per_second == pytest.approx(4 / 3)
    assert plan.cost == 4.5
    assert refused(wanted.replan(106.0, [0, 2], spent=9.5)).short == ("money",)
    late = refused(wanted.replan(108.0, [0, 2]))
    assert (late.short, late.bandwidth_needed_bytes_per_second) == (("bandwidth",), pytest.approx(4.0))


def test_replan_of_what_is_all_done_has_nothing_left() -> None:
    plan = scheduled(delivery().replan(500.0, [0, 1, 2]))
    assert (plan.starts, plan.done_seconds, plan.cost) == ((), 500.0, 0.0)


def test_plan_of_empty_items_needs_time_alone() -> None:
    assert refused(delivery(nbytes=0, deadline_seconds=105.0).plan(100.0)).short == ("time",)
    assert scheduled(delivery(nbytes=0, deadline_seconds=106.0).plan(100.0)).done_seconds == 106.0


@settings(derandomize=True, max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=20),
    st.integers(1, 5),
    st.integers(0, 4),
    st.integers(1, 60),
)
def test_plan_keeps_deadline_and_rate_or_no_rate_would_do(
    sizes: list[int], slots: int, latency: int, seconds: int
) -> None:
    tier = TierModel(latency, 3.0, slots=slots)
    wanted = Delivery(list(range(len(sizes))), sizes, tier, deadline_seconds=seconds)
    found = wanted.plan(0.0)
    ends = last_bytes(sizes, tier, 3.0)
    if isinstance(found, Refusal):
        assert ends[-1] > seconds
        assert found.deadline_needed_seconds == pytest.approx(ends[-1])
        assert found.fits == sum(end <= seconds for end in ends)
        needed = found.bandwidth_needed_bytes_per_second
    else:
        assert found.done_seconds <= seconds * (1 + 1e-9)
        needed = found.rate_bytes_per_second
        assert needed <= 3.0
        assert found.done_seconds == pytest.approx(last_bytes(sizes, tier, needed)[-1])
    if math.isinf(needed):
        assert last_bytes(sizes, tier, 1e12)[-1] >= seconds * (1 - 1e-9)
    elif sum(sizes):
        assert last_bytes(sizes, tier, needed)[-1] <= seconds * (1 + 1e-9)
        assert last_bytes(sizes, tier, needed * 0.999)[-1] > seconds


def last_bytes(sizes: list[int], tier: TierModel, rate: float) -> list[float]:
    ends: list[float] = []
    for number, nbytes in enumerate(sizes):
        begin = ends[number - tier.slots] if number >= tier.slots else 0.0
        ends.append(max(begin + tier.latency_seconds, ends[-1] if ends else 0.0) + nbytes / rate)
    return ends


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deadline_seconds": math.inf}, "deadline_seconds must be finite"),
        ({"bandwidth_bytes_per_second": 0.0}, "bandwidth_bytes_per_second must be above 0"),
        ({"money": -1.0}, "money must be at least 0"),
        ({"nbytes": -1}, "sizes must be at least 0"),
    ],
)
def test_delivery_refuses_what_cannot_be(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        delivery(**options)  # type: ignore[arg-type]


def test_delivery_refuses_items_that_come_twice_or_were_not_wanted() -> None:
    with pytest.raises(ValueError, match="items must differ, not hold 1 twice"):
        Delivery([1, 1], 4, TIER, deadline_seconds=9.0)
    with pytest.raises(ValueError, match="done must hold items of this delivery, not 7"):
        delivery().replan(100.0, [7])
