import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.order.permute import derive, derive_array, permutation, permutations

KEYS = st.integers(0, 2**64 - 1)
PROFILE = settings(max_examples=60, deadline=None, derandomize=True)


def splitmix64(seed: int, count: int) -> list[int]:
    """Vigna's splitmix64.c, word for word."""
    word, outputs = seed, []
    for _ in range(count):
        word = (word + 0x9E3779B97F4A7C15) % 2**64
        z = word
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        outputs.append(z ^ (z >> 31))
    return outputs


def model(key: int, n: int) -> list[int]:
    """The definition of a permutation, in plain Python."""
    bits = (n - 1).bit_length()
    return [
        word % 2**bits for word in sorted((h >> bits << bits) + i for i, h in enumerate(splitmix64(key, n)))
    ]


def test_derive_array_gives_the_published_splitmix64_sequence() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert derive_array(1234567, np.arange(4, dtype=np.uint64)).tolist() == published
    assert splitmix64(1234567, 4) == published


@PROFILE
@given(KEYS, st.lists(st.integers(0, 20), max_size=3))
def test_derive_takes_the_output_numbered_by_each_part(seed: int, parts: list[int]) -> None:
    key = splitmix64(seed, 1)[0]
    for part in parts:
        key = splitmix64(key, part + 1)[part]
    assert derive(seed, *parts) == key


@PROFILE
@given(KEYS, st.lists(KEYS, max_size=3), KEYS)
def test_derive_array_agrees_with_derive(seed: int, parts: list[int], last: int) -> None:
    step = derive_array(derive(seed, *parts), np.array([last], dtype=np.uint64))
    assert step.tolist() == [derive(seed, *parts, last)]


def test_derive_keys_of_near_purposes_differ() -> None:
    keys = {
        derive(s, d, e, lane) for s in range(10) for d in range(1, 4) for e in range(10) for lane in range(10)
    }
    keys |= {derive(s, d, e) for s in range(10) for d in range(1, 4) for e in range(10)}
    assert len(keys) == 3000 + 300


@PROFILE
@given(KEYS, st.integers(1, 300))
def test_permutation_follows_its_definition(key: int, n: int) -> None:
    order = permutation(key, n)
    assert order.dtype == np.int64
    assert order.tolist() == model(key, n)
    assert sorted(order.tolist()) == list(range(n))


def test_permutation_of_nothing_is_empty() -> None:
    assert permutation(5, 0).tolist() == []


@PROFILE
@given(st.lists(st.tuples(KEYS, st.integers(1, 70)), min_size=1, max_size=8))
def test_permutations_equal_one_at_a_time(parts: list[tuple[int, int]]) -> None:
    keys = np.array([key for key, _ in parts], dtype=np.uint64)
    sizes = np.array([n for _, n in parts])
    expected = np.concatenate([permutation(key, n) for key, n in parts])
    np.testing.assert_array_equal(permutations(keys, sizes), expected)


def test_permutations_of_many_items_equal_one_at_a_time() -> None:
    keys, sizes = np.array([3, 5, 7], dtype=np.uint64), np.array([65_537, 257, 131_072])
    expected = np.concatenate([permutation(3, 65_537), permutation(5, 257), permutation(7, 131_072)])
    np.testing.assert_array_equal(permutations(keys, sizes), expected)


@pytest.mark.parametrize("keys", [range(4000), [derive(7, 1, epoch) for epoch in range(4000)]])
def test_permutation_puts_every_item_everywhere_equally_often(keys: list[int]) -> None:
    n = 10
    seen = np.zeros((n, n))
    for key in keys:
        seen[np.arange(n), permutation(key, n)] += 1
    expected = len(keys) / n
    statistic = ((seen - expected) ** 2 / expected).sum()  # chi-square, 81 degrees of freedom
    assert 40 < statistic < 138  # 1 in 10^4 on either side


def test_permutation_of_near_keys_is_uncorrelated() -> None:
    n = 1000
    base = permutation(derive(7, 1, 0), n)
    for epoch in range(1, 200):
        other = permutation(derive(7, 1, epoch), n)
        assert abs(np.corrcoef(base, other)[0, 1]) < 5 / np.sqrt(n)
        assert np.count_nonzero(base == other) < 10  # fixed points are Poisson with mean 1
