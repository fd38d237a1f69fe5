"""The planner of mixtures: every position once, as the order says, in windows that do not reach too far."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loaders.mixed import MixedPlanner, blocks_kept, mixture_ahead, most_positions
from loaders.pieces import Pieces, shard_bounds
from policies import Mixture, Order


def planned(mixture: Mixture, lanes: range, start: int, stop: int, step: int = 4) -> list[Pieces]:
    planner = MixedPlanner(mixture, lanes, start, stop, step)
    found = []
    while (pieces := planner.plan()) is not None:
        found.append(pieces)
        assert max(pieces.starts) < planner.position <= stop
    assert planner.position == stop
    return found


def laid_out(
    mixture: Mixture, lanes: range, start: int, stop: int, chunks: list[Pieces]
) -> np.ndarray[Any, Any]:
    """Corpus and row at each position of each lane, as the pieces bring them; each place is filled once."""
    found = np.full((len(lanes), stop - start, 2), -1)
    bounds = list(map(shard_bounds, mixture.orders))
    for pieces in chunks:
        for piece in pieces.pieces:
            places = pieces.positions[piece.begin : piece.end]
            numbers = np.arange(piece.end - piece.begin) + piece.first
            if pieces.rows is not None:
                numbers = pieces.rows[piece.begin : piece.end]
                assert numbers[0] == piece.first
            assert (np.diff(numbers) > 0).all()
            row = bounds[piece.source][piece.shard] + piece.block * mixture.orders[piece.source].block_rows
            assert (found[piece.lane, places - start] == -1).all()
            found[piece.lane, places - start] = np.column_stack(
                (np.full(len(numbers), piece.source), numbers + row)
            )
    return found


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_every_position_is_planned_once_in_windows_of_bounded_reach(data: st.DataObject) -> None:
    lanes = data.draw(st.integers(1, 3), "lanes")
    mode = data.draw(st.sampled_from(["window", "window", "full", "none"]), "mode")
    size = data.draw(st.integers(1, 3), "window_blocks")
    orders = [
        Order(
            [*data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=2), "shards"), lanes],
            data.draw(st.integers(1, 9), "block_rows"),
            data.draw(st.integers(0, 99), "seed"),
            mode,
            lanes,
            2,
            size,
        )
        for _ in range(data.draw(st.integers(1, 3), "corpora"))
    ]
    weights = st.lists(st.integers(0, 30), min_size=len(orders), max_size=len(orders)).filter(any)
    changes = data.draw(st.dictionaries(st.integers(1, 90), weights, max_size=2), "changes")
    mixture = Mixture(orders, data.draw(weights, "weights"), changes)
    start = data.draw(st.integers(0, 99), "start")
    stop = start + data.draw(st.integers(0, 150), "more")
    first = data.draw(st.integers(0, lanes - 1), "first")
    mine = range(first, data.draw(st.integers(first + 1, lanes), "last"))
    chunks = planned(mixture, mine, start, stop)

    found = laid_out(mixture, mine, start, stop, chunks)
    for lane, rows in zip(mine, found, strict=True):
        draws = mixture.rows(lane, start, stop)
        assert rows.tolist() == np.column_stack((draws.corpora, draws.rows)).tolist()
    starts = [position for pieces in chunks for position in pieces.starts]
    assert starts == sorted(starts)
    for pieces in chunks:
        begin = 0
        for opens, closes, end in zip(pieces.starts, pieces.stops, pieces.piece_ends, strict=True):
            assert opens < closes <= opens + most_positions(mixture)
            places = [pieces.positions[piece.begin : piece.end] for piece in pieces.pieces[begin:end]]
            assert (min(map(np.min, places)), max(map(np.max, places))) == (opens, closes - 1)
            begin = end


def test_windows_in_proportion_of_their_corpora_stay_whole() -> None:
    orders = [Order([64] * 4, 8, lanes=2, window_blocks=2), Order([64] * 2, 8, lanes=2, window_blocks=1)]
    mixture = Mixture(orders, [2, 1])
    assert most_positions(mixture) == 24 + 3 + 1
    assert mixture_ahead(mixture, 8) == 7 + 2
    chunks = planned(mixture, range(2), 0, 3 * 128)
    assert not any(piece.cut for pieces in chunks for piece in pieces.pieces)
    windows = sum(len(pieces.starts) for pieces in chunks)
    assert windows == 2 * (128 // 8 // 2 * 2 + 64 // 8 * 2)


def test_a_window_of_a_corpus_drawn_seldom_is_planned_part_by_part() -> None:
    orders = [Order([64] * 4, 8, lanes=1, window_blocks=2), Order([64], 8, lanes=1, window_blocks=2)]
    mixture = Mixture(orders, [15, 1])
    chunks = planned(mixture, range(1), 0, 16 * 64)
    often, seldom = (
        [piece for pieces in chunks for piece in pieces.pieces if piece.source == source] for source in (0, 1)
    )
    assert all(piece.cut for piece in seldom)
    assert not any(piece.cut for piece in often[:-2])  # the last window ends behind the last position
    # Its 16 rows lie 16 positions apart, and 37 positions are planned together.
    assert all(piece.end - piece.begin <= 3 for piece in seldom)
    for early, late in pairwise(chunks):
        assert max(early.starts) <= min(late.starts)


@pytest.mark.parametrize(
    ("order", "lanes", "kept"),
    [
        (Order([64], 4, lanes=1, window_blocks=2), 1, 4),
        (Order([64], 4, lanes=4, window_blocks=10**15), 2, 2 * 17 + 1),
    ],
)
def test_blocks_kept_are_those_of_a_window_of_each_lane(order: Order, lanes: int, kept: int) -> None:
    assert blocks_kept(order, lanes) == kept


def test_epochs_that_were_begun_are_told() -> None:
    mixture = Mixture([Order([10], 2, lanes=1), Order([40], 2, lanes=1)], [1, 1])
    planner = MixedPlanner(mixture, range(1), 25, 200, 4)
    assert planner.epochs == [1, 0]
    while planner.plan() is not None:
        pass
    assert planner.epochs == [9, 2]
