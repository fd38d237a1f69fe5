"""`run` is the same as one `hit` and `admit` after the other, wherever it begins and ends."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.eviction import NAMES, Eviction, Expiring, Pinning, make

PROFILE = settings(max_examples=60, deadline=None, derandomize=True)
REQUESTS = st.lists(
    st.tuples(st.integers(0, 9), st.one_of(st.integers(0, 4), st.sampled_from([7, 11, 40]))), max_size=90
)
TAIL = [(item, 3) for item in (*range(10), *range(9, -1, -1), *range(0, 10, 2))]


def in_steps(cache: Eviction[int], requests: list[tuple[int, int]]) -> tuple[int, int]:
    missed = []
    for item, nbytes in requests:
        if not cache.hit(item):
            missed.append(nbytes)
            cache.admit(item, nbytes)
    return len(missed), sum(missed)


@pytest.mark.parametrize("name", NAMES)
@PROFILE
@given(requests=REQUESTS, capacity=st.integers(0, 30), cuts=st.lists(st.integers(0, 90), max_size=3))
def test_run_equals_single_steps_wherever_they_take_turns(
    name: str, requests: list[tuple[int, int]], capacity: int, cuts: list[int]
) -> None:
    """The tail asks for all items again: what an algorithm remembers shows in what it evicts then."""
    requests = requests + TAIL
    future = [item for item, _ in requests]
    fast, slow = make(name, capacity, future), make(name, capacity, future)
    edges = sorted({0, *(min(cut, len(requests)) for cut in cuts), len(requests)})
    for turn, (start, stop) in enumerate(pairwise(edges)):
        part = requests[start:stop]
        expected = in_steps(slow, part)
        if turn % 2:
            assert in_steps(fast, part) == expected
        else:
            assert fast.run([item for item, _ in part], [nbytes for _, nbytes in part]) == expected
        assert list(fast) == list(slow)
        assert (fast.used_bytes, len(fast)) == (slow.used_bytes, len(slow))


@pytest.mark.parametrize("name", NAMES)
def test_run_refuses_sizes_before_anything_changes(name: str) -> None:
    cache: Eviction[int] = make(name, 10, [1, 1])
    with pytest.raises(ValueError, match="sizes must be as many as items, 2, not 1"):
        cache.run([1, 1], [3])
    with pytest.raises(ValueError, match="sizes must be at least 0, not -1"):
        cache.run([1, 1], [3, -1])
    assert (len(cache), cache.run([1, 1], [3, 3])) == (0, (1, 3))


@pytest.mark.parametrize("name", ["belady", "belady-size"])
def test_run_of_requests_that_were_not_foretold_goes_as_far_as_it_can(name: str) -> None:
    cache: Eviction[int] = make(name, 10, [1, 2, 1, 2])
    with pytest.raises(ValueError, match="request 2 is for 2, and 1 was foretold"):
        cache.run([1, 2, 2], [3, 3, 3])
    assert sorted(cache) == [1, 2]


def test_run_of_a_decorated_policy_is_that_of_its_steps() -> None:
    cache = Pinning(Expiring(make("lru", 2), ttl_seconds=1))
    cache.pin(7)
    assert cache.run([7, 1, 2, 7, 1], [1] * 5) == (4, 4)
