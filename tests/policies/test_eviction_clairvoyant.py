"""Those that know the future: Belady by size, and several readers' futures merged."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.eviction import Eviction
from policies.eviction.belady import Belady
from policies.eviction.belady_size import BeladySize
from policies.eviction.merged import Merged, Reader
from policies.eviction.parts import Parts

PROFILE = settings(max_examples=150, deadline=None, derandomize=True)
SIZES = [0, 1, 3, 5, 7, 11, 13, 40]
ITEMS = st.integers(0, len(SIZES) - 1)
CAPACITIES = st.integers(0, 45)


def use(cache: Eviction[int], item: int, nbytes: int) -> bool:
    hit = cache.hit(item)
    if not hit:
        cache.admit(item, nbytes)
    return hit


@PROFILE
@given(requests=st.lists(ITEMS, max_size=60), room=st.integers(0, 6), must_admit=st.booleans())
def test_belady_size_with_one_size_is_belady(requests: list[int], room: int, must_admit: bool) -> None:
    bytewise = BeladySize(room * 7, requests, must_admit=must_admit)
    plain = Belady(room * 7, requests, must_admit=must_admit)
    for item in requests:
        assert use(bytewise, item, 7) == use(plain, item, 7)
        assert list(bytewise) == list(plain)


@PROFILE
@given(requests=st.lists(ITEMS, max_size=60), capacity=CAPACITIES, must_admit=st.booleans())
def test_belady_size_evicts_the_costliest_of_all_where_classes_hold_one_size(
    requests: list[int], capacity: int, must_admit: bool
) -> None:
    """Against a search of all items; each of SIZES is a class of its own."""
    cache = BeladySize(capacity, requests, must_admit=must_admit)
    held = set[int]()
    for now, item in enumerate(requests):

        def cost(one: int, now: int = now) -> float:
            later = requests[now + 1 :]
            return SIZES[one] * (later.index(one) + 1 if one in later else 1e9)

        hit = cache.hit(item)
        assert hit == (item in held)
        if not hit:
            victims, nbytes = cache.admit(item, SIZES[item]), SIZES[item]
            expected = list[int]()
            for one in sorted(held, key=cost, reverse=True):
                if sum(SIZES[left] for left in held - set(expected)) + nbytes > capacity:
                    expected.append(one)
            wanted = must_admit or (
                item in requests[now + 1 :] and all(cost(v) >= cost(item) for v in expected)
            )
            if wanted and nbytes <= capacity:
                assert victims is not None
                assert sorted(map(cost, victims)) == sorted(map(cost, expected))
                held = held - set(victims) | {item}
            else:
                assert victims is None
        assert set(cache) == held
        assert cache.used_bytes == sum(SIZES[one] for one in held) <= capacity
        costs = [cost(one) for one in cache]
        assert costs == sorted(costs, reverse=True)


def test_belady_size_keeps_many_small_items_where_belady_keeps_the_large_one() -> None:
    requests, sizes = [9, 1, 2, 3] * 5, [6, 2, 2, 2] * 5
    assert Belady(6, requests).run(requests, sizes) == (1 + 3 * 5, 6 + 6 * 5)
    assert BeladySize(6, requests).run(requests, sizes) == (3 + 5, 6 + 6 * 5)


FUTURES = st.lists(
    st.tuples(st.lists(ITEMS, max_size=30), st.sampled_from([0.5, 1.0, 3.0])), min_size=1, max_size=4
)
TURNS = st.lists(st.integers(0, 3), max_size=90)


class Shared:
    """A merged cache beside what all its readers hold and hit; `turn` checks what always holds."""

    def __init__(self, capacity: int, futures: list[tuple[list[int], float]], shares: list[float]) -> None:
        self.cache = Merged[int](capacity)
        self.left = [list(future) for future, _ in futures]
        self.readers: list[Reader[int]] = [
            self.cache.join(future, requests_per_second=speed, share=share)
            for (future, speed), share in zip(futures, shares, strict=False)
        ]
        self.gone = set[Reader[int]]()
        self.held, self.hit_bytes = set[int](), 0

    def turn(self, number: int) -> None:
        number %= len(self.readers)
        reader, left = self.readers[number], self.left[number]
        if not left:
            self.leave(number)
            return
        item = left.pop(0)
        if reader.hit(item):
            assert item in self.held
            self.hit_bytes += SIZES[item]
        elif (victims := reader.admit(item, SIZES[item])) is not None:
            assert self.held.issuperset(victims)
            assert len(set(victims)) == len(victims)
            self.held = self.held - set(victims) | {item}
        self.check()

    def leave(self, number: int) -> None:
        self.readers[number].leave()
        self.gone.add(self.readers[number])

    def check(self) -> None:
        assert set(self.cache) == self.held
        assert len(self.cache) == len(self.held)
        assert self.cache.used_bytes == sum(SIZES[one] for one in self.held) <= self.cache.capacity_bytes
        saved = sum(reader.saved_bytes for reader in self.readers)
        assert math.isclose(saved, self.hit_bytes, abs_tol=1e-6)
        for reader, held in zip(self.readers, self.fair_parts(), strict=True):
            assert math.isclose(reader.held_bytes, held, abs_tol=1e-6)

    def fair_parts(self) -> list[float]:
        """Bytes charged to each reader, from what is left of the futures."""
        parts = [0.0] * len(self.readers)
        for item in self.held:
            wanting = [
                number
                for number, reader in enumerate(self.readers)
                if reader not in self.gone and item in self.left[number]
            ]
            for number in wanting:
                parts[number] += SIZES[item] / len(wanting)
        return parts


@PROFILE
@given(
    capacity=CAPACITIES,
    futures=FUTURES,
    turns=TURNS,
    shares=st.sampled_from([[0] * 4, [0.25] * 4, [0.5, 0.1, 0, 0.4]]),
)
def test_merged_keeps_its_capacity_and_its_accounts(
    capacity: int, futures: list[tuple[list[int], float]], turns: list[int], shares: list[float]
) -> None:
    """Capacity, consistent victims, credits that add up to the bytes of all hits, room charged fairly."""
    shared = Shared(capacity, futures, shares)
    for number in turns:
        shared.turn(number)
    shared.leave(0)
    shared.check()
    victims = shared.cache.resize(capacity // 2)
    shared.held -= set(victims)
    shared.check()


@pytest.mark.parametrize("share", [0, 0.3, 1])
@PROFILE
@given(requests=st.lists(ITEMS, max_size=60), capacity=CAPACITIES)
def test_merged_with_one_reader_is_belady(share: float, requests: list[int], capacity: int) -> None:
    reader, alone = Merged[int](capacity).join(requests, share=share), Belady(capacity, requests)
    for item in requests:
        assert use(reader, item, SIZES[item]) == use(alone, item, SIZES[item])


@PROFILE
@given(capacity=CAPACITIES, futures=FUTURES, turns=TURNS)
def test_merged_without_shares_evicts_what_is_used_last_by_anyone(
    capacity: int, futures: list[tuple[list[int], float]], turns: list[int]
) -> None:
    """Whatever the readers' speeds, and however far one runs ahead: against a search of all items."""
    shared = Shared(capacity, futures, [0] * 4)
    for number in turns:
        number %= len(shared.readers)
        if not shared.left[number]:
            continue
        before, item = set(shared.held), shared.left[number][0]
        shared.turn(number)

        def wait(one: int) -> float:
            return min(
                (
                    (left.index(one) + 1) / speed
                    for left, (_, speed) in zip(shared.left, futures, strict=True)
                    if one in left
                ),
                default=math.inf,
            )

        victims = before - shared.held
        assert all(wait(victim) >= wait(kept) for victim in victims for kept in before - victims)
        if item not in shared.held:
            room = sum(SIZES[one] for one in before if wait(one) <= wait(item)) + SIZES[item]
            assert wait(item) == math.inf or room > capacity


PRIVATE = st.lists(st.integers(0, 9), max_size=60)


@PROFILE
@given(
    futures=st.lists(PRIVATE, min_size=2, max_size=4),
    turns=st.lists(st.integers(0, 3), max_size=120),
    room=st.integers(4, 16),
    shares=st.sampled_from([[0.25] * 4, [0.5, 0, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1]]),
)
def test_merged_reader_within_its_share_gets_room_and_loses_none(
    futures: list[list[int]], turns: list[int], room: int, shares: list[float]
) -> None:
    """Readers of items of their own: who is within its share after an admission is never refused, and what
    it holds is taken by no other; who is above it gives way; room that nobody claims is lent."""
    cache = Merged[tuple[int, int]](room)
    left = [[(number, item) for item in future] for number, future in enumerate(futures)]
    readers = [cache.join(list(future), share=share) for future, share in zip(left, shares, strict=False)]
    for number in turns:
        number %= len(readers)
        if not left[number]:
            continue
        item = left[number].pop(0)
        reader, before = readers[number], [one.held_bytes for one in readers]
        if reader.hit(item):
            continue
        free, held = room - cache.used_bytes, readers[number].held_bytes
        victims = reader.admit(item, 1)
        wanted = item in left[number]
        if wanted and (free >= 1 or held + 1 <= shares[number] * room):
            assert victims is not None
        for owner, one in victims or ():
            useless = (owner, one) not in left[owner]
            assert useless or owner == number or before[owner] > shares[owner] * room


def test_merged_lends_a_share_and_takes_it_back() -> None:
    cache = Merged[str](4)
    greedy = cache.join([*"abcd"] * 9, share=0.5)
    assert greedy.run([*"abcd"], [1] * 4) == (4, 4)
    assert greedy.held_bytes == 4
    modest = cache.join([*"xyz"] * 9, share=0.5, requests_per_second=0.01)
    assert [(modest.hit(item), modest.admit(item, 1)) for item in "xy"] == [(False, ["d"]), (False, ["c"])]
    assert (modest.hit("z"), modest.admit("z", 1)) == (False, None)  # its share is full, and sooner used
    assert (greedy.held_bytes, modest.held_bytes) == (2, 2)
    modest.leave()
    assert [use(greedy, item, 1) for item in "abcd"] == [True, True, False, False]
    assert sorted(cache) == [*"abcd"]


def test_merged_divides_a_fetch_among_all_it_served() -> None:
    """Three readers of one item: one fetch instead of three saves two thirds of it to each."""
    cache = Merged[str](10)
    readers = [cache.join(["a", "a"]) for _ in range(3)]
    assert not readers[0].hit("a")
    readers[0].admit("a", 9)
    assert [reader.saved_bytes for reader in readers] == [0, 0, 0]
    assert readers[1].hit("a")
    assert [reader.saved_bytes for reader in readers] == [4.5, 4.5, 0]
    assert readers[2].hit("a")
    assert [reader.saved_bytes for reader in readers] == [6, 6, 6]
    assert readers[1].hit("a")
    assert [reader.saved_bytes for reader in readers] == [6, 15, 6]


@pytest.mark.parametrize(("part", "expected"), [(0.1, 0.36), (0.25, 0.556), (0.5, 0.757), (0.75, 0.887)])
def test_merged_of_four_jobs_with_own_seeds_hits_as_often_as_one_that_knows_their_turns(
    part: float, expected: float
) -> None:
    """Each permutes the items anew in every epoch; keeping what came first would hit `part` of the time."""
    items, epochs, random = 200, 5, np.random.default_rng(7)
    futures = [np.concatenate([random.permutation(items) for _ in range(epochs)]).tolist() for _ in range(4)]
    turns = [item for step in zip(*futures, strict=True) for item in step]
    cache, alone = Merged[int](int(items * part)), Belady(int(items * part), turns)
    readers = [cache.join(future) for future in futures]
    hits = [use(readers[turn % 4], item, 1) for turn, item in enumerate(turns)]
    assert sum(hits) == pytest.approx(sum(use(alone, item, 1) for item in turns), rel=0.01)
    settled = hits[4 * items :]
    assert sum(settled) / len(settled) == pytest.approx(expected, abs=0.02)


def test_merged_refuses_shares_that_exceed_the_whole_and_speeds_that_are_none() -> None:
    cache = Merged[int](10)
    for _ in range(5):
        cache.join([1], share=0.2)
    with pytest.raises(ValueError, match=r"share must be in \[0, .*\], what other readers left, not 0.1"):
        cache.join([1], share=0.1)
    with pytest.raises(ValueError, match="requests_per_second must be above 0 and finite, not 0"):
        cache.join([1], requests_per_second=0)
    with pytest.raises(ValueError, match=r"share must be in .* not -0\.1"):
        Merged[int](1).join([1], share=-0.1)


def test_merged_reader_follows_its_own_future_alone() -> None:
    cache = Merged[int](10)
    one, other = cache.join([1, 2, 1]), cache.join([2, 1])
    assert not one.hit(1)
    assert one.admit(2, 3) is None  # not what it asked for
    assert other.admit(2, 3) is None  # it asked for nothing yet
    assert one.admit(1, 3) == []
    with pytest.raises(ValueError, match="item 1 is resident already"):
        one.admit(1, 3)
    with pytest.raises(ValueError, match="request 0 is for 1, and 2 was foretold"):
        other.hit(1)
    assert (other.hit(2), other.hit(1), one.used_bytes) == (False, True, 3)
    assert (one.remove(1), one.remove(1), len(other)) == (True, False, 0)


def test_merged_reader_that_slows_down_makes_what_it_alone_wants_the_next_victim() -> None:
    cache = Merged[str](2)
    one, other = cache.join([*"aba"]), cache.join([*"xyyyx"])
    assert one.run(["a"], [1]) == other.run(["x"], [1]) == (1, 1)
    one.pace(0.01)
    assert (other.hit("y"), other.admit("y", 1)) == (False, ["a"])


def test_merged_reader_that_runs_ahead_protects_what_it_needs_soon() -> None:
    cache = Merged[str](2)
    one, other = cache.join([*"abnnba"]), cache.join([*"vwxyza"])
    assert one.run([*"ab"], [1, 1]) == (2, 2)
    assert other.run([*"vwxyz"], [1] * 5) == (5, 5)
    assert (one.hit("n"), one.admit("n", 1)) == (False, ["b"])  # it needs a last, and the other needs it next


def test_merged_reader_at_its_share_displaces_only_its_own() -> None:
    cache = Merged[str](2)
    one = cache.join([*"abab"], share=0.5)
    other = cache.join(["z", "z"], share=0.5, requests_per_second=0.01)
    assert one.run(["a"], [1]) == other.run(["z"], [1]) == (1, 1)
    assert (one.hit("b"), one.admit("b", 1)) == (False, None)
    assert sorted(cache) == ["a", "z"]


def test_parts_are_added_without_rounding() -> None:
    parts = Parts()
    for _ in range(3):
        parts.add(1, 3)
    assert parts.total_bytes == 1
    parts.add(-3, 3)
    assert parts.total_bytes == 0
