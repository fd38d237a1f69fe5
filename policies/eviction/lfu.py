"""Least frequently used: the item with the fewest uses leaves, of several the one that reached them first.

Source: K. Shah, A. Mitra, D. Matani, "An O(1) algorithm for implementing the LFU cache eviction scheme",
2010.
"""

from collections import OrderedDict
from collections.abc import Iterator

from policies.eviction.base import Eviction, Item

__all__ = ["Lfu"]


class Lfu(Eviction[Item]):
    """Item to [bytes, uses], and for each number of uses a queue of its items. Admission is the first use."""

    name = "lfu"

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._entries: dict[Item, list[int]] = {}
        self._by_uses: dict[int, OrderedDict[Item, None]] = {}
        self._fewest = 1  # uses; no resident item has fewer

    def hit(self, item: Item) -> bool:
        """Return whether the item is resident, and count the use."""
        entry = self._entries.get(item)
        if entry is None:
            return False
        self._leave(item, entry[1])
        entry[1] += 1
        self._by_uses.setdefault(entry[1], OrderedDict())[item] = None
        return True

    def __contains__(self, item: object) -> bool:
        return item in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Item]:
        for uses in sorted(self._by_uses):
            yield from self._by_uses[uses]

    def _insert(self, item: Item, nbytes: int) -> None:
        self._entries[item] = [nbytes, 1]
        self._by_uses.setdefault(1, OrderedDict())[item] = None
        self._fewest = 1

    def _take(self, item: Item) -> int:
        nbytes, uses = self._entries.pop(item)
        self._leave(item, uses)
        return nbytes

    def _evict(self) -> tuple[Item, int]:
        if self._fewest not in self._by_uses:  # only after `remove`: else the next item up is known
            self._fewest = min(self._by_uses)
        item = next(iter(self._by_uses[self._fewest]))
        return item, self._take(item)

    def _leave(self, item: Item, uses: int) -> None:
        queue = self._by_uses[uses]
        del queue[item]
        if not queue:
            del self._by_uses[uses]
            if uses == self._fewest:
                self._fewest += 1
