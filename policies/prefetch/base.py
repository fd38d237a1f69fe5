"""The interface of prefetching, and what its two kinds share: the known order, slots, lookahead, counts.

A `Prefetcher` decides and holds no data; time is passed in, so the same object runs in a simulator and in
production. It is not thread-safe. The caller does what `start` says and tells what became of it:

    for fetch in prefetcher.start(now): delete fetch.victims, then fetch fetch.item
    prefetcher.arrived(item, now) or .failed(item, now), then start again
    prefetcher.use(item, now): True, read it; False, wait for an arrival and ask again; then start again

Invariant: the bytes kept and the bytes in flight to be kept are together never more than the capacity, and
what is being read, which is from one `use` that returned True to the next call of `use`, is not evicted.

Sources: P. Cao, E. W. Felten, A. R. Karlin, K. Li, "A study of integrated prefetching and caching
strategies", SIGMETRICS 1995 (one disk; the four rules); T. Kimbrel, A. R. Karlin, "Near-optimal parallel
prefetching and caching", SIAM J. Comput. 29, 2000 (several: here slots, any of which can fetch any item).
"""

import heapq
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Generic

import numpy as np
import numpy.typing as npt

from policies.checks import whole, whole_list
from policies.eviction.base import Item, checked_capacity
from policies.eviction.belady import next_uses
from policies.prefetch.fetch import Fetch, PrefetchStats
from policies.prefetch.lookahead import Lookahead

__all__ = ["Prefetcher"]


class Prefetcher(ABC, Generic[Item]):
    """Bounded aggressive prefetching: whenever a slot is free, the next missing item within the lookahead.

    future: every request to come, in order. sizes: bytes of each request, or one number for all; an item
    keeps the size it was fetched with. slots: fetches that may be in flight. lookahead: bytes of the
    order, from the next request on, within which items are fetched before they are asked for; an int
    stays, a `Lookahead` adapts; 0 fetches on demand alone. demand_slots: slots that only an item the
    reader waits for may take; None means slots // 8. Raises ValueError for anything else.
    """

    def __init__(
        self,
        future: Sequence[Item],
        sizes: int | Sequence[int] | npt.NDArray[np.integer],
        capacity_bytes: int,
        *,
        slots: int = 8,
        lookahead: Lookahead | int,
        demand_slots: int | None = None,
    ) -> None:
        self._future = future
        self._sizes = whole_list("sizes", sizes, len(future))
        self._before = list(accumulate(self._sizes, initial=0))
        self._following = next_uses(future)
        self._capacity_bytes = checked_capacity(capacity_bytes)
        self._slots = whole("slots", slots, least=1, example=8)
        if demand_slots is None:
            demand_slots = slots // 8
        self._demand_slots = whole("demand_slots", demand_slots, least=0, below=self._slots, example=0)
        self._adapting = lookahead if isinstance(lookahead, Lookahead) else None
        self._ahead_bytes = (
            lookahead.nbytes
            if isinstance(lookahead, Lookahead)
            else whole("lookahead", lookahead, least=0, example=134_217_728)
        )
        self._cursor = 0  # the request that is next, or waited for
        self._scan = 0  # requests before this one were looked at
        self._lost: list[int] = []  # a heap of those whose item left or failed after that
        self._asked: float | None = None  # since when the reader waits
        self._flying: dict[Item, tuple[int, int, bool, float]] = {}  # request, bytes, kept, since when
        self._past: set[Item] = set()  # arrived for the reader alone
        self._most_bytes = self._capacity_bytes  # the largest item that is prefetched
        self._peak_bytes = 0
        self._waits = self._fetches = self._demand_fetches = self._failures = 0
        self._fetched_bytes = self._wasted_bytes = self._written_bytes = 0
        self._stall_seconds = self._fetch_seconds = 0.0
        self._round_start = self._totals()
        self._round_end = self._adapting.round_bytes if self._adapting else self._before[-1] + 1

    @property
    def stats(self) -> PrefetchStats:
        """What has happened so far."""
        return PrefetchStats(
            requests=self._cursor,
            requested_bytes=self._before[self._cursor],
            waits=self._waits,
            stall_seconds=self._stall_seconds,
            fetches=self._fetches,
            fetched_bytes=self._fetched_bytes,
            demand_fetches=self._demand_fetches,
            failures=self._failures,
            fetch_seconds=self._fetch_seconds,
            wasted_bytes=self._wasted_bytes,
            written_bytes=self._written_bytes,
            used_bytes=self._occupied(),
            peak_bytes=self._peak_bytes,
            lookahead_bytes=self._ahead_bytes,
        )

    def use(self, item: Item, now: float) -> bool:
        """Return True where the item is here, and count this as the next request; else wait and ask again.

        What was used before may be evicted from now on. Raises ValueError where another request was foretold.
        """
        cursor = self._cursor
        if cursor >= len(self._future) or self._future[cursor] != item:
            foretold = repr(self._future[cursor]) if cursor < len(self._future) else "nothing more"
            raise ValueError(f"request {cursor} is for {item!r}, and {foretold} was foretold")
        asked = self._asked
        if not self._take(item, cursor, first=asked is None):
            if asked is None:
                self._asked = now
                self._waits += 1
            return False
        if asked is not None:
            self._stall_seconds += now - asked
            self._asked = None
        self._cursor = cursor = cursor + 1
        if self._before[cursor] >= self._round_end:
            self._adapt()
        return True

    def start(self, now: float) -> list[Fetch[Item]]:
        """Return what to fetch now, most urgent first; these are in flight from now on."""
        fetches: list[Fetch[Item]] = []
        free = self._slots - len(self._flying)
        if free <= 0:
            return fetches
        if self._asked is not None:
            cursor = self._cursor
            item = self._future[cursor]
            if item not in self._past and not self._present(item):
                free -= 1
                self._demand_fetches += 1
                fetches.append(
                    self._fly(item, self._sizes[cursor], cursor, self._demand(item, cursor), True, now)
                )
        free -= self._demand_slots
        while free > 0 and (position := self._missing()) >= 0:
            item, nbytes = self._future[position], self._sizes[position]
            victims = self._room(nbytes, position)
            if victims is None:
                break
            if self._lost:  # it comes from there
                heapq.heappop(self._lost)
            else:
                self._scan = position + 1
            free -= 1
            fetches.append(self._fly(item, nbytes, position, victims, False, now))
        return fetches

    def arrived(self, item: Item, now: float) -> None:
        """Take note that a fetch has ended well; ValueError where the item was not in flight."""
        position, nbytes, kept, begun = self._land(item)
        self._fetch_seconds += now - begun
        if kept:
            self._keep(item, nbytes, position)
        else:
            self._past.add(item)

    def failed(self, item: Item, now: float) -> None:
        """Take note that a fetch has failed: its room is free, and the next `start` may try it again.

        Raises ValueError where the item was not in flight.
        """
        position, nbytes, kept, begun = self._land(item)
        self._fetch_seconds += now - begun
        self._failures += 1
        self._fetches -= 1
        self._fetched_bytes -= nbytes
        if kept:
            self._written_bytes -= nbytes
            self._give_up(item, nbytes)
        self._look_again(position)

    @abstractmethod
    def resize(self, capacity_bytes: int) -> list[Item]:
        """Set the capacity and return the victims that no longer fit; ValueError for a capacity below 0.

        What is being read or in flight stays until it is done: so long more than the capacity may be used.
        """

    @abstractmethod
    def _take(self, item: Item, cursor: int, *, first: bool) -> bool:
        """Return whether the item can be read; `first`: asked for the first time, so the last one is let
        go."""

    @abstractmethod
    def _present(self, item: Item) -> bool:
        """Return whether the item is in the cache or in flight to anywhere."""

    @abstractmethod
    def _room(self, nbytes: int, position: int) -> list[Item] | None:
        """Make room for what request `position` needs and return the victims; None where that does harm."""

    @abstractmethod
    def _demand(self, item: Item, cursor: int) -> list[Item] | None:
        """As `_room`, for the item the reader waits for; None sends it past the cache."""

    @abstractmethod
    def _keep(self, item: Item, nbytes: int, position: int) -> None:
        """Record that an item has arrived in the room made for it."""

    @abstractmethod
    def _give_up(self, item: Item, nbytes: int) -> None:
        """Free the room made for an item that did not arrive."""

    @abstractmethod
    def _occupied(self) -> int:
        """Return the bytes in the cache and in flight to it."""

    def _ahead_changed(self) -> None:
        """Answer a change of the lookahead."""

    def _passed_by(self, item: Item, cursor: int) -> bool:
        """Return whether the item has come for the reader alone, and give it to the reader."""
        if item not in self._past:
            return False
        self._past.remove(item)
        self._look_again(self._following[cursor])
        return True

    def _look_at_all_again(self) -> None:
        """Take note that what was too large may fit now."""
        self._scan = self._cursor
        self._lost.clear()

    def _look_again(self, position: int) -> None:
        """Take note that a request whose item was present, or on its way, may miss it now."""
        if position < self._scan:
            heapq.heappush(self._lost, position)

    def _missing(self) -> int:
        """Return the first request within the lookahead whose item is not present; -1 for none."""
        cursor, future, present, lost = self._cursor, self._future, self._present, self._lost
        while lost:
            position = lost[0]
            if (
                position >= cursor
                and not present(future[position])
                and self._sizes[position] <= self._most_bytes
            ):
                return position
            heapq.heappop(lost)
        scan = self._scan if self._scan > cursor else cursor
        before, sizes, most_bytes, end = self._before, self._sizes, self._most_bytes, len(future)
        limit = before[cursor] + self._ahead_bytes
        while scan < end and before[scan] < limit:
            if not present(future[scan]) and sizes[scan] <= most_bytes:
                self._scan = scan
                return scan
            scan += 1
        self._scan = scan
        return -1

    def _fly(
        self, item: Item, nbytes: int, position: int, victims: list[Item] | None, demand: bool, now: float
    ) -> Fetch[Item]:
        kept = victims is not None
        self._flying[item] = (position, nbytes, kept, now)
        self._fetches += 1
        self._fetched_bytes += nbytes
        if kept:
            self._written_bytes += nbytes
            used_bytes = self._occupied()
            if used_bytes > self._peak_bytes:
                self._peak_bytes = used_bytes
        return Fetch(item, nbytes, victims or [], demand, kept)

    def _land(self, item: Item) -> tuple[int, int, bool, float]:
        flight = self._flying.pop(item, None)
        if flight is None:
            raise ValueError(f"item {item!r} is not in flight; report each item that start returned once")
        return flight

    def _totals(self) -> tuple[int, int, int, float]:
        return self._before[self._cursor], self._fetched_bytes, self._wasted_bytes, self._stall_seconds

    def _adapt(self) -> None:
        """End a round of a lookahead that adapts."""
        if self._adapting is None:
            return
        requested, fetched, wasted, stall = self._round_start
        self._round_start = self._totals()
        self._ahead_bytes = self._adapting.observe(
            requested_bytes=self._round_start[0] - requested,
            fetched_bytes=self._round_start[1] - fetched,
            wasted_bytes=self._round_start[2] - wasted,
            stall_seconds=self._round_start[3] - stall,
        )
        self._round_end = self._round_start[0] + self._adapting.round_bytes
        self._ahead_changed()
