"""Expiring and pinning: what they promise holds around every algorithm, and around each other."""

import math
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.eviction import ONLINE, Eviction, Expiring, Pinning, make
from policies.eviction.belady import Belady

PROFILE = settings(max_examples=40, deadline=None, derandomize=True)
SIZES = [0, 3, 5, 7, 11, 13, 40]  # bytes of each item; the last is larger than most capacities
ITEMS = st.integers(0, len(SIZES) - 1)
TTL = 5
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("use"), ITEMS),
        st.tuples(st.just("use"), ITEMS),
        st.tuples(st.just("remove"), ITEMS),
        st.tuples(st.just("resize"), st.integers(0, 45)),
        st.tuples(st.just("advance"), st.integers(0, TTL)),
        st.tuples(st.just("pin"), ITEMS),
        st.tuples(st.just("unpin"), ITEMS),
    ),
    max_size=60,
)


class Caller:
    """Holds what it is told to and deletes the victims it is told; checks every promise at every step."""

    def __init__(self, name: str, capacity: int, *, pinning_outside: bool) -> None:
        inside: Eviction[int] = make(name, capacity)
        if pinning_outside:
            self.expiring = Expiring(inside, TTL, now_seconds=100)
            self.cache = self.pinning = Pinning(self.expiring)
        else:
            self.pinning = Pinning(inside)
            self.cache = self.expiring = Expiring(self.pinning, TTL, now_seconds=100)
        self.pinning_outside = pinning_outside
        self.now, self.capacity = 100, capacity
        self.held, self.pins = set[int](), set[int]()
        self.admitted = dict[int, int]()

    def drop(self, victims: list[int], *, but: set[int]) -> None:
        assert len(victims) == len(set(victims))
        assert self.held.issuperset(victims)
        assert not but.intersection(victims)
        self.held -= set(victims)

    def use(self, item: int) -> None:
        if self.cache.hit(item):
            assert item in self.held
            if not (self.pinning_outside and item in self.pins):
                assert self.now - self.admitted[item] < TTL
            return
        assert item not in self.cache
        pinned_bytes = sum(SIZES[one] for one in self.pins & set(self.cache))
        victims = self.cache.admit(item, SIZES[item])
        if pinned_bytes + SIZES[item] > self.capacity:
            assert victims is None
        elif item in self.pins:
            assert victims is not None
        if victims is not None:
            self.drop(victims, but={*(self.pins & set(self.cache)), item})
            self.held.add(item)
            self.admitted[item] = self.now

    def remove(self, item: int) -> None:
        if self.cache.remove(item):
            self.held.remove(item)

    def resize(self, capacity: int) -> None:
        if capacity < self.pinning.pinned_bytes:
            with pytest.raises(ValueError, match=r"capacity_bytes must be at least \d+, the bytes that are"):
                self.cache.resize(capacity)
            return
        self.capacity = capacity
        self.drop(self.cache.resize(capacity), but=self.pins & set(self.cache))

    def advance(self, seconds: int) -> None:
        self.now += seconds
        expired = self.expiring.advance(self.now)
        assert all(self.now - self.admitted[item] >= TTL for item in expired)
        self.drop(expired, but=self.pins if self.pinning_outside else set())

    def pin(self, item: int) -> None:
        resident = item in self.cache
        self.pinning.pin(item)
        self.pins.add(item)
        assert (item in self.cache) == resident

    def unpin(self, item: int) -> None:
        if item in self.pins and self.pinning_outside:  # it comes back into the expiring policy
            self.admitted[item] = self.now
        self.pins.discard(item)
        victims = self.pinning.unpin(item)
        self.drop(victims, but=self.pins & set(self.cache))

    def check(self) -> None:
        assert self.held.issuperset(self.cache)
        assert len(list(self.cache)) == len(set(self.cache)) == len(self.cache)
        assert self.cache.used_bytes == sum(SIZES[item] for item in self.cache) <= self.capacity
        assert self.pinning.pinned_bytes == sum(SIZES[item] for item in self.pins & set(self.cache))
        assert self.cache.capacity_bytes == self.capacity


@pytest.mark.parametrize("pinning_outside", [True, False])
@pytest.mark.parametrize("name", ONLINE)
@PROFILE
@given(capacity=st.integers(0, 45), steps=STEPS)
def test_wrappers_keep_their_promises_around_every_algorithm(
    name: str, pinning_outside: bool, capacity: int, steps: list[tuple[str, int]]
) -> None:
    caller = Caller(name, capacity, pinning_outside=pinning_outside)
    for step, number in steps:
        getattr(caller, step)(number)
        caller.check()


def test_expiring_lets_an_item_go_when_its_time_is_up_and_uses_do_not_prolong_it() -> None:
    cache = Expiring(make("lru", 10), ttl_seconds=60, now_seconds=1000)
    cache.admit("a", 3)
    assert cache.advance(1030) == []
    cache.admit("b", 3)
    assert cache.hit("a")
    assert cache.advance(1059.5) == []
    assert cache.advance(1060) == ["a"]
    assert not cache.hit("a")
    assert (cache.used_bytes, cache.advance(1090)) == (3, ["b"])


def test_expiring_counts_an_item_that_came_back_from_its_last_admission() -> None:
    cache = Expiring(make("fifo", 2), ttl_seconds=10)
    for now, item in enumerate("abca"):
        assert cache.advance(now) == []
        cache.admit(item, 1)
    assert [cache.advance(now) for now in (11, 12, 13)] == [[], ["c"], ["a"]]


def test_expiring_counts_what_a_policy_holds_from_the_moment_it_is_wrapped() -> None:
    inside: Eviction[str] = make("lru", 10)
    inside.admit("a", 3)
    cache = Expiring(inside, ttl_seconds=60, now_seconds=1000)
    assert (cache.advance(1059), cache.advance(1060)) == ([], ["a"])


@pytest.mark.parametrize("ttl", [0, -1, math.nan])
def test_expiring_refuses_a_ttl_that_is_not_above_0(ttl: float) -> None:
    with pytest.raises(ValueError, match="ttl_seconds must be above 0, not"):
        Expiring(make("lru", 1), ttl)


@pytest.mark.parametrize("now", [99, math.nan])
def test_expiring_refuses_time_that_goes_back(now: float) -> None:
    cache = Expiring(make("lru", 1), 5, now_seconds=100)
    with pytest.raises(ValueError, match="now_seconds must be at least 100, the last time, not"):
        cache.advance(now)


def test_pinning_keeps_an_item_that_would_be_the_next_victim_until_it_is_unpinned() -> None:
    cache = Pinning(make("lru", 3))
    for item in "abc":
        cache.admit(item, 1)
    cache.pin("a")
    assert cache.admit("d", 1) == ["b"]
    assert cache.admit("e", 1) == ["c"]
    assert cache.unpin("a") == []
    assert cache.admit("f", 1) == ["d"]  # an unpinned item is as new as one just admitted
    assert sorted(cache) == ["a", "e", "f"]


def test_pinning_refuses_when_only_pinned_bytes_remain() -> None:
    cache = Pinning(make("lru", 2))
    for item in "ab":
        cache.pin(item)
        assert cache.admit(item, 1) == []
    assert cache.admit("c", 1) is None
    cache.pin("d")
    assert cache.admit("d", 1) is None
    assert cache.remove("a")
    assert cache.admit("d", 1) == []


def test_pinning_names_an_item_as_victim_that_the_policy_does_not_take_back() -> None:
    future = ["a", "b", "a", "b"]
    cache = Pinning(Belady(2, future))
    cache.hit("a")
    cache.admit("a", 1)
    cache.pin("a")
    assert [cache.hit(item) for item in future[1:]] == [False, True, False]
    assert cache.unpin("a") == ["a"]
    assert len(cache) == 0


def test_wrappers_survive_pickling() -> None:
    cache = Pinning(Expiring(make("sieve", 10), 5))
    cache.pin("a")
    for item in "abc":
        cache.admit(item, 3)
    again = pickle.loads(pickle.dumps(cache))
    assert (list(again), again.pinned_bytes, again.used_bytes) == (list(cache), 3, 9)
