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
    """Item to [bytes, uses, ticket, priority], and a heap by priority and then ticket.

    A use raises the priority and leaves the heap alone: a node there is what its item had at least, and is
    renewed when it comes to the top. A call that returns victims is O(log n) for each use since the last.
    """

    name = "gdsf"

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._entries: dict[Item, list[float]] = {}
        self._heap: list[tuple[float, float, Item]] = []
        self._tickets = 0
        self._age = 0.0

    def hit(self, item: Item) -> bool:
        """Return whether the item is resident, and raise its priority."""
        entry = self._entries.get(item)
        if entry is None:
            return False
        self._use(entry)
        return True

    def __contains__(self, item: object) -> bool:
        return item in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Item]:
        return (item for _, _, item in sorted(self._nodes()))

    def _insert(self, item: Item, nbytes: int) -> None:
        entry = self._entries[item] = [nbytes, 0, 0, 0.0]
        self._use(entry)
        heapq.heappush(self._heap, (entry[3], entry[2], item))
        if len(self._heap) > 2 * len(self._entries) + _SPARE:  # nodes of items that were removed
            self._heap = self._nodes()
            heapq.heapify(self._heap)

    def _take(self, item: Item) -> int:
        return int(self._entries.pop(item)[0])

    def _evict(self) -> tuple[Item, int]:
        while True:
            priority, ticket, item = self._heap[0]
            entry = self._entries.get(item)
            if entry is None:
                heapq.heappop(self._heap)
            elif entry[2] != ticket:
                heapq.heapreplace(self._heap, (entry[3], entry[2], item))
            else:
                heapq.heappop(self._heap)
                self._age = priority
                return item, self._take(item)

    def _use(self, entry: list[float]) -> None:
        self._tickets += 1
        entry[1] += 1
        entry[2] = self._tickets
        entry[3] = self._age + entry[1] / max(1, entry[0])

    def _nodes(self) -> list[tuple[float, float, Item]]:
        return [(priority, ticket, item) for item, (_, _, ticket, priority) in self._entries.items()]
