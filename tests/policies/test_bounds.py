import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import replay
from policies.bounds import bound, lru_hit_ratio, most_hit_bytes, most_hits
from policies.eviction import NAMES, ONLINE, Eviction, make
from tests.policies.bounds_model import best_of_all, lp_optimum

PROFILE = settings(max_examples=100, deadline=None, derandomize=True)
REQUESTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=40)
SIZES = (1, 2, 3, 5, 0)


def test_bound_of_one_reader_is_capacity_over_corpus_after_the_first_epoch() -> None:
    assert [bound(3, 7, epoch) for epoch in range(3)] == [0.0, 3 / 7, 3 / 7]


def test_bound_does_not_pass_1() -> None:
    assert bound(11, 7, 1) == 1.0
    assert bound(0, 0, 1) == 1.0


def test_bound_of_several_readers_counts_one_fetch_of_what_is_not_resident() -> None:
    assert bound(3, 7, 0, readers=5) == 4 / 5
    assert bound(3, 7, 1, readers=5) == pytest.approx(1 - (7 - 3) / (5 * 7))


@pytest.mark.parametrize("name", ONLINE)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    capacity=st.integers(0, 40),
    readers=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_bound_is_never_exceeded(name: str, sizes: list[int], capacity: int, readers: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    cache: Eviction[int] = make(name, capacity)
    for epoch in range(4):
        requests = np.concatenate([random.permutation(len(sizes)) for _ in range(readers)]).tolist()
        if seed % 2:  # the readers' requests mixed rather than one after the other
            requests = random.permutation(requests).tolist()
        hit_bytes = 0
        for item in requests:
            if cache.hit(item):
                hit_bytes += sizes[item]
            else:
                cache.admit(item, sizes[item])
        asked = readers * sum(sizes)
        assert hit_bytes / asked <= bound(capacity, sum(sizes), epoch, readers=readers) + 1e-12


def test_bound_refuses_an_epoch_below_0() -> None:
    with pytest.raises(ValueError, match="epoch must be at least 0"):
        bound(1, 1, -1)


def test_lru_hit_ratio_is_the_closed_form() -> None:
    assert [lru_hit_ratio(share) for share in (0, 1)] == [0.0, 1.0]
    assert lru_hit_ratio(0.5) == pytest.approx(0.5 - 0.5 * math.log(2))


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_lru_hit_ratio_refuses_what_is_no_share(share: float) -> None:
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], not"):
        lru_hit_ratio(share)


def test_most_hits_without_rounds_sells_room_at_one_price() -> None:
    # Reuses [3, 4) [2, 5) [1, 6) [0, 7). More than one is alive after requests 1 to 5: there they take 1, 3,
    # 5 and 5 moments, and 5 are sold. That buys the first two and a fifth of the next.
    ids = [0, 1, 2, 3, 3, 2, 1, 0]
    assert most_hits(ids, 1, 1, rounds=0) == 2
    # All four are alive after request 3. A price there alone buys one.
    assert most_hits(ids, 1, 1, rounds=50) == replay("belady", ids, 1, 1).hits == 1


def test_most_hits_takes_no_price_where_everything_fits() -> None:
    # More than one is alive after requests 1 to 3: there the reuses take 2, 3 and 2 moments, and 3 are sold.
    # A price everywhere would sell 6 moments to reuses of 3 each.
    assert most_hits([0, 1, 2, 0, 1, 2], 1, 1, rounds=0) == 1


def test_most_hit_bytes_counts_bytes_and_most_hits_requests() -> None:
    ids = [0, 1, 1, 2, 2, 0]
    sizes = [3, 7, 7, 5, 5, 3]
    assert (most_hits(ids, sizes, 10), most_hit_bytes(ids, sizes, 10)) == (3, 15)
    # Beside the 7 of item 1 a third of item 0 finds room.
    assert (most_hits(ids, sizes, 8), most_hit_bytes(ids, sizes, 8)) == (2, 13)


def test_most_hits_of_what_fits_is_every_reuse() -> None:
    ids = np.random.default_rng(3).integers(0, 50, 400)
    reuses = 400 - len(np.unique(ids))
    assert most_hits(ids, 1, 50) == replay("pin", ids, 1, 50).hits == reuses
    assert most_hit_bytes(ids, 7, 350, rounds=0) == 7 * reuses


def test_most_hits_of_nothing_is_0() -> None:
    assert most_hits([], [], 5) == most_hits([1, 1], 3, 2) == most_hit_bytes([1, 2, 1], 3, 0) == 0


def test_most_hits_allows_an_item_to_be_kept_at_the_smallest_size_it_had() -> None:
    ids, sizes = [0, 1, 0, 0, 1, 1], [2, 5, 9, 9, 5, 5]
    assert replay("pin", ids, sizes, 7).hits == most_hits(ids, sizes, 7) == 4
    assert replay("pin", ids, sizes, 7).bytes - replay("pin", ids, sizes, 7).miss_bytes == 28
    assert most_hit_bytes(ids, sizes, 7) == 28


@PROFILE
@given(requests=REQUESTS, capacity=st.integers(0, 25), rounds=st.integers(0, 40))
def test_most_hits_are_exceeded_by_no_policy(
    requests: list[tuple[int, int]], capacity: int, rounds: int
) -> None:
    ids, sizes = [item for item, _ in requests], [nbytes for _, nbytes in requests]
    hits = most_hits(ids, sizes, capacity, rounds=rounds)
    hit_bytes = most_hit_bytes(ids, sizes, capacity, rounds=rounds)
    for name in NAMES:
        run = replay(name, ids, sizes, capacity)
        assert run.hits <= hits, name
        assert run.bytes - run.miss_bytes <= hit_bytes, name


@PROFILE
@given(ids=st.lists(st.integers(0, 4), max_size=12), capacity=st.integers(0, 9), count_bytes=st.booleans())
def test_most_hits_are_at_least_the_best_of_all_ways_and_the_linear_program(
    ids: list[int], capacity: int, count_bytes: bool
) -> None:
    sizes = [SIZES[item] for item in ids]
    best = best_of_all(ids, sizes, capacity, count_bytes=count_bytes)
    relaxed = lp_optimum(ids, sizes, capacity, count_bytes=count_bytes)
    count = most_hit_bytes if count_bytes else most_hits
    bounds = [count(ids, sizes, capacity, rounds=rounds) for rounds in (200, 16, 0)]
    assert best <= relaxed + 1e-6
    assert math.floor(relaxed + 1e-6) <= bounds[0] <= bounds[1] <= bounds[2]


@PROFILE
@given(ids=st.lists(st.integers(0, 4), max_size=12), room=st.integers(0, 4))
def test_belady_of_one_size_is_the_best_of_all_ways_and_the_linear_program(ids: list[int], room: int) -> None:
    hits = replay("belady", ids, 1, room).hits
    assert hits == best_of_all(ids, [1] * len(ids), room, count_bytes=False)
    assert hits == pytest.approx(lp_optimum(ids, [1] * len(ids), room, count_bytes=False))
    assert hits <= most_hits(ids, 1, room)


def test_most_hits_of_unequal_sizes_come_near_the_linear_program_with_rounds() -> None:
    random = np.random.default_rng(5)
    ids = (random.zipf(1.3, 300) % 40).tolist()
    sizes = random.integers(1, 30, 40)[ids].tolist()
    for count, count_bytes in ((most_hits, False), (most_hit_bytes, True)):
        optimum = lp_optimum(ids, sizes, 120, count_bytes=count_bytes)
        assert optimum <= count(ids, sizes, 120, rounds=300) + 1 <= 1.02 * optimum + 1
        assert count(ids, sizes, 120, rounds=0) <= 1.08 * optimum


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1]], 1, 1), "ids must be a flat sequence of ints, not int64 of shape"),
        (([1.5], 1, 1), "ids must be a flat sequence of ints, not float64"),
        (([1], [1, 2], 1), "sizes must be one number or 1"),
        (([1], -1, 1), "sizes must be at least 0"),
        (([1], 1, -1), "capacity_bytes must be at least 0"),
    ],
)
def test_most_hits_refuses_what_is_no_trace(arguments: tuple[object, ...], message: str) -> None:
    for count in (most_hits, most_hit_bytes):
        with pytest.raises(ValueError, match=message):
            count(*arguments)
    with pytest.raises(ValueError, match="rounds must be at least 0"):
        most_hits([1], 1, 1, rounds=-1)


def test_most_hits_never_grow_with_more_rounds() -> None:
    """Prices may swing, and in permutations they do; the best so far is kept."""
    random = np.random.default_rng(6)
    ids = np.concatenate([random.permutation(80) for _ in range(6)])
    bounds = [most_hits(ids, 1, 8, rounds=rounds) for rounds in range(40)]
    assert bounds == sorted(bounds, reverse=True)
    assert replay("belady", ids, 1, 8).hits == 8 * 5 <= bounds[-1] <= 1.3 * 8 * 5 < bounds[0]
