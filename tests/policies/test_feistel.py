import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.order.feistel import Feistel
from policies.order.permute import derive
from tests.policies.order_model import scattered

PROFILE = settings(max_examples=40, deadline=None, derandomize=True)
KEYS = st.integers(0, 2**64 - 1)


def spread(seen: np.ndarray) -> float:
    """How many standard deviations the chi-square statistic of equally likely counts lies above its mean."""
    expected = seen.sum() / seen.size
    freedom = seen.size - 1
    return float((((seen - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))


@PROFILE
@given(KEYS, st.integers(1, 400))
def test_feistel_follows_its_definition(key: int, n: int) -> None:
    images = Feistel(key, n).slice(0, n)
    assert images.dtype == np.int64
    assert images.tolist() == scattered(key, n)


def test_feistel_of_many_follows_its_definition() -> None:
    n = 65_537  # the first with fewer rounds
    assert Feistel(2**64 - 1, n).slice(0, n).tolist() == scattered(2**64 - 1, n)


@pytest.mark.parametrize("key", [0, 2**64 - 1])
def test_feistel_is_a_bijection_for_every_small_n(key: int) -> None:
    for n in range(1, 301):
        assert np.array_equal(np.sort(Feistel(key, n).slice(0, n)), np.arange(n))


@PROFILE
@given(KEYS, st.integers(1, 100_000) | st.integers(1, 19).map(lambda bits: 2**bits + 1))
def test_feistel_is_a_bijection_for_random_n(key: int, n: int) -> None:
    seen = np.zeros(n, dtype=bool)
    seen[Feistel(key, n).slice(0, n)] = True
    assert seen.all()


@PROFILE
@given(KEYS, st.integers(1, 2**60), st.integers(0, 2**60), st.integers(0, 20_000))
def test_feistel_seek_is_a_slice_and_stays_below_n(key: int, n: int, start: int, count: int) -> None:
    start %= n
    stop = min(n, start + count)
    feistel = Feistel(key, n)
    images = feistel.slice(start, stop)
    assert len(np.unique(images)) == stop - start
    assert ((images >= 0) & (images < n)).all()
    for place in {0, len(images) // 2, len(images) - 1} if len(images) else ():
        assert feistel.slice(start + place, start + place + 1).tolist() == [images[place]]


@pytest.mark.parametrize("n", [3, 5])
def test_feistel_takes_every_order_equally_often(n: int) -> None:
    orders = np.array([Feistel(derive(7, 4, epoch), n).slice(0, n) for epoch in range(1500)])
    _, seen = np.unique(orders @ n ** np.arange(n), return_counts=True)
    assert len(seen) == math.factorial(n)
    assert abs(spread(seen)) < 4


@pytest.mark.parametrize("n", [9, 17])
def test_feistel_puts_every_item_and_every_pair_everywhere_equally_often(n: int) -> None:
    orders = np.array([Feistel(key, n).slice(0, n) for key in range(1500)])
    places = np.zeros((n, n))
    np.add.at(places, (np.arange(n), orders), 1)
    steps = np.bincount(((orders[:, 1:] - orders[:, :-1]) % n).ravel(), minlength=n)
    pairs = np.bincount(orders[:, 0] * n + orders[:, n // 2], minlength=n * n).reshape(n, n)
    assert abs(((places - 1500 / n) ** 2 / (1500 / n)).sum() - (n - 1) ** 2) < 4 * math.sqrt(2) * (n - 1)
    assert steps[0] == np.trace(pairs) == 0
    assert abs(spread(steps[1:])) < 4
    assert abs(spread(pairs[~np.eye(n, dtype=bool)])) < 4


@pytest.mark.parametrize("n", [65_536, 1_000_003, 2**60])
def test_feistel_of_many_scatters_runs_evenly_and_without_correlation(n: int) -> None:
    count = 40_000
    for key in (0, derive(7, 4, 3)):
        images = Feistel(key, n).slice(n // 3, n // 3 + count)
        tenths = images // -(-n // 200)
        assert spread(np.bincount(tenths, minlength=200)) < 4
        steps = (np.diff(images) % n) // -(-n // 200)
        assert spread(np.bincount(steps, minlength=200)) < 4
        assert spread(np.bincount(images % 64, minlength=64)) < 4
        assert abs(np.corrcoef(images[:-1], images[1:])[0, 1]) < 5 / math.sqrt(count)
        assert abs(np.corrcoef(images, np.arange(count))[0, 1]) < 5 / math.sqrt(count)


def test_feistel_of_near_keys_is_uncorrelated() -> None:
    n = 1000
    base = Feistel(derive(7, 4, 0), n).slice(0, n)
    for epoch in range(1, 100):
        other = Feistel(derive(7, 4, epoch), n).slice(0, n)
        assert abs(np.corrcoef(base, other)[0, 1]) < 5 / math.sqrt(n)
        assert np.count_nonzero(base == other) < 10  # fixed points are Poisson with mean 1
