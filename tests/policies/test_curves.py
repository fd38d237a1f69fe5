from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import replay
from policies.curves import Curve, curve, sampled_curve
from policies.curves.distances import NEVER, previous_uses, stack_distances
from policies.eviction import NAMES

PROFILE = settings(max_examples=80, deadline=None, derandomize=True)
IDS = st.lists(st.integers(-3, 12), max_size=90)
CAPACITIES = st.lists(st.integers(0, 60), min_size=1, max_size=5)


def misses(name: str, ids: Sequence[int], sizes: object, found: Curve) -> bool:
    """Whether the curve has what a replay counts at each of its capacities."""
    counts = [replay(name, ids, sizes, p.capacity_bytes) for p in found.points]  # type: ignore[arg-type]
    return [(p.object_miss_ratio, p.byte_miss_ratio) for p in found.points] == [
        (count.object_miss_ratio, count.byte_miss_ratio) for count in counts
    ]


@PROFILE
@given(ids=IDS, size_of=st.lists(st.integers(0, 20), min_size=16, max_size=16))
def test_stack_distances_are_the_bytes_used_since(ids: list[int], size_of: list[int]) -> None:
    sizes = np.array([size_of[item] for item in ids], np.int64)
    stack: list[int] = []
    expected = []
    for item in ids:
        if item in stack:
            since = stack[stack.index(item) :]
            expected.append(sum(size_of[other] for other in since))
            stack.remove(item)
        else:
            expected.append(NEVER)
        stack.append(item)
    assert stack_distances(previous_uses(np.array(ids, np.int64)), sizes).tolist() == expected


@pytest.mark.parametrize("name", NAMES)
@settings(PROFILE, max_examples=40)
@given(ids=IDS, capacities=CAPACITIES)
def test_curve_with_equal_sizes_is_the_replay_of_each(
    name: str, ids: list[int], capacities: list[int]
) -> None:
    found = curve(name, ids, 3, capacities)
    assert [point.capacity_bytes for point in found.points] == sorted(set(capacities))
    assert found.method == ("one pass" if name in ("lru", "pin") else "replay")
    assert misses(name, ids, 3, found)


@PROFILE
@given(ids=IDS, size_of=st.lists(st.integers(0, 20), min_size=16, max_size=16), capacities=CAPACITIES)
def test_curve_of_lru_in_one_pass_is_exact_with_any_sizes(
    ids: list[int], size_of: list[int], capacities: list[int]
) -> None:
    """Also where objects are larger than the cache, which refuses them."""
    sizes = [size_of[item] for item in ids]
    found = curve("lru", ids, sizes, capacities)
    assert found.method == "one pass"
    assert misses("lru", ids, sizes, found)


@pytest.mark.parametrize("name", ["lru", "pin"])
def test_curve_replays_where_sizes_change(name: str) -> None:
    ids, sizes = [1, 2, 1, 3, 2, 1] * 5, [3, 4, 5, 2, 4, 1] * 5
    found = curve(name, ids, sizes, [5, 8, 11])
    assert found.method == "replay"
    assert misses(name, ids, sizes, found)


def trace(kind: str) -> np.ndarray:
    rng = np.random.default_rng(3)
    if kind == "zipf":
        return rng.choice(20_000, 60_000, p=(w := 1 / np.arange(1, 20_001) ** 0.8) / w.sum())
    return np.concatenate([rng.permutation(15_000) for _ in range(4)])


@pytest.mark.parametrize("kind", ["zipf", "permutations"])
@pytest.mark.parametrize("name", ["lru", "sieve"])
def test_sampled_curve_is_within_its_error(name: str, kind: str) -> None:
    ids = trace(kind)
    sizes = 1000 + ids * 7919 % 1000  # one object, one size
    capacities = [int(share * sizes.mean() * 15_000) for share in (0.1, 0.2, 0.4, 0.6, 0.8)]
    exact = curve(name, ids, sizes, capacities)
    found = sampled_curve(name, ids, sizes, capacities, rate=0.1)
    assert found.method == "sample"
    for point, truth in zip(found.points, exact.points, strict=True):
        assert 0 < point.object_error < 0.08
        assert abs(point.object_miss_ratio - truth.object_miss_ratio) <= point.object_error
        assert abs(point.byte_miss_ratio - truth.byte_miss_ratio) <= point.byte_error
    assert found == sampled_curve(name, ids, sizes, capacities, rate=0.1)
    assert found != sampled_curve(name, ids, sizes, capacities, rate=0.1, seed=8)


def test_sampled_curve_error_covers_the_truth_about_as_often_as_it_says() -> None:
    ids = trace("zipf")
    capacities = [2_000, 6_000]
    exact = [point.object_miss_ratio for point in curve("lru", ids, 1, capacities).points]
    covered = [
        abs(point.object_miss_ratio - truth) <= point.object_error
        for seed in range(20)
        for point, truth in zip(
            sampled_curve("lru", ids, 1, capacities, rate=0.1, seed=seed).points, exact, strict=True
        )
    ]
    assert np.mean(covered) >= 0.9


def test_sampled_curve_replays_what_is_too_small_to_sample() -> None:
    ids = trace("zipf")
    found = sampled_curve("fifo", ids, 1, [10, 639, 640, 5000], rate=0.1)
    assert [point.object_error == 0 for point in found.points] == [True, True, False, False]
    assert found.points[:2] == curve("fifo", ids, 1, [10, 639]).points


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mru", [1], 1, [1]), "policy must be one of"),
        (("lru", [1.5], 1, [1]), "ids must be a flat sequence of ints, not float64"),
        (("lru", [[1]], 1, [1]), "ids must be a flat sequence of ints"),
        (("lru", [1], 1, []), "capacities_bytes must be at least one"),
        (("lru", [1], 1, [-1]), "capacity_bytes must be at least 0"),
        (("lru", [1, 2], [1], [1]), "sizes must be one number or 2"),
    ],
)
def test_curve_refuses_arguments_out_of_range(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        curve(*arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        sampled_curve(*arguments, rate=0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [0, 1, -0.5, float("nan")])
def test_sampled_curve_refuses_a_rate_that_is_no_share(rate: float) -> None:
    with pytest.raises(ValueError, match="rate must be above 0 and below 1"):
        sampled_curve("lru", [1], 1, [1], rate=rate)


@pytest.mark.parametrize(("ids", "sizes"), [([], []), ([1, 1, 1], 0)])
def test_curve_of_nothing_misses_no_bytes(ids: list[int], sizes: object) -> None:
    points = curve("lru", ids, sizes, [0, 5]).points  # type: ignore[arg-type]
    assert [(p.object_miss_ratio, p.byte_miss_ratio) for p in points] == [(len(ids) and 1 / 3, 0)] * 2
    assert sampled_curve("lru", ids, sizes, [0, 5], rate=0.5).points == points  # type: ignore[arg-type]
