import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Order, replay
from policies.eviction import NAMES
from policies.simulation import (
    POLICIES,
    CacheModel,
    Outcome,
    TierModel,
    front,
    pareto,
    simulate_order,
    simulate_trace,
)

TIER = TierModel(3.0, 2.0, slots=2, request_price=0.5, egress_price_per_gb=1e9)
ORDER = Order([100 + 7 * i for i in range(30)], block_rows=16, lanes=4)


def epochs(items: int, count: int, seed: int = 7) -> list[int]:
    dice = random.Random(seed)
    return [item for _ in range(count) for item in dice.sample(range(items), items)]


def test_simulate_trace_times_fetches_on_demand() -> None:
    found = simulate_trace(
        [1, 2, 1], [4, 6, 4], TIER, CacheModel(10, "lru", 0), compute_seconds=[1.0, 2.0, 4.0]
    )
    assert (found.requests, found.fetches, found.demand_fetches, found.waits) == (3, 2, 2, 2)
    assert (found.requested_bytes, found.fetched_bytes, found.written_bytes) == (14, 10, 10)
    assert (found.first_seconds, found.stall_seconds) == (5.0, 11.0)  # 3 + 4 / 2, then 3 + 6 / 2
    assert found.elapsed_seconds == 18.0
    assert found.p99_stall_seconds == 6.0
    assert found.cost == 2 * 0.5 + 10
    assert (found.peak_bytes, found.lookahead_bytes, found.wasted_bytes) == (10, 0, 0)
    assert (found.object_miss_ratio, found.byte_miss_ratio) == (2 / 3, 10 / 14)
    assert (found.least_fetched_bytes, found.bound, found.distance) == (10, 10 / 14, 0.0)
    assert found.events == 3 + 2 * 2


def test_simulate_trace_shares_the_link_and_the_slots_between_fetches_ahead() -> None:
    found = simulate_trace([1, 2, 3], 4, TIER, CacheModel(12, "integrated", 100), compute_seconds=1.0)
    # 1 comes at 3 + 2; 2, begun with it, at 5 + 2; 3, begun at 5, at 8 + 2. Reads begin at 5, 7 and 10.
    assert (found.first_seconds, found.stall_seconds, found.elapsed_seconds) == (5.0, 5.0 + 1.0 + 2.0, 11.0)
    assert (found.demand_fetches, found.fetches, found.waits) == (1, 3, 3)


def test_simulate_trace_looks_as_far_ahead_as_the_cache_is_large_where_the_link_has_no_end() -> None:
    found = simulate_trace([1, 2, 3], 4, TierModel(2.0, math.inf, slots=8), CacheModel(12, "integrated"))
    assert found.lookahead_bytes == 12
    assert found.stall_seconds == 2.0


def test_simulate_trace_begins_the_next_fetch_while_the_reader_computes() -> None:
    tier = TierModel(2.0, math.inf, slots=1)
    cache = CacheModel(3, "integrated", 100)
    found = simulate_trace([1, 2, 3], 1, tier, cache, compute_seconds=[5.0, 1.0, 1.0])
    assert found.stall_seconds == 2.0  # 2 comes at 4 and 3 at 6, while 1 is computed


def test_simulate_trace_lets_what_was_read_leave_for_a_fetch_that_begins_as_the_next_is_read() -> None:
    tier, cache = TierModel(1.0, math.inf, slots=1), CacheModel(3, "integrated", 100)
    found = simulate_trace([1, 0, 2, 3, 1], 1, tier, cache, compute_seconds=1.0)
    assert (found.fetches, found.stall_seconds) == (4, 1.0)  # 3 takes the place of 0, not of 1


def test_simulate_trace_makes_no_request_before_it_arrives() -> None:
    tier = TierModel(2.0, math.inf)
    found = simulate_trace(
        [1, 1, 2],
        1,
        tier,
        CacheModel(3, "lru", 0),
        compute_seconds=1.0,
        arrival_seconds=[100.0, 101.0, 110.0],
    )
    assert (found.first_seconds, found.stall_seconds, found.elapsed_seconds) == (2.0, 4.0, 13.0)


@settings(derandomize=True, max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), min_size=1, max_size=60),
    st.integers(0, 30),
    st.sampled_from(NAMES),
)
def test_simulate_trace_on_demand_misses_what_a_replay_misses(
    requests: list[tuple[int, int]], capacity: int, name: str
) -> None:
    ids, sizes = map(list, zip(*requests, strict=True))
    found = simulate_trace(ids, sizes, TIER, CacheModel(capacity, name, 0), compute_seconds=0.5)
    counted = replay(name, ids, sizes, capacity)
    assert (found.fetches, found.fetched_bytes) == (counted.misses, counted.miss_bytes)
    assert found.requested_bytes == counted.bytes
    assert found.peak_bytes <= capacity


@settings(derandomize=True, max_examples=120, deadline=None)
@given(
    st.lists(st.integers(0, 7), max_size=40),
    st.lists(st.integers(0, 5), min_size=8, max_size=8),
    st.integers(0, 30),
    st.sampled_from(POLICIES),
    st.sampled_from([None, 0, 4, 100]),
    st.booleans(),
    st.integers(1, 3),
)
def test_simulate_trace_adds_up(
    ids: list[int],
    item_bytes: list[int],
    capacity: int,
    policy: str,
    ahead: int | None,
    adaptive: bool,
    slots: int,
) -> None:
    sizes = [item_bytes[item] for item in ids]
    tier = replace(TIER, slots=slots)
    found = simulate_trace(
        ids, sizes, tier, CacheModel(capacity, policy, ahead, adaptive), compute_seconds=0.7
    )
    assert found.elapsed_seconds == pytest.approx(found.stall_seconds + 0.7 * len(ids))
    assert found.peak_bytes <= capacity
    assert found.least_fetched_bytes <= found.fetched_bytes
    assert sum(item_bytes[item] for item in set(ids)) <= found.fetched_bytes
    assert found.fetches >= found.demand_fetches
    assert found.waits >= found.demand_fetches
    assert found.written_bytes <= found.fetched_bytes
    assert found.wasted_bytes == 0
    assert found.first_seconds <= found.stall_seconds + 1e-9
    assert 0 <= found.p99_stall_seconds <= found.stall_seconds + 1e-9
    assert found.cost == pytest.approx(found.fetches * 0.5 + found.fetched_bytes)


def test_simulate_trace_has_the_lookahead_table() -> None:
    """1,000 items, 6 epochs, room for half, latency 32 steps, 32 slots; a lookahead of 1 BDP, 2 BDP, all.

    The table counts the item being read as the first of a lookahead, we do not: hence 31 and 63.
    """
    ids, tier = epochs(1000, 6), TierModel(32.0, math.inf, slots=32)
    table = {}
    for ahead in (31, 63, 10**6):
        cache = CacheModel(500, "integrated", ahead, demand_slots=0)
        found = simulate_trace(ids, 1, tier, cache, compute_seconds=1.0)
        table[ahead] = (found.stall_seconds / found.requests, found.object_miss_ratio)
    assert table[31] == pytest.approx((0.025, 0.583), abs=1e-3)
    assert table[63] == pytest.approx((0.005, 0.583), abs=1e-3)
    assert table[10**6] == pytest.approx((0.005, 0.817), abs=3e-3)


def test_simulate_trace_of_pin_with_a_ring_reaches_the_bound_of_its_cache() -> None:
    ids, tier = epochs(1000, 6), TierModel(32.0, math.inf, slots=40)
    found = simulate_trace(
        ids, 1, tier, CacheModel(565, lookahead_bytes=64, demand_slots=0), compute_seconds=1.0
    )
    assert found.stall_seconds == 32.0  # the first item's
    assert 3450 <= found.fetches <= 1000 + 5 * 500  # a few stay in the ring from epoch to epoch
    assert found.least_fetched_bytes == 1000 + 5 * (1000 - 565)


def test_simulate_trace_adapts_a_lookahead_that_is_too_short() -> None:
    ids, tier = epochs(1000, 6), TierModel(32.0, math.inf, slots=40)
    short = CacheModel(500, "integrated", 8)
    fixed = simulate_trace(ids, 1, tier, short, compute_seconds=1.0)
    adapted = simulate_trace(ids, 1, tier, replace(short, adaptive=True), compute_seconds=1.0)
    assert adapted.stall_seconds < fixed.stall_seconds / 5
    assert adapted.fetches <= fixed.fetches * 1.02
    assert 31 <= adapted.lookahead_bytes <= 4 * 31


def test_simulate_trace_starts_at_twice_the_bandwidth_delay_product() -> None:
    found = simulate_trace([1, 2], [4, 6], TierModel(3.0, 100.0), CacheModel(1000))
    assert found.lookahead_bytes == 2 * (300 + 5)


def test_simulate_order_is_the_trace_of_the_ranks_shards() -> None:
    sizes = np.array([4000 + 130 * i for i in range(30)])
    seconds = np.linspace(0.1, 1.0, 30)
    lanes = ORDER.rank_lanes(1, 2)
    ids = np.concatenate([ORDER.shards(epoch, lanes) for epoch in range(2)])
    tier, cache = TierModel(0.5, 1e5), CacheModel(50_000)
    found = simulate_order(ORDER, sizes, tier, cache, epochs=2, world_size=2, rank=1, compute_seconds=seconds)
    assert found == simulate_trace(ids, sizes[ids], tier, cache, compute_seconds=seconds[ids])
    assert found.requests == ids.size


def test_simulate_trace_of_nothing_costs_nothing() -> None:
    found = simulate_trace([], [], TIER, CacheModel(10))
    assert (found.requests, found.elapsed_seconds, found.cost, found.p99_stall_seconds) == (0, 0.0, 0.0, 0.0)
    assert (found.object_miss_ratio, found.byte_miss_ratio, found.bound) == (0.0, 0.0, 0.0)


def test_p99_stall_is_that_of_the_hundredth_request_from_the_longest() -> None:
    tier = TierModel(2.0, math.inf)
    ids = [0] * 300
    ids[100], ids[200] = 1, 2
    cache = CacheModel(9, "lru", 0)
    assert simulate_trace(ids, 1, tier, cache).p99_stall_seconds == 0.0
    ids[250] = 3
    assert simulate_trace(ids, 1, tier, cache).p99_stall_seconds == 2.0


@settings(derandomize=True, max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=40),
    st.lists(st.integers(0, 5), min_size=8, max_size=8),
    st.integers(0, 30),
    st.sampled_from(NAMES),
)
def test_bound_is_below_every_policy(ids: list[int], item_bytes: list[int], capacity: int, name: str) -> None:
    sizes = [item_bytes[item] for item in ids]
    found = simulate_trace(ids, sizes, TIER, CacheModel(capacity, name, 0))
    assert found.least_fetched_bytes <= replay(name, ids, sizes, capacity).miss_bytes
    assert found.least_fetched_bytes >= sum(item_bytes[item] for item in set(ids)) * (capacity > 200)


def test_bound_counts_a_hit_that_is_bought_in_part() -> None:
    found = simulate_trace([0, 1, 1, 0], [9, 1, 1, 9], TIER, CacheModel(9, "pin", 0))
    assert (found.least_fetched_bytes, found.fetched_bytes) == (11, 11)


def test_simulate_trace_gives_an_item_its_largest_size_where_prefetch_and_eviction_are_one() -> None:
    found = simulate_trace([1, 2, 1], [6, 1, 4], TIER, CacheModel(10, "integrated", 0))
    assert (found.requested_bytes, found.fetched_bytes, found.peak_bytes) == (11, 7, 7)


def outcome(stall: float, fetched: int, capacity: int = 1, ahead: int = 1) -> Outcome:
    some = simulate_trace([], [], TIER, CacheModel(capacity, lookahead_bytes=ahead))
    return replace(some, stall_seconds=stall, fetched_bytes=fetched)


def test_front_keeps_what_nothing_beats_in_both() -> None:
    slow, mid, fast = outcome(9.0, 1), outcome(4.0, 5), outcome(1.0, 9)
    beaten = [
        outcome(9.0, 2),
        outcome(4.0, 6),
        outcome(5.0, 5),
        outcome(1.0, 9, capacity=2),
        outcome(1.0, 9, ahead=2),
    ]
    dice = random.Random(1)
    for _ in range(5):
        outcomes = [slow, mid, fast, *beaten]
        dice.shuffle(outcomes)
        assert front(outcomes) == [fast, mid, slow]
    assert front([]) == []


def test_pareto_shows_what_less_stall_costs() -> None:
    ids, tier = epochs(100, 5), TierModel(8.0, math.inf, slots=16)
    points = pareto(
        ids, 1, tier, CacheModel(0, demand_slots=0), compute_seconds=1.0,
        capacities_bytes=[25, 50], lookaheads_bytes=[0, 4, 8, 16, 500], policies=["lru", "pin"],
    )  # fmt: skip
    assert {(point.cache.capacity_bytes, point.cache.policy) for point in points} == {(50, "pin")}
    assert [point.lookahead_bytes for point in points] == [8, 4, 0]
    assert points[0].stall_seconds == 8.0
    stalls = [point.stall_seconds for point in points]
    egress = [point.fetched_bytes for point in points]
    assert stalls == sorted(set(stalls))
    assert egress == sorted(set(egress), reverse=True)
    with_all = pareto(
        ids, 1, tier, CacheModel(50, "integrated", demand_slots=0), compute_seconds=1.0,
        capacities_bytes=[50], lookaheads_bytes=[4, 8, 16, 500],
    )  # fmt: skip
    assert [point.lookahead_bytes for point in with_all] == [8]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latency_seconds": -1.0}, "latency_seconds must be at least 0"),
        ({"latency_seconds": math.nan}, "latency_seconds"),
        ({"bandwidth_bytes_per_second": 0.0}, "bandwidth_bytes_per_second must be above 0"),
        ({"slots": 0}, "slots must be at least 1"),
        ({"request_price": -1.0}, "request_price must be at least 0"),
        ({"egress_price_per_gb": math.inf}, "egress_price_per_gb must be at least 0 and finite"),
    ],
)
def test_tier_model_refuses_what_cannot_be(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TIER, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity_bytes": -1}, "capacity_bytes must be at least 0"),
        ({"policy": "mru"}, "policy must be one of"),
        ({"lookahead_bytes": -1}, "lookahead_bytes must be at least 0"),
        ({"demand_slots": -1}, "demand_slots must be at least 0"),
    ],
)
def test_cache_model_refuses_what_cannot_be(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CacheModel(10), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": [0.5, 1.0]}, "ids must be a flat sequence of ints"),
        ({"sizes": [1, 2, 3]}, "sizes must be one number or 2"),
        ({"compute_seconds": -1.0}, "compute_seconds must be at least 0 and finite"),
        ({"compute_seconds": [1.0]}, "compute_seconds must be one number or 2"),
        ({"arrival_seconds": [1.0, math.nan]}, "arrival_seconds must be at least 0 and finite"),
        ({"arrival_seconds": [1.0, 0.5]}, "arrival_seconds must never fall"),
        ({"cache": CacheModel(9, demand_slots=2)}, "demand_slots must be below 2"),
    ],
)
def test_simulate_trace_refuses_arguments_out_of_range(arguments: dict[str, object], message: str) -> None:
    usual: dict[str, object] = {"ids": [1, 2], "sizes": 4, "tier": TIER, "cache": CacheModel(9)}
    with pytest.raises(ValueError, match=message):
        simulate_trace(**{**usual, **arguments})  # type: ignore[arg-type]
