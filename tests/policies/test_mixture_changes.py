"""Mixtures whose weights change, against a walk that counts row by row."""

import json
import pickle
from collections import Counter
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Mixture, Order
from policies.order import NEVER
from tests.policies.order_model import lane_of

PROFILE = settings(max_examples=12, deadline=None, derandomize=True)
STEPS = 90


@st.composite
def changing(draw: st.DrawFn) -> Mixture:
    lanes, count = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    orders = [
        Order([draw(st.integers(lanes, 30)), 4], 3, draw(st.integers(0, 99)), lanes=lanes, window_blocks=2)
        for _ in range(count)
    ]
    weights = st.lists(st.integers(0, 9), min_size=count, max_size=count).filter(any)
    changes = draw(st.dictionaries(st.integers(1, STEPS), weights, max_size=3))
    return Mixture(orders, draw(weights), changes)


def walk(mixture: Mixture, lane: int) -> list[tuple[int, int, int]]:
    """Corpus, epoch and row at each position: phases one after the other, rows counted one by one."""
    phases = [(0, mixture.weights), *mixture.changes.items(), (STEPS * 10, ())]
    counts: Counter[int] = Counter()
    found = []
    for (start, weights), (stop, _) in pairwise(phases):
        active = [corpus for corpus, weight in enumerate(weights) if weight]
        plain = Mixture([mixture.orders[corpus] for corpus in active], [weights[c] for c in active])
        for number in plain.rows(lane, 0, max(0, min(stop, STEPS) - start)).corpora.tolist():
            corpus = active[number]
            epoch, position = divmod(counts[corpus], mixture.orders[corpus].lane_rows(0, lane))
            found.append((corpus, epoch, lane_of(mixture.orders[corpus], epoch, lane)[position]))
            counts[corpus] += 1
    return found


@PROFILE
@given(changing(), st.data())
def test_changing_mixture_equals_a_walk_wherever_it_is_sought(mixture: Mixture, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, STEPS))
    stop = data.draw(st.integers(start, STEPS))
    lanes = range(mixture.lanes)
    walked = [walk(mixture, lane) for lane in lanes]
    for lane, rows in zip(lanes, walked, strict=True):
        draws = mixture.rows(lane, start, stop)
        found = np.column_stack((draws.corpora, draws.epochs, draws.rows))
        assert list(map(tuple, found.tolist())) == rows[start:stop]
        counts = Counter(corpus for corpus, _, _ in rows[:stop])
        assert mixture.drawn(lane, stop).tolist() == [counts[c] for c in range(len(mixture.orders))]
        assert mixture.places(lane, stop) == [
            divmod(counts[corpus], order.lane_rows(0, lane)) for corpus, order in enumerate(mixture.orders)
        ]
    assert mixture.corpora(lanes, start, stop).tolist() == [
        [corpus for corpus, _, _ in rows[start:stop]] for rows in walked
    ]


@PROFILE
@given(changing())
def test_positions_are_where_rows_are_drawn(mixture: Mixture) -> None:
    for lane in range(mixture.lanes):
        (corpora,) = mixture.corpora([lane], 0, STEPS)
        for corpus in range(len(mixture.orders)):
            wanted = np.flatnonzero(corpora == corpus)
            found = mixture.positions(corpus, lane, np.arange(len(wanted) + 3))
            assert found.dtype == np.int64
            assert found[: len(wanted)].tolist() == wanted.tolist()
            assert (found[len(wanted) :] >= STEPS).all()


@PROFILE
@given(changing())
def test_changing_mixture_has_every_corpus_in_proportion_within_each_phase(mixture: Mixture) -> None:
    drawn = mixture.corpora(range(mixture.lanes), 0, STEPS)
    phases = [(0, mixture.weights), *mixture.changes.items(), (STEPS, ())]
    for (start, weights), (stop, _) in pairwise(phases):
        for corpus, weight in enumerate(weights):
            counts = np.cumsum((drawn[:, start : min(stop, STEPS)] == corpus).sum(axis=0))
            shares = [float((step + 1) * mixture.lanes * weight) for step in range(len(counts))]
            assert (np.abs(counts - shares) < 1).all()


ORDERS = [Order([40, 9], 4, lanes=2), Order([30], 4, lanes=2)]


def test_positions_of_many_lanes_are_found_together_and_far_out() -> None:
    mixture = Mixture(ORDERS, [3, 1], {7: [0, 1], 20: [5, 2]})
    lanes, numbers = np.array([0, 1, 0, 1]), np.array([2**40, 2**40 + 1, 0, 3])
    together = mixture.positions(0, lanes, numbers)
    assert together.tolist() == [
        int(mixture.positions(0, lane, number)) for lane, number in zip(lanes, numbers, strict=True)
    ]
    for lane, number, position in zip(lanes.tolist(), numbers.tolist(), together.tolist(), strict=True):
        assert mixture.drawn(lane, position)[0] == number
        assert mixture.drawn(lane, position + 1)[0] == number + 1


def test_positions_after_the_last_row_of_a_corpus_that_rests_are_never() -> None:
    mixture = Mixture(ORDERS, [1, 1], {6: [0, 1]})
    drawn = int(mixture.drawn(0, 6)[0])
    assert mixture.drawn(0, 10**9)[0] == drawn
    assert mixture.positions(0, 0, [drawn - 1, drawn])[1] == NEVER
    assert mixture.positions(0, [], []).tolist() == []


def test_changing_mixture_value_equality_pickle_and_fingerprint() -> None:
    mixture = Mixture(ORDERS, [0.5, 0.5], {30: [0, 2], 10: [0.75, 0.25]})
    assert mixture.changes == {10: (Fraction(3, 4), Fraction(1, 4)), 30: (0, 1)}
    assert list(mixture.changes) == [10, 30]
    again = pickle.loads(pickle.dumps(mixture))
    assert again == mixture == Mixture(ORDERS, [1, 1], {10: [3, 1], 30: [0, 1]})
    assert hash(again) == hash(mixture)
    assert mixture != Mixture(ORDERS, [1, 1])
    assert mixture != Mixture(ORDERS, [1, 1], {11: [3, 1], 30: [0, 1]})
    assert json.loads(json.dumps(mixture.fingerprint()))["changes"] == [[10, [3, 1]], [30, [0, 1]]]
    assert repr(mixture).endswith("weights=[1, 1], changes={10: [3, 1], 30: [0, 1]})")


def test_more_kinds_of_weights_than_tables_are_kept_give_the_same_rows() -> None:
    changes = {step * 5: [step, 7] for step in range(1, 9)}
    mixture = Mixture(ORDERS, [1, 1], changes)
    whole = mixture.rows(1, 0, 60).rows.tolist()
    assert [int(mixture.rows(1, step, step + 1).rows[0]) for step in range(60)] == whole


@pytest.mark.parametrize(
    ("weights", "changes", "message"),
    [
        ([1, 1], {5: [1]}, "weights must be one for each of 2 orders, not 1"),
        ([1, 1], {5: [0, 0]}, "weights must be above 0, one or more"),
        ([1, 1], {5: [1, -1]}, "weights must be above 0"),
        ([1, 1], {0: [1, 2]}, "changes must be at least 1"),
        ([1, 1], {2.5: [1, 2]}, "changes must be a whole number"),
        ([1, 1], {2**50: [1, 2]}, "changes must be below"),
    ],
)
def test_changing_mixture_refuses_what_cannot_be_mixed(
    weights: list[float], changes: dict[Any, list[float]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Mixture(ORDERS, weights, changes)


def test_changing_mixture_refuses_places_that_do_not_exist() -> None:
    mixture = Mixture(ORDERS, [1, 1], {5: [1, 2]})
    refused = [
        (lambda: mixture.positions(2, 0, 0), "corpus must be below 2"),
        (lambda: mixture.positions(0, 2, 0), r"lanes must be in \[0, 2\)"),
        (lambda: mixture.positions(0, 0, -1), "numbers must be in"),
        (lambda: mixture.positions(0, 0, 0.5), "numbers must be whole numbers"),
        (lambda: mixture.corpora([2], 0, 1), "lanes must be below 2"),
        (lambda: mixture.corpora([0], 3, 2), "stop must be at least 3"),
        (lambda: mixture.drawn(0, -1), "position must be at least 0"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()
