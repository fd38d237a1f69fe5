"""Greedy dual size frequency: small and often used items stay, and what was not used for long grows old.

Source: L. Cherkasova, "Improving WWW proxies performance with greedy-dual-size-frequency caching policy",
1998, with equal cost for every item: priority = age + uses / bytes, where age is the priority of the last
victim.
"""

import heapq
from collections.abc import Iterator

from policies.eviction.base import Algorithm, Item

__all__ = ["Gdsf"]

_SPARE = 64


class Gdsf(Algorithm[Item]):
    """Item to [bytes, uses, ticket], and a heap by priority whose outdated tickets are passed over."""

    name = "gdsf"

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._entries: dict[Item, list[int]] = {}
        self._heap: list[tuple[float, int, Item]] = []
        self._tickets = 0
        self._age = 0.0

    def hit(self, item: Item) -> bool:
        """Return whether the item is resident, and raise its priority; O(log n)."""
        entry = self._entries.get(item)
        if entry is None:
            return False
        entry[1] += 1
        self._push(item, entry)
        return True

    def __contains__(self, item: object) -> bool:
        return item in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Item]:
        return (item for _, ticket, item in sorted(self._heap) if self._is_current(item, ticket))

    def _insert(self, item: Item, nbytes: int) -> None:
        entry = self._entries[item] = [nbytes, 1, 0]
        self._push(item, entry)

    def _take(self, item: Item) -> int:
        return self._entries.pop(item)[0]

    def _evict(self) -> tuple[Item, int]:
        while True:
            priority, ticket, item = heapq.heappop(self._heap)
            if self._is_current(item, ticket):
                self._age = priority
                return item, self._take(item)

    def _push(self, item: Item, entry: list[int]) -> None:
        self._tickets += 1
        entry[2] = self._tickets
        priority = self._age + entry[1] / max(1, entry[0])
        heapq.heappush(self._heap, (priority, entry[2], item))
        if len(self._heap) > 2 * len(self._entries) + _SPARE:
            self._heap = [node for node in self._heap if self._is_current(node[2], node[1])]
            heapq.heapify(self._heap)

    def _is_current(self, item: Item, ticket: int) -> bool:
        entry = self._entries.get(item)
        return entry is not None and entry[2] == ticket
