"""What prefetching is held against: the rules, watched from outside, and the least stall there is."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import numpy as np
from scipy.optimize import linprog

from policies.prefetch import Fetch, Integrated, Prefetcher

NEVER = 1 << 62


class Watcher:
    """Drives a prefetcher with fetches that end in any order, some badly, and knows what is where.

    exact: victims leave only where a fetch names them, never at a request.
    """

    exact = False
    shrinks = False  # whether the capacity changes on the way

    def __init__(self, prefetcher: Prefetcher[int], future: list[int], sizes: list[int], seed: int) -> None:
        self.prefetcher, self.future, self.sizes, self.dice = prefetcher, future, sizes, Random(seed)
        self.cursor = 0
        self.held: dict[int, int] = {}
        self.flying: dict[int, Fetch[int]] = {}
        self.past: set[int] = set()
        self.reading: int | None = None
        self.failures = self.fetches = 0
        self.fetched_bytes = self.wasted_bytes = 0
        self.fresh: set[int] = set()

    def run(self) -> None:
        now = 0.0
        while self.cursor < len(self.future):
            now += self.dice.random()
            item = self.future[self.cursor]
            if self.shrinks and self.dice.random() < 0.1:
                self.resize(self.dice.randrange(14))
            here = item in self.held or item in self.past
            if self.dice.random() < 0.6:
                self.reading = None
                waiting = not self.prefetcher.use(item, now)
                assert waiting is not here or (waiting and not self.exact)
                if not waiting:
                    self.reading = item if item in self.held else None
                    self.past.discard(item)
                    self.fresh.discard(item)
                    self.cursor += 1
                self.begin(now, waiting=waiting)
            if self.flying and self.dice.random() < 0.6:
                self.end(self.dice.choice(list(self.flying)), now)

    def begin(self, now: float, *, waiting: bool) -> None:
        fetches = self.prefetcher.start(now)
        for fetch in fetches:
            self.check(fetch)
            self.evict(fetch.victims)
            self.flying[fetch.item] = fetch
            self.fetches += 1
            self.fetched_bytes += fetch.nbytes
        used_bytes = self.prefetcher.stats.used_bytes
        exact = self.exact or any(fetch.kept for fetch in fetches)
        assert self.used() == used_bytes if exact else self.used() >= used_bytes
        self.stopped(waiting=waiting)

    def end(self, item: int, now: float) -> None:
        fetch = self.flying.pop(item)
        if self.dice.random() < 0.1:
            self.failures += 1
            self.fetches -= 1
            self.fetched_bytes -= fetch.nbytes
            self.prefetcher.failed(item, now)
            return
        self.prefetcher.arrived(item, now)
        if fetch.kept:
            self.held[item] = fetch.nbytes
            self.fresh.add(item)
        else:
            self.past.add(item)

    def resize(self, capacity: int) -> None:
        self.evict(self.prefetcher.resize(capacity))
        assert self.used() == self.prefetcher.stats.used_bytes
        idle = sum(nbytes for item, nbytes in self.held.items() if item != self.reading)
        assert self.used() <= capacity or not idle

    def evict(self, victims: list[int]) -> None:
        for victim in victims:
            assert victim != self.reading
            if victim in self.fresh:
                self.wasted_bytes += self.held[victim]
            del self.held[victim]

    def used(self) -> int:
        return sum(self.held.values()) + sum(fetch.nbytes for fetch in self.flying.values() if fetch.kept)

    def next_use(self, item: int) -> int:
        return next((at for at in range(self.cursor, len(self.future)) if self.future[at] == item), NEVER)

    def check(self, fetch: Fetch[int]) -> None:
        """A hook for what a fetch must be."""

    def stopped(self, *, waiting: bool) -> None:
        """A hook for why no more was fetched."""


class RuleWatcher(Watcher):
    """The four rules of Cao, Felten, Karlin and Li, by brute force."""

    exact = True

    def __init__(
        self,
        future: list[int],
        sizes: list[int],
        capacity: int,
        slots: int,
        ahead: int,
        spare: int,
        seed: int,
    ) -> None:
        integrated = Integrated(future, sizes, capacity, slots=slots, lookahead=ahead, demand_slots=spare)
        super().__init__(integrated, future, sizes, seed)
        self.capacity, self.slots, self.ahead, self.spare = capacity, slots, ahead, spare

    def resize(self, capacity: int) -> None:
        self.capacity = capacity
        super().resize(capacity)

    def missing(self) -> int | None:
        """The first request within the lookahead whose item must be fetched and could be kept."""
        before = 0
        for at in range(self.cursor, len(self.future)):
            item = self.future[at]
            if before >= self.ahead:
                return None
            if item not in self.held and item not in self.flying and self.sizes[at] <= self.capacity:
                return at
            before += self.sizes[at]
        return None

    def evictable(self) -> list[int]:
        """What is held and not being read, the farthest next use first."""
        return sorted((item for item in self.held if item != self.reading), key=self.next_use, reverse=True)

    def check(self, fetch: Fetch[int]) -> None:
        assert len(self.flying) < self.slots
        at = self.cursor if fetch.demand else self.missing()
        assert at is not None
        assert self.future[at] == fetch.item  # optimal prefetching
        room = self.capacity - self.used()
        uses = [self.next_use(victim) for victim in fetch.victims]
        farthest = [self.next_use(item) for item in self.evictable()[: len(uses)]]
        assert sorted(uses, reverse=True) == farthest  # optimal replacement
        assert all(use > at for use in uses)  # do no harm
        if fetch.kept:
            freed = [self.held[victim] for victim in fetch.victims]
            assert room + sum(freed) >= fetch.nbytes
            assert not freed or room + sum(freed) - freed[-1] < fetch.nbytes
        else:
            assert fetch.demand
            assert not fetch.victims
            assert room + sum(self.held.values()) < fetch.nbytes

    def stopped(self, *, waiting: bool) -> None:
        """First opportunity: nothing that could have begun was put off."""
        free = self.slots - len(self.flying)
        wanted = self.future[self.cursor] if waiting else None
        if wanted is not None and wanted not in self.held and wanted not in self.past:
            assert free <= 0 or wanted in self.flying
        at = self.missing()
        if free <= self.spare or at is None:
            return
        harmless = sum(self.held[item] for item in self.evictable() if self.next_use(item) > at)
        assert self.capacity - self.used() + harmless < self.sizes[at]


def least_stall(future: list[int], cells: int, fetch_units: int, slots: int = 1) -> int:
    """The least stall of any schedule, by trying them all, a unit of time after the other.

    A request takes one unit, items are of one size, the cache begins empty.
    """
    start = (0, frozenset[int](), frozenset[tuple[int, int]]())
    states = {start}
    units = 0
    while all(cursor < len(future) for cursor, _, _ in states):
        after = set()
        for cursor, held, flying in states:
            serves = future[cursor] in held
            for now_held, now_flying in choices(future[cursor:], held, flying, cells, fetch_units, slots):
                if serves and future[cursor] not in now_held:
                    continue
                landed = {item for item, left in now_flying if left == 1}
                after.add(
                    (
                        cursor + serves,
                        now_held | landed,
                        frozenset((item, left - 1) for item, left in now_flying if left > 1),
                    )
                )
        states = after
        units += 1
    return units - len(future)


def choices(
    left: list[int],
    held: frozenset[int],
    flying: frozenset[tuple[int, int]],
    cells: int,
    fetch_units: int,
    slots: int,
) -> list[tuple[frozenset[int], frozenset[tuple[int, int]]]]:
    """Every set of fetches that may begin now, with every set of victims."""
    found = [(held, flying)]
    if len(flying) == slots:
        return found
    for item in set(left) - held - {item for item, _ in flying}:
        begun = flying | {(item, fetch_units)}
        rooms = [held] if len(held) + len(flying) < cells else [held - {victim} for victim in held]
        for room in rooms:
            found += choices(left, room, begun, cells, fetch_units, slots)
    return found


def least_stall_by_lp(future: list[int], cells: int, fetch_units: int) -> float:
    """The same for one slot, as the optimum of a linear program.

    Source: S. Albers, N. Garg, S. Leonardi, "Minimizing stall time in single and parallel disk systems",
    J. ACM 47(6), 2000: a fetch in (i, j) begins after request i and ends before request j, and stalls for
    what the requests between do not hide; whole numbers give the same optimum.
    """
    count = len(future)
    spans = [(i, j) for i in range(count) for j in range(i + 1, min(count, i + 1 + fetch_units) + 1)]
    items = sorted(set(future))
    blocks = len(items) + 1  # the last one stands for what fills the cache at first
    width = len(spans)
    columns = width * (1 + 2 * blocks)

    def fetch(span: int, block: int) -> int:
        return width * (1 + block) + span

    def evict(span: int, block: int) -> int:
        return width * (1 + blocks + block) + span

    equal: list[tuple[list[tuple[int, int]], int]] = []
    at_most: list[tuple[list[tuple[int, int]], int]] = []
    allowed = np.zeros(columns, dtype=bool)
    allowed[:width] = True
    for span in range(width):
        equal.append(([(span, -1)] + [(fetch(span, block), 1) for block in range(blocks)], 0))
        equal.append(([(span, -1)] + [(evict(span, block), 1) for block in range(blocks)], 0))
    at_most += [
        ([(s, 1) for s, (i, j) in enumerate(spans) if i < request < j], 1) for request in range(1, count + 1)
    ]
    for block, item in enumerate(items):
        uses = [0, *(at + 1 for at, used in enumerate(future) if used == item), count + 1]
        for number, (begin, end) in enumerate(pairwise(uses)):
            inside = [s for s, (i, j) in enumerate(spans) if begin <= i and j <= end]
            fetches = [(fetch(s, block), 1) for s in inside]
            evicts = [(evict(s, block), 1) for s in inside]
            if number == 0:
                equal.append((fetches, 1))
                allowed[[column for column, _ in fetches]] = True
            elif end <= count:
                equal.append((fetches + [(column, -1) for column, _ in evicts], 0))
                at_most.append((fetches, 1))
                allowed[[column for column, _ in fetches + evicts]] = True
            else:
                at_most.append((evicts, 1))
                allowed[[column for column, _ in evicts]] = True
    filling = [(evict(s, blocks - 1), 1) for s in range(width)]
    at_most.append((filling, cells))
    allowed[[column for column, _ in filling]] = True
    cost = np.zeros(columns)
    cost[:width] = [fetch_units - (j - i - 1) for i, j in spans]
    result = linprog(
        cost,
        *matrix(at_most, columns),
        *matrix(equal, columns),
        bounds=[(0, None if free else 0) for free in allowed],
    )
    assert result.success, result.message
    return float(result.fun)


def matrix(rows: list[tuple[list[tuple[int, int]], int]], columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and right sides."""
    coefficients = np.zeros((len(rows), columns))
    for row, (terms, _) in enumerate(rows):
        for column, value in terms:
            coefficients[row, column] += value
    return coefficients, np.array([right for _, right in rows])
