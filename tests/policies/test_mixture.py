import json
import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Mixture, Order
from policies.order.schedule import chairman, whole_weights
from tests.policies.order_model import Case, lane_of, order_of

PROFILE = settings(max_examples=25, deadline=None, derandomize=True)
WEIGHTS = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    lanes = draw(st.integers(1, 6))
    orders = [
        order_of(
            Case(rows, 3, draw(st.integers(0, 99)), draw(st.sampled_from(["window", "full"])), lanes, 2, 2)
        )
        for rows in draw(
            st.lists(st.lists(st.integers(3, 12), min_size=2, max_size=4), min_size=1, max_size=4)
        )
    ]
    weights = draw(st.lists(st.integers(1, 20), min_size=len(orders), max_size=len(orders)))
    return Mixture(orders, weights)


@PROFILE
@given(WEIGHTS)
def test_chairman_is_as_near_to_every_share_as_any_rule_can_be(weights: list[int]) -> None:
    draws, whole, count = chairman(weights), sum(weights), len(weights)
    counts = np.cumsum(draws[:, None] == np.arange(count), axis=0)
    ideal = np.arange(1, whole + 1)[:, None] * np.array(weights)
    assert counts[-1].tolist() == weights
    assert (np.abs(counts * whole - ideal) * max(2 * count - 2, 2)).max() <= (
        max(2 * count - 2, 2) - 1
    ) * whole


@PROFILE
@given(mixtures())
def test_mixture_has_every_corpus_in_proportion_at_every_step(mixture: Mixture) -> None:
    steps = 120
    corpora = np.array([mixture.rows(lane, 0, steps).corpora for lane in range(mixture.lanes)])
    for corpus, weight in enumerate(mixture.weights):
        counts = np.cumsum((corpora == corpus).sum(axis=0))
        shares = [float((step + 1) * mixture.lanes * weight) for step in range(steps)]
        assert (np.abs(counts - shares) < 1).all()


@PROFILE
@given(mixtures())
def test_mixture_lanes_take_every_draw_equally_often_in_the_end(mixture: Mixture) -> None:
    whole = np.lcm.reduce([weight.denominator for weight in mixture.weights])
    steps = int(whole) * mixture.lanes
    for lane in range(mixture.lanes):
        counts = np.bincount(mixture.rows(lane, 0, steps).corpora, minlength=len(mixture.orders))
        assert counts.tolist() == [steps * weight for weight in mixture.weights]


@PROFILE
@given(mixtures())
def test_mixture_lane_runs_through_its_lane_of_each_corpus_epoch_by_epoch(mixture: Mixture) -> None:
    for lane in range(mixture.lanes):
        draws = mixture.rows(lane, 0, 120)
        for corpus, order in enumerate(mixture.orders):
            mine = draws.corpora == corpus
            found = list(zip(draws.epochs[mine].tolist(), draws.rows[mine].tolist(), strict=True))
            epochs = int(draws.epochs[mine].max(initial=0)) + 1
            endless = [(epoch, row) for epoch in range(epochs) for row in lane_of(order, epoch, lane)]
            assert found == endless[: len(found)]


@PROFILE
@given(mixtures(), st.integers(0, 2**40), st.data())
def test_mixture_seek_equals_walking(mixture: Mixture, start: int, data: st.DataObject) -> None:
    lane = data.draw(st.integers(0, mixture.lanes - 1))
    walked = mixture.rows(lane, start, start + 60)
    first = data.draw(st.integers(0, 59))
    sought = mixture.rows(lane, start + first, start + 60)
    for name in ("corpora", "epochs", "rows"):
        assert getattr(sought, name).dtype == np.int64
        assert getattr(sought, name).tolist() == getattr(walked, name)[first:].tolist()


@PROFILE
@given(mixtures(), st.integers(0, 500), st.data())
def test_mixture_places_are_what_was_drawn_before(
    mixture: Mixture, position: int, data: st.DataObject
) -> None:
    lane = data.draw(st.integers(0, mixture.lanes - 1))
    counts = np.bincount(mixture.rows(lane, 0, position).corpora, minlength=len(mixture.orders))
    expected = [
        divmod(int(count), order.lane_rows(0, lane))
        for count, order in zip(counts, mixture.orders, strict=True)
    ]
    assert mixture.places(lane, position) == expected


def test_mixture_rows_of_no_position_are_none() -> None:
    draws = Mixture([Order([10], lanes=2)], [1]).rows(1, 7, 7)
    assert draws.corpora.tolist() == draws.epochs.tolist() == draws.rows.tolist() == []


def test_mixture_of_half_and_half_alternates_in_every_lane() -> None:
    mixture = Mixture([Order([100], lanes=2), Order([50], lanes=2)], [1, 1])
    for lane in range(2):
        assert sorted(mixture.rows(lane, 0, 2).corpora.tolist()) == [0, 1]
    assert mixture.rank_lanes(1, 2) == range(1, 2)


def test_mixture_far_out_is_found_without_walking() -> None:
    mixture = Mixture([Order([10**9] * 3, lanes=4), Order([7] * 9, lanes=4)], [0.999, 0.001])
    draws = mixture.rows(2, 2**49, 2**49 + 5000)
    assert np.bincount(draws.corpora)[1] in range(3, 8)
    assert mixture.places(2, 2**49)[1][0] == pytest.approx(2**49 * 0.001 / 15.75, rel=0.02)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([0.7, 0.2, 0.1], [7, 2, 1]),
        ([4, 6], [2, 3]),
        ([Fraction(1, 3), Fraction(2, 3)], [1, 2]),
        ([1e-3, 1], [1, 1000]),
        ([np.float64(0.5), np.int64(1)], [1, 2]),
        ([5], [1]),
    ],
)
def test_whole_weights_are_the_smallest_in_proportion(weights: list[float], expected: list[int]) -> None:
    assert whole_weights(weights) == expected


def test_mixture_value_equality_pickle_and_fingerprint() -> None:
    orders = [Order([100, 20], lanes=2), Order([50], lanes=2, mode="full")]
    mixture = Mixture(orders, [0.75, 0.25])
    assert mixture.weights == (Fraction(3, 4), Fraction(1, 4))
    assert mixture.orders == tuple(orders)
    again = pickle.loads(pickle.dumps(mixture))
    assert again == mixture == Mixture(orders, [3, 1])
    assert hash(again) == hash(mixture)
    assert mixture != Mixture(orders, [1, 1])
    assert mixture != Mixture([orders[0], orders[0]], [3, 1])
    assert mixture != "a mixture"
    assert json.loads(json.dumps(mixture.fingerprint())) == {
        "weights": [3, 1],
        "orders": [order.fingerprint() for order in orders],
    }
    assert repr(mixture) == "Mixture(<2 orders of 120, 50 rows>, weights=[3, 1])"
    assert len(pickle.dumps(mixture)) < 2000


ORDER = Order([10], lanes=2)


@pytest.mark.parametrize(
    ("orders", "weights", "message"),
    [
        ([ORDER], [1, 2], "weights must be one for each of 1 orders, not 2"),
        ([ORDER, Order([10], lanes=3)], [1, 2], "orders must have equally many lanes, not 2 and 3"),
        (
            [ORDER, Order([1], lanes=2)],
            [1, 2],
            r"orders\[1\] must have a row for each of 2 lanes, not 1 rows",
        ),
        ([], [], "weights must be above 0, one or more"),
        ([ORDER, ORDER], [0, 0], "weights must be above 0, one or more"),
        ([ORDER, ORDER], [1, -1], "weights must be above 0"),
        ([ORDER, ORDER], [1, float("nan")], "weights must be finite numbers"),
        ([ORDER, ORDER], [1, float("inf")], "weights must be finite numbers"),
        ([ORDER, ORDER], [1, 1 / 3], r"at most, not to .*; round them, for example weights=\[750, 250\]"),
        (
            [Order([1000], lanes=1000)] * 2,
            [1, 40002],
            r"too large a table for 1000 lanes; .* weights=\[1, 100\]",
        ),
    ],
)
def test_mixture_refuses_what_cannot_be_mixed(
    orders: list[Order], weights: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Mixture(orders, weights)


def test_mixture_refuses_places_that_do_not_exist() -> None:
    mixture = Mixture([ORDER], [1])
    refused = [
        (lambda: mixture.rows(2, 0, 1), "lane must be below 2"),
        (lambda: mixture.rows(0, -1, 1), "start must be at least 0"),
        (lambda: mixture.rows(0, 3, 2), "stop must be at least 3"),
        (lambda: mixture.places(0, 2**50), "position must be below"),
        (lambda: mixture.places(-1, 0), "lane must be at least 0"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()
