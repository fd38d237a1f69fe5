"""Least frequently used: the item with the fewest uses leaves, of several the one that reached them first.

Source: K. Shah, A. Mitra, D. Matani, "An O(1) algorithm for implementing the LFU cache eviction scheme",
2010.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from policies.eviction.base import Algorithm, Item

__all__ = ["Lfu"]


class Lfu(Algorithm[Item]):
    """Item to uses, and for each number of uses a queue of item to bytes. Admission is the first use."""

    name = "lfu"

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._uses: dict[Item, int] = {}
        self._by_uses: dict[int, OrderedDict[Item, int]] = {}
        self._fewest = 1  # uses; no resident item has fewer

    def hit(self, item: Item) -> bool:
        """Return whether the item is resident, and count the use."""
        uses = self._uses.get(item)
        if uses is None:
            return False
        nbytes = self._leave(item, uses)
        self._uses[item] = uses + 1
        self._join(item, nbytes, uses + 1)
        return True

    def __contains__(self, item: object) -> bool:
        return item in self._uses

    def __len__(self) -> int:
        return len(self._uses)

    def __iter__(self) -> Iterator[Item]:
        for uses in sorted(self._by_uses):
            yield from self._by_uses[uses]

    def _run(self, items: Sequence[Item], sizes: Sequence[int]) -> tuple[int, int]:
        uses_of, by_uses, insert, evict = self._uses, self._by_uses, self._insert, self._evict
        capacity_bytes, used_bytes = self._capacity_bytes, self._used_bytes
        misses = miss_bytes = 0
        for item, nbytes in zip(items, sizes, strict=True):
            uses = uses_of.get(item)
            if uses is not None:
                queue = by_uses[uses]
                held_bytes = queue.pop(item)
                uses_of[item] = uses + 1
                if uses + 1 not in by_uses:
                    by_uses[uses + 1] = OrderedDict()
                by_uses[uses + 1][item] = held_bytes
                if not queue:
                    del by_uses[uses]
                    if uses == self._fewest:
                        self._fewest = uses + 1
                continue
            misses += 1
            miss_bytes += nbytes
            if nbytes <= capacity_bytes:
                used_bytes += nbytes
                while used_bytes > capacity_bytes:
                    used_bytes -= evict()[1]
                insert(item, nbytes)
        self._used_bytes = used_bytes
        return misses, miss_bytes

    def _insert(self, item: Item, nbytes: int) -> None:
        self._uses[item] = self._fewest = 1
        self._join(item, nbytes, 1)

    def _take(self, item: Item) -> int:
        return self._leave(item, self._uses.pop(item))

    def _evict(self) -> tuple[Item, int]:
        if self._fewest not in self._by_uses:  # only after `remove`: else the next item up is known
            self._fewest = min(self._by_uses)
        item = next(iter(self._by_uses[self._fewest]))
        return item, self._take(item)

    def _join(self, item: Item, nbytes: int, uses: int) -> None:
        queue = self._by_uses.get(uses)
        if queue is None:
            queue = self._by_uses[uses] = OrderedDict()
        queue[item] = nbytes

    def _leave(self, item: Item, uses: int) -> int:
        queue = self._by_uses[uses]
        nbytes = queue.pop(item)
        if not queue:
            del self._by_uses[uses]
            if uses == self._fewest:
                self._fewest += 1
        return nbytes
