import pickle
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.eviction import NAMES, ONLINE, Eviction, make
from policies.eviction.belady import Belady
from tests.policies.eviction_model import MODELLED, Model

PROFILE = settings(max_examples=200, deadline=None, derandomize=True)
SIZES = [0, 3, 5, 7, 11, 13, 40]  # bytes of each item; the last is larger than most capacities


ITEMS = st.integers(0, len(SIZES) - 1)
STEPS = st.one_of(
    st.tuples(st.just("use"), ITEMS),
    st.tuples(st.just("remove"), ITEMS),
    st.tuples(st.just("resize"), st.integers(0, 45)),
)


@pytest.mark.parametrize("name", MODELLED)
@PROFILE
@given(capacity=st.integers(0, 45), steps=st.lists(STEPS, max_size=60))
def test_eviction_equals_its_model_at_every_step(
    name: str, capacity: int, steps: list[tuple[str, int]]
) -> None:
    cache: Eviction[int] = make(name, capacity)
    model = Model(name, capacity)
    for step, number in steps:
        if step == "use":
            assert cache.hit(number) == model.hit(number)
            if number not in cache:
                assert cache.admit(number, SIZES[number]) == model.admit(number, SIZES[number])
        elif step == "remove":
            assert cache.remove(number) == model.remove(number)
        else:
            model.capacity = number
            assert cache.resize(number) == model.shrink(number)
        if name in ("fifo", "lru", "pin"):
            assert list(cache) == model.order
        assert len(cache) == len(model.order)
        assert [item in cache for item in range(len(SIZES))] == [
            item in model.order for item in range(len(SIZES))
        ]
        assert cache.used_bytes == model.used <= cache.capacity_bytes == model.capacity


@pytest.mark.parametrize("name", ONLINE)
@PROFILE
@given(capacity=st.integers(0, 45), steps=st.lists(STEPS, max_size=60))
def test_eviction_loses_nothing_and_keeps_its_capacity(
    name: str, capacity: int, steps: list[tuple[str, int]]
) -> None:
    """What a caller holds who deletes the victims it is told, and nothing else, always fits."""
    cache: Eviction[int] = make(name, capacity)
    held: set[int] = set()
    for step, number in steps:
        if step == "use":
            if cache.hit(number):
                assert number in held
            else:
                victims = cache.admit(number, SIZES[number])
                if victims is not None:
                    assert number not in victims
                    assert len(victims) == len(set(victims))
                    assert held.issuperset(victims)
                    held = held - set(victims) | {number}
                    assert number in cache
        elif step == "remove":
            if cache.remove(number):
                held.remove(number)
        else:
            capacity = number
            gone = cache.resize(number)
            assert held.issuperset(gone)
            held -= set(gone)
        assert held.issuperset(cache)
        assert len(list(cache)) == len(set(cache)) == len(cache)
        assert sum(SIZES[item] for item in held) <= capacity == cache.capacity_bytes
        assert cache.used_bytes == sum(SIZES[item] for item in cache)


@pytest.mark.parametrize("name", ONLINE)
def test_eviction_refuses_an_item_larger_than_the_capacity_and_evicts_nothing(name: str) -> None:
    cache: Eviction[str] = make(name, 10)
    cache.admit("a", 6)
    cache.admit("b", 4)
    assert cache.admit("c", 11) is None
    assert sorted(cache) == ["a", "b"]


@pytest.mark.parametrize("name", ONLINE)
def test_eviction_admits_an_item_as_large_as_the_capacity(name: str) -> None:
    cache: Eviction[str] = make(name, 10)
    assert cache.admit("a", 10) == []
    assert cache.used_bytes == 10


@pytest.mark.parametrize("name", ONLINE)
def test_eviction_refuses_a_resident_item_and_a_size_below_0(name: str) -> None:
    cache: Eviction[str] = make(name, 10)
    cache.admit("a", 3)
    with pytest.raises(ValueError, match="item 'a' is resident already"):
        cache.admit("a", 3)
    with pytest.raises(ValueError, match="nbytes must be at least 0, not -1"):
        cache.admit("b", -1)
    assert (list(cache), cache.used_bytes) == (["a"], 3)


@pytest.mark.parametrize("name", ONLINE)
def test_eviction_refuses_a_capacity_below_0_and_keeps_the_old_one(name: str) -> None:
    with pytest.raises(ValueError, match="capacity_bytes must be at least 0, not -1"):
        make(name, -1)
    cache: Eviction[str] = make(name, 10)
    with pytest.raises(ValueError, match="capacity_bytes must be at least 0, not -1"):
        cache.resize(-1)
    assert cache.capacity_bytes == 10


@pytest.mark.parametrize("name", ONLINE)
def test_eviction_survives_pickling(name: str) -> None:
    cache: Eviction[str] = make(name, 10)
    for item in "abc":
        cache.admit(item, 3)
    again: Eviction[str] = pickle.loads(pickle.dumps(cache))
    assert (again.name, list(again), again.used_bytes) == (name, list(cache), 9)


def test_make_names_the_policies_it_knows() -> None:
    assert [make(name, 1, ()).name for name in NAMES] == list(NAMES)
    with pytest.raises(
        ValueError, match=r"policy must be one of fifo, lru, clock, .*, belady, belady-size, not 'mru'"
    ):
        make("mru", 1)
    with pytest.raises(ValueError, match="policy 'belady' must know the future; use one of fifo, "):
        make("belady", 1)


def uses(name: str) -> Iterator[bool]:
    """Yield the hits of a loop over three items with room for two."""
    cache: Eviction[str] = make(name, 2)
    for item in "abc" * 3:
        hit = cache.hit(item)
        if not hit:
            cache.admit(item, 1)
        yield hit


def test_pin_hits_in_a_loop_where_lru_and_fifo_never_do() -> None:
    assert list(uses("pin")) == [False] * 3 + [True, True, False] * 2
    assert not any(uses("lru"))
    assert not any(uses("fifo"))


def fewest_misses(requests: list[int], room: int) -> int:
    """Of all ways to keep at most `room` items of one size, the best, by trying all."""
    states = {frozenset[int](): 0}
    for item in requests:
        after: dict[frozenset[int], int] = {}
        for held, misses in states.items():
            cost = misses + (item not in held)
            choices = [held]
            if item not in held:
                choices += [held | {item}] if len(held) < room else []
                choices += [held - {victim} | {item} for victim in held] if room else []
            for choice in choices:
                after[choice] = min(cost, after.get(choice, cost))
        states = after
    return min(states.values())


def misses(cache: Eviction[int], requests: list[int]) -> int:
    count = 0
    for item in requests:
        if not cache.hit(item):
            count += 1
            cache.admit(item, 1)
    return count


@PROFILE
@given(requests=st.lists(st.integers(0, 5), max_size=14), room=st.integers(0, 4))
def test_belady_misses_as_few_as_the_best_of_all_ways(requests: list[int], room: int) -> None:
    assert misses(Belady(room, requests), requests) == fewest_misses(requests, room)


@pytest.mark.parametrize("name", ONLINE)
@PROFILE
@given(requests=st.lists(st.integers(0, 9), max_size=80), room=st.integers(0, 8))
def test_nobody_misses_less_often_than_belady(name: str, requests: list[int], room: int) -> None:
    assert misses(Belady(room, requests), requests) <= misses(make(name, room), requests)


@PROFILE
@given(requests=st.lists(ITEMS, max_size=60), capacity=st.integers(0, 45), must_admit=st.booleans())
def test_belady_keeps_its_capacity(requests: list[int], capacity: int, must_admit: bool) -> None:
    cache = Belady(capacity, requests, must_admit=must_admit)
    held: set[int] = set()
    for item in requests:
        if not cache.hit(item) and (victims := cache.admit(item, SIZES[item])) is not None:
            held = held - set(victims) | {item}
        elif must_admit and SIZES[item] <= capacity:
            assert item in cache
        assert set(cache) == held
        assert sum(SIZES[one] for one in held) == cache.used_bytes <= capacity


def test_belady_refuses_a_request_that_was_not_foretold() -> None:
    cache = Belady(10, [1, 2])
    cache.hit(1)
    with pytest.raises(ValueError, match="request 1 is for 1, and 2 was foretold"):
        cache.hit(1)
    cache.hit(2)
    with pytest.raises(ValueError, match="request 2 is for 2, and nothing more was foretold"):
        cache.hit(2)
