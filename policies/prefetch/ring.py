"""A ring for what is fetched ahead beside a cache with any eviction algorithm: pin + ring is the default.

Invariant: ring and cache together are never more than the capacity. What is fetched ahead stays in the
ring until it has been read; then the cache may take it, or it goes. So the algorithm sees each request
once, in order, as in `policies.replay`, whatever the timing, and no lookahead makes it fetch more than a
replay with the cache's part of the capacity counts as misses. The ring has room for the lookahead and one
item being read, and half of the capacity at most.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from policies.eviction.base import Eviction, Item, checked_capacity
from policies.prefetch.base import Prefetcher
from policies.prefetch.lookahead import Lookahead

__all__ = ["Ring"]


class Ring(Prefetcher[Item]):
    """Prefetch into a ring beside `cache`, an empty `Eviction` with the whole capacity, resized from here.

    Victims are named with the next fetch: until then they may stay where they are.
    """

    def __init__(
        self,
        future: Sequence[Item],
        sizes: int | Sequence[int] | npt.NDArray[np.integer],
        cache: Eviction[Item],
        *,
        slots: int = 8,
        lookahead: Lookahead | int,
        demand_slots: int | None = None,
    ) -> None:
        super().__init__(
            future, sizes, cache.capacity_bytes, slots=slots, lookahead=lookahead, demand_slots=demand_slots
        )
        self._cache = cache
        self._largest_bytes = max(self._sizes, default=0)
        self._ring: dict[Item, tuple[int, int]] = {}  # arrived and not let go: bytes, next use
        self._ring_bytes = 0  # in the ring and in flight to it
        self._next: dict[Item, int] = {}  # the next use of each item used
        self._reading: Item | None = None  # what is being read from the ring
        self._gone: list[Item] = []  # victims nobody was told of
        self._ahead_changed()

    @property
    def cache_bytes(self) -> int:
        """The part of the capacity that the cache has now."""
        return self._cache.capacity_bytes

    def _take(self, item: Item, cursor: int, *, first: bool) -> bool:
        if first:
            if self._reading is not None:
                self._let_go(self._reading)
                self._reading = None
            hit = self._cache.hit(item)
            self._next[item] = self._following[cursor]
            if hit:
                return True
        if item in self._ring:
            self._reading = item
            return True
        if not first and item in self._cache and item not in self._flying:
            return True
        return self._passed_by(item, cursor)

    def _let_go(self, item: Item) -> None:
        """Offer what was read to the cache; what it refuses goes, unless the lookahead needs it."""
        nbytes, _ = self._ring[item]
        victims = self._cache.admit(item, nbytes)
        if victims is not None:
            self._evicted(victims)
        elif self._next[item] < self._scan:
            self._ring[item] = nbytes, self._next[item]
            return
        else:
            self._gone.append(item)
        del self._ring[item]
        self._ring_bytes -= nbytes

    def _evicted(self, victims: list[Item]) -> None:
        for victim in victims:
            self._gone.append(victim)
            self._look_again(self._next[victim])

    def _present(self, item: Item) -> bool:
        return item in self._ring or item in self._flying or item in self._cache

    def _room(self, nbytes: int, position: int) -> list[Item] | None:  # noqa: ARG002
        if self._ring_bytes + nbytes > self._most_bytes:
            return None
        self._ring_bytes += nbytes
        victims, self._gone = self._gone, []
        return victims

    def _demand(self, item: Item, cursor: int) -> list[Item] | None:
        nbytes = self._sizes[cursor]
        victims = self._room(nbytes, cursor)
        if victims is None and (admitted := self._cache.admit(item, nbytes)) is not None:
            self._evicted(admitted)
            victims, self._gone = self._gone, []
        return victims

    def _keep(self, item: Item, nbytes: int, position: int) -> None:
        if item not in self._cache:
            self._ring[item] = nbytes, position

    def _give_up(self, item: Item, nbytes: int) -> None:
        if not self._cache.remove(item):
            self._ring_bytes -= nbytes

    def _occupied(self) -> int:
        return self._ring_bytes + self._cache.used_bytes

    def resize(self, capacity_bytes: int) -> list[Item]:
        """Set the capacity and return the victims; as in the base class."""
        self._capacity_bytes = checked_capacity(capacity_bytes)
        self._ahead_changed()
        unread = [item for item in self._ring if item != self._reading]
        unread.sort(key=lambda item: self._ring[item][1])
        while self._ring_bytes > self._most_bytes and unread:
            victim = unread.pop()
            nbytes, use = self._ring.pop(victim)
            self._ring_bytes -= nbytes
            self._wasted_bytes += nbytes
            self._gone.append(victim)
            self._look_again(use)
        self._ahead_changed()
        victims, self._gone = self._gone, []
        return victims

    def _ahead_changed(self) -> None:
        ring_bytes = self._ahead_bytes + self._largest_bytes if self._ahead_bytes else 0
        self._most_bytes = min(ring_bytes, self._capacity_bytes // 2)
        self._look_at_all_again()
        self._protect()
        cache_bytes = max(0, self._capacity_bytes - max(self._most_bytes, self._ring_bytes))
        self._evicted(self._cache.resize(cache_bytes))

    def _protect(self) -> None:
        """Take what is being read, or is in flight, from the cache into the ring, which evicts neither."""
        reading = [self._future[self._cursor - 1]] if self._cursor and self._asked is None else []
        for item in [item for item in (*reading, *self._flying) if item in self._cache]:
            nbytes = self._cache.used_bytes
            self._cache.remove(item)
            nbytes -= self._cache.used_bytes
            self._ring_bytes += nbytes
            if item in reading:
                self._ring[item] = nbytes, self._next[item]
                self._reading = item
