import pickle
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.eviction import NAMES, Eviction, make
from tests.policies.eviction_model import Model

PROFILE = settings(max_examples=200, deadline=None, derandomize=True)
SIZES = [0, 3, 5, 7, 11, 13, 40]  # bytes of each item; the last is larger than most capacities


ITEMS = st.integers(0, len(SIZES) - 1)
STEPS = st.one_of(
    st.tuples(st.just("use"), ITEMS),
    st.tuples(st.just("remove"), ITEMS),
    st.tuples(st.just("resize"), st.integers(0, 45)),
)


@pytest.mark.parametrize("name", NAMES)
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
        assert list(cache) == model.order
        assert len(cache) == len(model.order)
        assert [item in cache for item in range(len(SIZES))] == [
            item in model.order for item in range(len(SIZES))
        ]
        assert cache.used_bytes == model.used <= cache.capacity_bytes == model.capacity


@pytest.mark.parametrize("name", NAMES)
def test_eviction_refuses_an_item_larger_than_the_capacity_and_evicts_nothing(name: str) -> None:
    cache: Eviction[str] = make(name, 10)
    cache.admit("a", 6)
    cache.admit("b", 4)
    assert cache.admit("c", 11) is None
    assert sorted(cache) == ["a", "b"]


@pytest.mark.parametrize("name", NAMES)
def test_eviction_admits_an_item_as_large_as_the_capacity(name: str) -> None:
    cache: Eviction[str] = make(name, 10)
    assert cache.admit("a", 10) == []
    assert cache.used_bytes == 10


@pytest.mark.parametrize("name", NAMES)
def test_eviction_refuses_a_resident_item_and_a_size_below_0(name: str) -> None:
    cache: Eviction[str] = make(name, 10)
    cache.admit("a", 3)
    with pytest.raises(ValueError, match="item 'a' is resident already"):
        cache.admit("a", 3)
    with pytest.raises(ValueError, match="nbytes must be at least 0, not -1"):
        cache.admit("b", -1)
    assert (list(cache), cache.used_bytes) == (["a"], 3)


@pytest.mark.parametrize("name", NAMES)
def test_eviction_refuses_a_capacity_below_0_and_keeps_the_old_one(name: str) -> None:
    with pytest.raises(ValueError, match="capacity_bytes must be at least 0, not -1"):
        make(name, -1)
    cache: Eviction[str] = make(name, 10)
    with pytest.raises(ValueError, match="capacity_bytes must be at least 0, not -1"):
        cache.resize(-1)
    assert cache.capacity_bytes == 10


@pytest.mark.parametrize("name", NAMES)
def test_eviction_survives_pickling(name: str) -> None:
    cache: Eviction[str] = make(name, 10)
    for item in "abc":
        cache.admit(item, 3)
    again: Eviction[str] = pickle.loads(pickle.dumps(cache))
    assert (again.name, list(again), again.used_bytes) == (name, list(cache), 9)


def test_make_names_the_policies_it_knows() -> None:
    assert [make(name, 1).name for name in NAMES] == ["fifo", "lru", "pin"]
    with pytest.raises(ValueError, match="policy must be one of fifo, lru, pin, not 'mru'"):
        make("mru", 1)


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
