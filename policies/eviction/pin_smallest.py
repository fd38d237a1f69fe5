"""Pin the smallest: what came in stays unless a smaller item wants its place.

One reader that takes each item once an epoch fetches the same bytes with every full cache
(`policies.regime`); the one that holds the most items makes the fewest requests.
"""

import heapq
from collections.abc import Iterator

from policies.eviction.base import Algorithm, Item

__all__ = ["PinSmallest"]

_SPARE = 64


class PinSmallest(Algorithm[Item]):
    """Item to (bytes, number of its admission), and a heap of them, the largest and then the newest first."""

    name = "pin-smallest"

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._entries: dict[Item, tuple[int, int]] = {}
        self._heap: list[tuple[int, int, Item]] = []
        self._admitted = 0

    def hit(self, item: Item) -> bool:
        """Return whether the item is resident."""
        return item in self._entries

    def __contains__(self, item: object) -> bool:
        return item in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Item]:
        return (node[2] for node in sorted(self._heap) if self._is_current(node[2], -node[0], -node[1]))

    def _make_room(self, item: Item, nbytes: int) -> list[Item] | None:  # noqa: ARG002
        """One victim is enough, for it is larger than the item; O(log n)."""
        if self._used_bytes + nbytes <= self._capacity_bytes:
            return []
        if nbytes > self._capacity_bytes or self._largest_bytes() <= nbytes:
            return None
        return self._shrink(self._capacity_bytes - nbytes)

    def _largest_bytes(self) -> int:
        while self._heap and not self._is_current(self._heap[0][2], -self._heap[0][0], -self._heap[0][1]):
            heapq.heappop(self._heap)
        return -self._heap[0][0] if self._heap else 0

    def _insert(self, item: Item, nbytes: int) -> None:
        self._admitted += 1
        self._entries[item] = nbytes, self._admitted
        heapq.heappush(self._heap, (-nbytes, -self._admitted, item))
        if len(self._heap) > 2 * len(self._entries) + _SPARE:
            self._heap = [(-size, -number, item) for item, (size, number) in self._entries.items()]
            heapq.heapify(self._heap)

    def _take(self, item: Item) -> int:
        return self._entries.pop(item)[0]

    def _evict(self) -> tuple[Item, int]:
        self._largest_bytes()
        item = heapq.heappop(self._heap)[2]
        return item, self._take(item)

    def _is_current(self, item: Item, nbytes: int, number: int) -> bool:
        return self._entries.get(item) == (nbytes, number)
