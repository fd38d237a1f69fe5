import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Order
from policies.modes import MODES
from policies.modes import window as window_mode
from tests.policies.order_model import Case, lane_windows, shards_needed

PROFILE = settings(max_examples=150, deadline=None, derandomize=True)
CASES = st.builds(
    Case,
    shard_rows=st.lists(st.integers(1, 25), min_size=1, max_size=9),
    block_rows=st.integers(1, 9),
    seed=st.integers(0, 2**64 - 1),
    mode=st.sampled_from(sorted(MODES)),
    lanes=st.integers(1, 9),
    group_shards=st.integers(1, 4),
    window_blocks=st.integers(1, 4),
)
EPOCHS = st.integers(0, 3) | st.integers(0, 2**60 - 1)
UNEVEN = [300, 7, 1, 1024, 64, 999, 500, 2048, 33, 65]


def order_of(case: Case) -> Order:
    return Order(**asdict(case))


def lane_of(order: Order, epoch: int, lane: int) -> list[int]:
    rows: list[int] = order.rows(epoch, lane, 0, order.lane_rows(epoch, lane)).tolist()
    return rows


def epoch_of(order: Order, epoch: int) -> list[int]:
    return [row for lane in range(order.lanes) for row in lane_of(order, epoch, lane)]


@PROFILE
@given(CASES, EPOCHS)
def test_order_rows_follow_the_definition(case: Case, epoch: int) -> None:
    order = order_of(case)
    for lane in range(case.lanes):
        assert lane_of(order, epoch, lane) == [row for w in lane_windows(case, epoch, lane) for row in w.rows]


@PROFILE
@given(CASES, EPOCHS)
def test_order_epoch_holds_every_row_exactly_once(case: Case, epoch: int) -> None:
    order = order_of(case)
    assert len(order) == sum(case.shard_rows)
    assert sorted(epoch_of(order, epoch)) == list(range(len(order)))
    sizes = [order.lane_rows(epoch, lane) for lane in range(case.lanes)]
    assert max(sizes) - min(sizes) <= 1


@PROFILE
@given(CASES, EPOCHS, st.data())
def test_order_seek_equals_walking(case: Case, epoch: int, data: st.DataObject) -> None:
    lane = data.draw(st.integers(0, case.lanes - 1))
    walked = lane_of(order_of(case), epoch, lane)
    start = data.draw(st.integers(0, len(walked)))
    stop = data.draw(st.integers(start, len(walked)))
    sought = order_of(case).rows(epoch, lane, start, stop)
    assert sought.dtype == np.int64
    assert sought.tolist() == walked[start:stop]


@PROFILE
@given(CASES, EPOCHS)
def test_order_windows_tile_the_lane_and_list_their_blocks(case: Case, epoch: int) -> None:
    order = order_of(case)
    for lane in range(case.lanes):
        position = 0
        for expected in lane_windows(case, epoch, lane):
            for probe in {position, expected.stop - 1}:
                window = order.window(epoch, lane, probe)
                assert (
                    (window.start, window.stop)
                    == (expected.start, expected.stop)
                    == (position, expected.stop)
                )
                assert window.rows.tolist() == expected.rows
                assert [list(range(*block)) for block in window.blocks.tolist()] == expected.blocks
            position = expected.stop
        assert position == order.lane_rows(epoch, lane)


@PROFILE
@given(CASES, EPOCHS, st.data())
def test_order_shards_come_as_their_first_windows_do(case: Case, epoch: int, data: st.DataObject) -> None:
    lanes = data.draw(st.lists(st.integers(0, case.lanes - 1), unique=True))
    shards = order_of(case).shards(epoch, lanes)
    assert shards.dtype == np.int64
    assert shards.tolist() == shards_needed(case, epoch, sorted(lanes))


@PROFILE
@given(case=CASES, epoch=EPOCHS, budget=st.integers(1, 40))
def test_order_shards_do_not_depend_on_how_many_groups_are_dealt_at_once(
    case: Case, epoch: int, budget: int
) -> None:
    lanes = list(range(case.lanes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window_mode, "_DEAL_BLOCKS", budget)
        assert order_of(case).shards(epoch, lanes).tolist() == shards_needed(case, epoch, lanes)


@PROFILE
@given(CASES, EPOCHS)
def test_order_shards_are_those_of_the_rows(case: Case, epoch: int) -> None:
    order = order_of(case)
    shard_of = np.repeat(np.arange(len(case.shard_rows)), case.shard_rows)
    for lane in range(case.lanes):
        assert set(order.shards(epoch, lane).tolist()) == set(shard_of[lane_of(order, epoch, lane)].tolist())


@pytest.mark.parametrize("mode", sorted(MODES))
def test_order_global_step_is_the_same_rows_for_every_world_size(mode: str) -> None:
    order = Order(UNEVEN, block_rows=64, mode=mode, lanes=8)
    share, steps = 5, order.lane_rows(2, 0) // 5
    for step in (0, 1, steps // 2, steps - 1):
        seen = set()
        for world_size in (1, 2, 4, 8):
            ranks = [order.rank_lanes(rank, world_size) for rank in range(world_size)]
            assert sorted(lane for lanes in ranks for lane in lanes) == list(range(8))
            rows = [
                row
                for lanes in ranks
                for lane in lanes
                for row in order.rows(2, lane, step * share, (step + 1) * share).tolist()
            ]
            assert len(rows) == len(set(rows)) == 8 * share
            seen.add(frozenset(rows))
        assert len(seen) == 1


def test_order_rank_lanes_are_neighbours() -> None:
    assert [list(Order([10], lanes=6).rank_lanes(rank, 3)) for rank in range(3)] == [[0, 1], [2, 3], [4, 5]]


def test_order_of_mode_none_is_stored_order_in_every_epoch() -> None:
    order = Order(UNEVEN, mode="none", lanes=3)
    assert epoch_of(order, 0) == epoch_of(order, 5) == list(range(sum(UNEVEN)))


def test_order_of_mode_window_differs_between_epochs_seeds_and_lanes() -> None:
    order = Order([4096] * 6, block_rows=256, lanes=2)
    rows = np.array([epoch_of(order, epoch) for epoch in range(6)])
    rows = np.vstack([rows, [epoch_of(Order([4096] * 6, block_rows=256, lanes=2, seed=8), 0)]])
    for first in range(len(rows)):
        for second in range(first):
            assert np.count_nonzero(rows[first] == rows[second]) < 12  # two random orders agree in 1 place
    places = [order.window(0, lane, 0).rows.argsort() for lane in (0, 1)]
    assert np.count_nonzero(places[0] == places[1]) < 12


def test_order_takes_a_window_from_several_shards_and_no_more_than_a_group() -> None:
    order = Order([65536] * 64, lanes=8)
    shards = np.unique(order.window(0, 3, 0).rows // 65536)
    assert 4 <= len(shards) <= 8
    group = np.unique(order.rows(0, 3, 0, 8 * 65536) // 65536)
    assert len(group) == 8


def test_order_moves_a_row_evenly_over_the_epochs() -> None:
    order = Order([64] * 8, block_rows=8, lanes=2, group_shards=2, window_blocks=2)
    epochs, tenths = 600, 8
    seen = np.zeros((3, tenths))
    for epoch in range(epochs):
        place = np.argsort(np.array(epoch_of(order, epoch)))
        seen[[0, 1, 2], place[[0, 200, 511]] * tenths // 512] += 1
    expected = epochs / tenths
    statistics = ((seen - expected) ** 2 / expected).sum(axis=1)  # chi-square, 7 degrees of freedom each
    assert (statistics < 24).all()  # 1 in 10^3


def test_order_neighbours_are_not_kept_together() -> None:
    order = Order([1024] * 16, block_rows=128, lanes=1)
    rows = np.array(epoch_of(order, 0))
    assert np.count_nonzero(np.abs(np.diff(rows)) == 1) < 20  # 8192 rows of each of 2 windows: 4 expected
    assert abs(np.corrcoef(rows[:-1] % 128, rows[1:] % 128)[0, 1]) < 0.03


def test_order_group_and_window_larger_than_the_corpus_shuffle_all_rows_of_a_lane() -> None:
    order = Order(UNEVEN, block_rows=2**40, lanes=1, group_shards=2**40, window_blocks=2**40)
    window = order.window(0, 0, 17)
    assert (window.start, window.stop) == (0, sum(UNEVEN))
    assert sorted(window.rows.tolist()) == list(range(sum(UNEVEN)))


def test_order_of_a_huge_corpus_is_found_by_seeking() -> None:
    shards = 100_000
    sizes = 900_000 + np.arange(shards) * 7919 % 200_001
    order = Order(sizes, lanes=64)
    assert len(order) == sizes.sum()
    assert len(order) > 90_000_000_000
    most = order.lane_rows(3, 63)
    rows = np.concatenate([order.rows(3, 63, start, start + 3000) for start in (0, most // 2, most - 3000)])
    assert len(np.unique(rows)) == 9000
    assert set((rows // len(order)).tolist()) == {0}


def test_order_of_no_shards_has_no_rows() -> None:
    for mode in MODES:
        order = Order([], mode=mode, lanes=2)
        assert len(order) == order.lane_rows(0, 1) == 0
        assert order.rows(0, 1, 0, 0).tolist() == order.shards(0, [0, 1]).tolist() == []


def test_order_with_more_lanes_than_rows_leaves_lanes_empty() -> None:
    order = Order([2, 1], lanes=8)
    assert sorted(epoch_of(order, 0)) == [0, 1, 2]
    assert sorted(order.shards(0, range(8)).tolist()) == [0, 1]
    assert order.shards(0, 0).tolist() == []


def test_order_shards_accept_a_number_an_iterable_or_an_array_of_lanes() -> None:
    order = Order(UNEVEN, block_rows=64, lanes=4)
    assert (
        order.shards(1, 2).tolist() == order.shards(1, [2]).tolist() == order.shards(1, np.int64(2)).tolist()
    )
    both = order.shards(1, range(1, 3)).tolist()
    assert order.shards(1, np.array([2, 1])).tolist() == order.shards(1, iter([2, 1, 2])).tolist() == both
    assert order.shards(1, []).tolist() == []


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
    order = Order(UNEVEN, 64, 2**64 - 1, "window", 2, 3, 4)
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
    }
    assert Order(UNEVEN, **fingerprint) == order


@pytest.mark.parametrize(("lanes", "window_blocks"), [(1, 64), (8, 8), (48, 1), (64, 1), (100, 1)])
def test_order_default_window_shares_64_blocks_among_the_lanes(lanes: int, window_blocks: int) -> None:
    assert Order([10], lanes=lanes).window_blocks == window_blocks


def test_order_repr_is_short() -> None:
    assert repr(Order([10] * 1000)) == (
        "Order(<1000 shards, 10000 rows>, block_rows=1024, seed=7, mode='window', lanes=8, group_shards=8, "
        "window_blocks=8)"
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
        ({"mode": "full"}, r"mode must be one of 'none', 'window', not 'full'"),
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
        (lambda: order.rank_lanes(0, 3), "world_size must divide the 2 lanes"),
        (lambda: order.rank_lanes(2, 2), "rank must be below 2"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()
