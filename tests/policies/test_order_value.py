import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from policies import Order
from policies.order.modes import MODES
from tests.policies.order_model import UNEVEN, Case, epoch_of, lane_of, order_of


@pytest.mark.parametrize(
    "rows", [UNEVEN, tuple(UNEVEN), np.array(UNEVEN, dtype=np.uint16), np.array(UNEVEN, dtype=np.uint64)]
)
def test_order_takes_shard_rows_of_any_integer_type(rows: object) -> None:
    order = Order(rows, block_rows=64)  # type: ignore[arg-type]
    assert order == Order(UNEVEN, block_rows=64)
    assert order.shard_rows.tolist() == UNEVEN


def test_order_does_not_follow_later_changes_of_its_argument() -> None:
    rows = np.array(UNEVEN)
    order = Order(rows, lanes=1)
    before = epoch_of(order, 0)
    rows[:] = 1
    assert len(order) == sum(UNEVEN)
    assert epoch_of(order, 0) == before


def test_order_cannot_be_changed() -> None:
    order = Order(UNEVEN)
    for name in (
        "seed",
        "lanes",
        "mode",
        "block_rows",
        "group_shards",
        "window_blocks",
        "affinity",
        "shard_rows",
        "other",
    ):
        with pytest.raises(AttributeError):
            setattr(order, name, 1)
    window = order.window(0, 0, 0)
    for array in (window.rows, window.blocks):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_order_rows_are_the_callers_own() -> None:
    order = Order(UNEVEN)
    first = order.rows(0, 0, 0, 9)
    expected = first.tolist()
    first[:] = -1
    assert order.rows(0, 0, 0, 9).tolist() == expected


def test_order_pickles_without_what_it_remembers() -> None:
    order = Order(UNEVEN, 64, 2**64 - 1, "window", 2, 3, 4, "lane")
    fresh = len(pickle.dumps(order))
    rows = epoch_of(order, 4)
    pickled = pickle.dumps(order)
    again = pickle.loads(pickled)
    assert len(pickled) == fresh
    assert again == order
    assert hash(again) == hash(order)
    assert epoch_of(again, 4) == rows


@pytest.mark.parametrize(
    "change",
    [
        {"block_rows": 5},
        {"seed": 8},
        {"mode": "none"},
        {"lanes": 2},
        {"group_shards": 3},
        {"window_blocks": 9},
        {"affinity": "lane"},
        {"shard_rows": [9, 10]},
    ],
)
def test_order_equality_sees_every_argument(change: dict[str, object]) -> None:
    case = Case([10, 9], 4, 7, "window", 1, 2, 3)
    changed = order_of(replace(case, **change))  # type: ignore[arg-type]
    assert changed != order_of(case)
    assert (changed.fingerprint() != order_of(case).fingerprint()) == ("shard_rows" not in change)
    assert order_of(case) != "an order"


def test_order_fingerprint_is_json_and_makes_the_order_again() -> None:
    order = Order(UNEVEN, seed=2**64 - 1, lanes=16)
    fingerprint = json.loads(json.dumps(order.fingerprint()))
    assert fingerprint == {
        "block_rows": 1024,
        "seed": 2**64 - 1,
        "mode": "window",
        "lanes": 16,
        "group_shards": 8,
        "window_blocks": 4,
        "affinity": "global",
    }
    assert Order(UNEVEN, **fingerprint) == order


@pytest.mark.parametrize(("lanes", "window_blocks"), [(1, 64), (8, 8), (48, 1), (64, 1), (100, 1)])
def test_order_default_window_shares_64_blocks_among_the_lanes(lanes: int, window_blocks: int) -> None:
    assert Order([10], lanes=lanes).window_blocks == window_blocks


def test_order_repr_is_short() -> None:
    assert repr(Order([10] * 1000)) == (
        "Order(<1000 shards, 10000 rows>, block_rows=1024, seed=7, mode='window', lanes=8, group_shards=8, "
        "window_blocks=8, affinity='global')"
    )


def test_order_read_by_many_threads_is_the_order_read_by_one() -> None:
    shared = Order([2048] * 32, block_rows=64, lanes=4)
    expected = [lane_of(Order([2048] * 32, block_rows=64, lanes=4), epoch, 1) for epoch in range(4)]

    def read(epoch: int) -> list[int]:
        return [
            row
            for p in range(0, len(expected[epoch]), 128)
            for row in shared.rows(epoch, 1, p, p + 128).tolist()
        ]

    with ThreadPoolExecutor(8) as pool:
        for turn, rows in enumerate(pool.map(lambda turn: read(turn % 4), range(16))):
            assert rows == expected[turn % 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "fuller"}, r"mode must be one of 'full', 'none', 'window', not 'fuller'"),
        ({"affinity": "node"}, r"affinity must be one of 'global', 'lane', not 'node'; .* affinity='global'"),
        ({"shard_rows": [5, 0]}, "shard_rows must be at least 1 each"),
        ({"shard_rows": [2**59, 2**59, 2**59]}, "shard_rows must be at least 1 each"),
        ({"shard_rows": [5.0]}, "shard_rows must be a flat sequence of ints, not float64"),
        ({"shard_rows": [[5]]}, "shard_rows must be a flat sequence of ints"),
        ({"shard_rows": 5}, "shard_rows must be a flat sequence of ints"),
        ({"block_rows": 0}, "block_rows must be at least 1, not 0"),
        ({"lanes": 0}, "lanes must be at least 1, not 0"),
        ({"group_shards": 0}, "group_shards must be at least 1, not 0"),
        ({"window_blocks": 0}, "window_blocks must be at least 1, not 0"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"seed": 2**64}, "seed must be below 18446744073709551616"),
        ({"seed": 1.5}, "seed must be a whole number, not 1.5"),
    ],
)
def test_order_refuses_arguments_out_of_range(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Order(**{"shard_rows": [5], **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", sorted(MODES))
def test_order_refuses_places_that_do_not_exist(mode: str) -> None:
    order = Order([10, 6], lanes=2, mode=mode)
    refused = [
        (lambda: order.rows(-1, 0, 0, 1), "epoch must be at least 0"),
        (lambda: order.rows(0, 2, 0, 1), "lane must be below 2"),
        (lambda: order.rows(0, -1, 0, 1), "lane must be at least 0"),
        (lambda: order.rows(0, 0, -1, 1), "start must be at least 0"),
        (lambda: order.rows(0, 0, 3, 2), "stop must be at least 3"),
        (lambda: order.rows(0, 0, 0, 9), "stop must be below 9"),
        (lambda: order.window(0, 0, 8), "position must be below 8"),
        (lambda: order.window(-1, 0, 0), "epoch must be at least 0"),
        (lambda: order.lane_rows(0, 2), "lane must be below 2"),
        (lambda: order.lane_rows(-1, 0), "epoch must be at least 0"),
        (lambda: order.shards(0, [0, 2]), "lane must be below 2"),
        (lambda: order.shards(-1, 0), "epoch must be at least 0"),
        (lambda: order.future(-1, 0), "epoch must be at least 0"),
        (lambda: order.future(0, 2), "lane must be below 2"),
        (lambda: order.future(0, 0, 0), "epochs must be at least 1, not 0"),
        (lambda: order.rank_lanes(0, 3), "world_size must divide the 2 lanes"),
        (lambda: order.rank_lanes(2, 2), "rank must be below 2"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()
