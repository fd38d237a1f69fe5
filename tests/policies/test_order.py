import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Order
from policies.order.modes import MODES
from policies.order.modes import full as full_mode
from policies.order.modes import window as window_mode
from tests.policies.order_model import (
    UNEVEN,
    Case,
    cases,
    epoch_of,
    future,
    kept_of,
    lane_of,
    lane_windows,
    order_of,
    shard_of,
    shards_needed,
)

PROFILE = settings(max_examples=50, deadline=None, derandomize=True)
CASES = cases()
EPOCHS = st.integers(0, 3) | st.integers(0, 2**60 - 1)


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
    assert len(order) == len(kept_of(case))
    assert sorted(epoch_of(order, epoch)) == kept_of(case)
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
                assert window.blocks.tolist() == [[block[0], block[-1] + 1] for block in expected.blocks]
            position = expected.stop
        assert position == order.lane_rows(epoch, lane)


@PROFILE
@given(CASES, EPOCHS, st.data())
def test_order_windows_at_once_are_those_one_by_one(case: Case, epoch: int, data: st.DataObject) -> None:
    order = order_of(case)
    spans = []
    for lane in data.draw(st.lists(st.integers(0, case.lanes - 1), unique=True)):
        stop = data.draw(st.integers(0, order.lane_rows(epoch, lane)))
        spans.append((lane, data.draw(st.integers(0, stop)), stop))
    joined = order.windows(epoch, spans)
    expected = []
    for lane, position, stop in spans:
        while position < stop:
            expected.append((lane, order.window(epoch, lane, position)))
            position = expected[-1][1].stop
    assert joined.lanes.tolist() == [lane for lane, _ in expected]
    assert joined.starts.tolist() == [window.start for _, window in expected]
    assert joined.stops.tolist() == [window.stop for _, window in expected]
    assert joined.block_counts.tolist() == [len(window.blocks) for _, window in expected]
    assert joined.blocks.tolist() == [block for _, window in expected for block in window.blocks.tolist()]
    assert joined.rows.tolist() == [row for _, window in expected for row in window.rows.tolist()]
    window_of = np.repeat(np.arange(len(expected)), joined.stops - joined.starts)
    assert (np.repeat(np.arange(len(expected)), joined.block_counts)[joined.block_of] == window_of).all()
    holders = joined.blocks[joined.block_of]
    assert ((holders[:, 0] <= joined.rows) & (joined.rows < holders[:, 1])).all()


@PROFILE
@given(CASES, EPOCHS, st.data())
def test_order_shards_come_as_their_first_windows_do(case: Case, epoch: int, data: st.DataObject) -> None:
    lanes = data.draw(st.lists(st.integers(0, case.lanes - 1), unique=True))
    shards = order_of(case).shards(epoch, lanes)
    assert shards.dtype == np.int64
    assert shards.tolist() == shards_needed(case, epoch, sorted(lanes))


@PROFILE
@given(case=CASES, epoch=EPOCHS, budget=st.integers(1, 40))
def test_order_shards_do_not_depend_on_how_much_is_looked_at_at_once(
    case: Case, epoch: int, budget: int
) -> None:
    lanes = list(range(case.lanes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window_mode, "_DEAL_BLOCKS", budget)
        patch.setattr(full_mode, "_CHUNK", budget)
        assert order_of(case).shards(epoch, lanes).tolist() == shards_needed(case, epoch, lanes)


@PROFILE
@given(CASES, EPOCHS)
def test_order_shards_are_those_of_the_rows(case: Case, epoch: int) -> None:
    order = order_of(case)
    for lane in range(case.lanes):
        rows = lane_of(order, epoch, lane)
        assert set(order.shards(epoch, lane).tolist()) == {shard_of(case, row) for row in rows}


@PROFILE
@given(CASES, EPOCHS, st.integers(1, 3), st.data())
def test_order_future_is_what_walking_the_epochs_finds(
    case: Case, epoch: int, epochs: int, data: st.DataObject
) -> None:
    lanes = data.draw(st.lists(st.integers(0, case.lanes - 1), unique=True))
    found = order_of(case).future(epoch, lanes, epochs)
    uses = np.column_stack((found.shards, found.starts, found.stops, found.nexts))
    assert uses.dtype == np.int64
    assert list(map(tuple, uses.tolist())) == future(case, range(epoch, epoch + epochs), sorted(lanes))


@pytest.mark.parametrize("mode", sorted(MODES))
def test_order_future_ends_a_use_with_the_last_window_of_its_shard(mode: str) -> None:
    for seed in range(4):
        case = Case([5, 9, 14, 3, 8, 7], 3, seed, mode, 1, 2, 3)  # groups that do not fill their last window
        assert order_of(case).future(0, 0, 1).stops.tolist() == [
            use[2] for use in future(case, range(1), [0])
        ]


@PROFILE
@given(CASES, EPOCHS)
def test_order_with_affinity_to_lanes_keeps_their_rows_in_every_epoch(case: Case, epoch: int) -> None:
    order = order_of(replace(case, affinity="lane"))
    for lane in range(case.lanes):
        assert sorted(lane_of(order, epoch, lane)) == sorted(lane_of(order, 0, lane))


@pytest.mark.parametrize("mode", ["window", "full"])
def test_order_with_affinity_to_lanes_reshuffles_each_lane(mode: str) -> None:
    order = Order([256] * 64, block_rows=64, lanes=4, mode=mode, affinity="lane")
    for lane in range(4):
        epochs = np.array([lane_of(order, epoch, lane) for epoch in range(4)])
        shards = [order.shards(epoch, lane).tolist() for epoch in range(4)]
        for first in range(4):
            for second in range(first):
                assert np.count_nonzero(epochs[first] == epochs[second]) < 12
                assert shards[first] != shards[second] or mode == "full"


@pytest.mark.parametrize("affinity", ["global", "lane"])
@pytest.mark.parametrize("mode", sorted(MODES))
def test_order_global_step_is_the_same_rows_for_every_world_size(mode: str, affinity: str) -> None:
    order = Order(UNEVEN, block_rows=64, mode=mode, lanes=8, affinity=affinity)
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
        assert order.future(0, [0, 1]).shards.tolist() == []


@pytest.mark.parametrize("mode", sorted(MODES))
def test_order_that_keeps_no_row_has_none(mode: str) -> None:
    order = Order(UNEVEN, mode=mode, lanes=2, keep=np.zeros(sum(UNEVEN), dtype=bool))
    assert len(order) == order.lane_rows(0, 1) == 0
    assert order.rows(0, 1, 0, 0).tolist() == order.shards(0, [0, 1]).tolist() == []


def test_order_of_a_subset_prunes_shards_and_reads_nothing_but_blocks_with_kept_rows() -> None:
    kept = [300, 306, 1400, 1401, 1650]  # shard 1; then of shard 5 blocks 0 and 3 of 64 rows
    order = Order(UNEVEN, block_rows=64, lanes=1, keep=kept)
    assert sorted(order.shards(0, 0).tolist()) == [1, 5]
    window = order.window(0, 0, 0)
    assert sorted(window.blocks.tolist()) == [[300, 307], [1400, 1402], [1650, 1651]]
    assert sorted(window.rows.tolist()) == kept


def test_order_by_mask_by_rows_and_by_ranges_is_one_order() -> None:
    mask = np.zeros(sum(UNEVEN), dtype=bool)
    mask[5:400] = mask[2000:2001] = mask[3000:] = True
    ranges = [[5, 100], [100, 400], [2000, 2001], [3000, sum(UNEVEN)]]
    orders = [Order(UNEVEN, keep=keep) for keep in (mask, np.flatnonzero(mask), ranges)]
    assert orders[0] == orders[1] == orders[2]
    assert orders[0] != Order(UNEVEN)
    assert orders[0] != Order(UNEVEN, keep=~mask)
    assert pickle.loads(pickle.dumps(orders[0])) == orders[0]
    assert orders[0].shard_rows.tolist() == UNEVEN
    assert repr(orders[0]).startswith(f"Order(<10 shards, {mask.sum()} of {sum(UNEVEN)} rows>, block_rows=")


def test_order_of_mode_full_finds_the_shards_of_many_small_windows() -> None:
    case = Case([3, 60, 1, 20] * 6, 8, 5, "full", 3, 1, 7)
    order = order_of(case)
    assert order.shards(2, [0, 2]).tolist() == shards_needed(case, 2, [0, 2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(full_mode, "_CHUNK", 10)
        assert order.shards(2, [0, 2]).tolist() == shards_needed(case, 2, [0, 2])
        rare = replace(case, shard_rows=[100, 1, 100, 2], lanes=1)
        assert order_of(rare).shards(2, 0).tolist() == shards_needed(rare, 2, [0])
        found = order.future(2, 1, 1)
    uses = np.column_stack((found.shards, found.starts, found.stops, found.nexts))
    assert list(map(tuple, uses.tolist())) == future(case, range(2, 3), [1])


@pytest.mark.parametrize("mode", sorted(MODES))
def test_order_with_more_lanes_than_rows_leaves_lanes_empty(mode: str) -> None:
    order = Order([2, 1], lanes=8, mode=mode)
    assert sorted(epoch_of(order, 0)) == [0, 1, 2]
    assert sorted(order.shards(0, range(8)).tolist()) == [0, 1]
    assert len(order.future(0, range(8), 1).shards) == 3
    for lane in range(8):
        assert order.shards(0, lane).tolist() == [row // 2 for row in lane_of(order, 0, lane)]


def test_order_shards_accept_a_number_an_iterable_or_an_array_of_lanes() -> None:
    order = Order(UNEVEN, block_rows=64, lanes=4)
    assert (
        order.shards(1, 2).tolist() == order.shards(1, [2]).tolist() == order.shards(1, np.int64(2)).tolist()
    )
    both = order.shards(1, range(1, 3)).tolist()
    assert order.shards(1, np.array([2, 1])).tolist() == order.shards(1, iter([2, 1, 2])).tolist() == both
    assert order.shards(1, []).tolist() == []
