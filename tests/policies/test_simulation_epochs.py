from dataclasses import replace

import numpy as np
import pytest

from policies import Order, replay, simulate
from policies.eviction import NAMES

ROWS = [100 + 7 * i for i in range(30)]
BYTES = [4000 + 130 * i for i in range(30)]
ORDER = Order(ROWS, block_rows=16, lanes=4)


def test_simulate_of_pin_reaches_the_bound_with_equal_shards() -> None:
    result = simulate(ORDER, 10, 120, epochs=3)
    assert [(e.epoch, e.requests, e.hits, e.bytes_requested, e.bytes_fetched) for e in result.epochs] == [
        (0, 30, 0, 300, 300), (1, 30, 12, 300, 180), (2, 30, 12, 300, 180),
    ]  # fmt: skip
    assert [e.bound for e in result.epochs] == [0.0, 0.4, 0.4]
    assert [e.hit_ratio for e in result.epochs] == [0.0, 0.4, 0.4]
    assert (result.policy, result.capacity_bytes, result.bytes_fetched) == ("pin", 120, 660)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("world_size", "rank"), [(1, 0), (2, 1), (4, 2)])
def test_simulate_is_a_replay_of_the_ranks_shards(name: str, world_size: int, rank: int) -> None:
    lanes = ORDER.rank_lanes(rank, world_size)
    ids = np.concatenate([ORDER.shards(epoch, lanes) for epoch in range(4)])
    sizes = np.array(BYTES)
    result = simulate(ORDER, sizes, 50_000, policy=name, epochs=4, world_size=world_size, rank=rank)
    expected = replay(name, ids, sizes[ids], 50_000)
    assert sum(e.requests for e in result.epochs) == expected.requests
    assert sum(e.hits for e in result.epochs) == expected.hits
    assert sum(e.bytes_requested for e in result.epochs) == expected.bytes
    assert result.bytes_fetched == expected.miss_bytes
    assert all(0 <= e.hit_ratio <= e.bound + 1e-12 for e in result.epochs)


def test_simulate_shows_lru_below_pin() -> None:
    hits = {
        name: sum(e.hits for e in simulate(ORDER, 10, 150, policy=name).epochs) for name in ("lru", "pin")
    }
    assert hits["pin"] == 30
    assert hits["lru"] < 20


def test_simulate_without_a_price_has_no_cost() -> None:
    result = simulate(ORDER, 10, 100)
    assert result.cost is None
    assert [e.cost for e in result.epochs] == [None] * 3


def test_simulate_prices_every_byte_fetched() -> None:
    result = simulate(ORDER, 10**9, 12 * 10**9, epochs=2, egress_price_per_gb=0.5)
    assert [e.cost for e in result.epochs] == [15.0, 9.0]
    assert result.cost == 24.0
    assert simulate(ORDER, 10, 100, egress_price_per_gb=0.0).cost == 0.0


def test_simulate_of_an_empty_corpus_asks_for_nothing() -> None:
    (epoch,) = simulate(Order([]), [], 100, epochs=1).epochs
    assert (epoch.requests, epoch.bytes_fetched, epoch.hit_ratio) == (0, 0, 0.0)


def test_simulate_result_is_a_value() -> None:
    result = simulate(ORDER, 10, 100)
    assert result == simulate(ORDER, [10] * 30, 100)
    assert result != replace(result, policy="lru")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "mru"}, "policy must be one of"),
        ({"shard_bytes": [1, 2]}, "shard_bytes must be one number or 30"),
        ({"shard_bytes": -1}, "shard_bytes must be at least 0"),
        ({"capacity_bytes": -1}, "capacity_bytes must be at least 0"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"world_size": 3}, "world_size must divide the 4 lanes"),
        ({"world_size": 2, "rank": 2}, "rank must be below 2"),
        ({"egress_price_per_gb": -0.1}, "egress_price_per_gb must be at least 0"),
        ({"egress_price_per_gb": float("nan")}, "egress_price_per_gb must be at least 0"),
    ],
)
def test_simulate_refuses_arguments_out_of_range(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(ORDER, **{"shard_bytes": 10, "capacity_bytes": 100, **arguments})  # type: ignore[arg-type]
