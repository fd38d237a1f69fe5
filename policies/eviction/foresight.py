"""Foresight: readers who told what they will use share a cache, and each decision is made from that alone.

What `policies.eviction.merged` decides without shares, made anew from what is resident now and where each
reader is now: nothing is remembered from one decision to the next. So processes that share a cache need agree
on nothing but that, any of them may die at any time, and content may come and go by other hands. When a
reader uses an item next is estimated from its uses until then and its speed; the soonest of all readers
counts, and what is used last leaves first, if it is used after what it makes room for. What a reader is in
the middle of using is used now: it leaves for nothing.

Items are told by 64-bit numbers, such as the first 8 bytes of a digest. A decision costs O(resident items
x log uses) for each reader, in numpy; a `Future` once O(uses log uses).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from policies.eviction.foretold import NEVER

__all__ = ["LATER", "Course", "Future", "choose_victims", "soonest"]

Ids = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

LATER: Final = float(np.finfo(np.float64).max)
"""Seconds until what a reader may use, nobody knows when: after all that was foretold, before never."""


class Future:
    """What a reader will use.

    uses: uint64, in the order it will use them. known: uint64, what it may use after those, in any order;
    those it will use are taken for known, too. until: int64, for each use how many are done, at most, while
    it lasts; by default each is over once it is done.
    """

    def __init__(self, uses: Ids, known: Ids, until: Ints | None = None) -> None:
        self._ids, item = np.unique(uses, return_inverse=True)
        self._count = len(uses)
        # One ascending key for each use: by item, then by position.
        self._keys = np.sort(item.astype(np.int64) * (self._count + 1) + np.arange(self._count))
        self._known = np.union1d(self._ids, known)
        self._until = np.zeros(self._count, np.int64) if until is None else until

    def __len__(self) -> int:
        """How many uses are foretold."""
        return self._count

    def look(self, items: Ids, done: int) -> tuple[Ints, npt.NDArray[np.bool_]]:
        """Return two arrays for when so many uses are done, of one value an item.

        int64: the position of its next use, 2**62 where there is none. bool: whether its last is not over.
        """
        found, now = np.full(len(items), NEVER), np.zeros(len(items), np.bool_)
        if not self._count:
            return found, now
        item, there = _places(self._ids, items)
        step = self._count + 1
        at = np.searchsorted(self._keys, item * step + min(done, self._count))
        following, last = (self._keys[np.clip(at - back, 0, self._count - 1)] for back in (0, 1))
        again = there & (at < self._count) & (following < (item + 1) * step)
        found[again] = (following - item * step)[again]
        before = there & (at > 0) & (last >= item * step)
        now[before] = self._until[(last - item * step)[before]] >= done
        return found, now

    def knows(self, items: Ids) -> npt.NDArray[np.bool_]:
        """Return for each item whether it may ever be used."""
        return _places(self._known, items)[1] if len(self._known) else np.zeros(len(items), np.bool_)


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """A reader, and how far it is.

    done: of the uses of its future, how many it has behind it. uses_per_second: its speed; 0 where it is not
    known, which counts as the mean of the others, or 1. late_seconds: for how long it has not asked for
    anything although it was time: a reader that stands still is taken to stand still as long again.
    """

    future: Future
    done: int = 0
    uses_per_second: float = 0.0
    late_seconds: float = 0.0

    def waits(self, items: Ids, uses_per_second: float) -> Floats:
        """Return for how many seconds each item is not used: `LATER` when it is but known, inf when not.

        What is used now waits 0 seconds.
        """
        positions, now = self.future.look(items, self.done)
        waits = (positions - (self.done - 1)) / uses_per_second + self.late_seconds
        np.minimum(waits, LATER / 2, out=waits)
        never = np.flatnonzero(positions == NEVER)
        waits[never] = np.where(self.future.knows(items[never]), LATER, np.inf)
        waits[now] = 0.0
        return waits


def soonest(courses: Sequence[Course], items: Ids) -> Floats:
    """Return for how many seconds each item is not used by any reader; inf where none knows it."""
    speeds = [course.uses_per_second for course in courses if course.uses_per_second > 0]
    usual = sum(speeds) / len(speeds) if speeds else 1.0
    order = np.argsort(items)  # what is looked up in turn is looked up quickly
    ascending, least = items[order], np.full(len(items), np.inf)
    for course in courses:
        speed = course.uses_per_second if course.uses_per_second > 0 else usual
        np.minimum(least, course.waits(ascending, speed), out=least)
    waits = np.empty(len(items))
    waits[order] = least
    return waits


def choose_victims(
    waits: Floats, nbytes: Ints, excess_bytes: int, wait_seconds: float = -np.inf
) -> Ints | None:
    """Return which resident items leave so that so many bytes are given back: numbers into `waits`.

    waits, nbytes: of each resident item, float64 and int64. excess_bytes: none leaves unless it is above 0.
    wait_seconds: for how long the item that comes in is not used; None is returned, and none leaves, where
    its room could be had only from items that are used no later. Of items used equally late the first leave
    first.
    """
    if excess_bytes <= 0:
        return np.empty(0, np.int64)
    order = np.argsort(-waits, kind="stable")
    count = int(np.searchsorted(np.cumsum(nbytes[order]), excess_bytes)) + 1
    if count > len(order) or waits[order[count - 1]] <= wait_seconds:
        return None
    return order[:count]


def _places(sorted_ids: Ids, items: Ids) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Return where each item stands among the ids, of which there is at least one, and whether it does."""
    places = np.minimum(np.searchsorted(sorted_ids, items), len(sorted_ids) - 1)
    return places, sorted_ids[places] == items
