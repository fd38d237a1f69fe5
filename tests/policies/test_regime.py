import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import choose
from policies.eviction import ONLINE, Eviction, make
from policies.bounds import bound


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


def test_choose_pins_for_one_permuting_reader() -> None:
    choice = choose(corpus_bytes=1000, capacity_bytes=250)
    assert (choice.policy, choice.bound) == ("pin", 0.25)
    assert "0.250" in choice.reason
    assert choice.policy in ONLINE


def test_choose_says_that_the_corpus_fits() -> None:
    choice = choose(corpus_bytes=1000, capacity_bytes=1000)
    assert (choice.policy, choice.bound) == ("pin", 1.0)
    assert "whole corpus fits" in choice.reason


def test_choose_says_what_it_does_not_know_of_several_readers() -> None:
    choice = choose(corpus_bytes=1000, capacity_bytes=250, readers=4)
    assert (choice.policy, choice.bound) == ("pin", bound(250, 1000, 1, readers=4))
    assert "not known" in choice.reason


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"corpus_bytes": -1, "capacity_bytes": 1}, "corpus_bytes"),
        ({"corpus_bytes": 1, "capacity_bytes": -1}, "capacity_bytes"),
        ({"corpus_bytes": 1, "capacity_bytes": 0.5}, "capacity_bytes"),
        ({"corpus_bytes": 1, "capacity_bytes": 1, "readers": 0}, "readers"),
    ],
)
def test_choose_refuses_arguments_out_of_range(arguments: dict[str, int], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        choose(**arguments)


def test_bound_refuses_an_epoch_below_0() -> None:
    with pytest.raises(ValueError, match="epoch must be at least 0"):
        bound(1, 1, -1)
