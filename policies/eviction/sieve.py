"""SIEVE: a queue in which used items stay where they are and a hand sweeps away those that were not.

Source: Y. Zhang, J. Yang, Y. Yue, Y. Vigfusson, K. V. Rashmi, "SIEVE is simpler than LRU", NSDI 2024.

The hand goes from the oldest item to the newest and starts again. So the queue is two: what the hand has
passed, then what it has not; survivors go to the end of the first, new items to the end of the second. That
is the paper's list with its hand, without a list of our own.
"""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain

from policies.eviction.base import Eviction, Item

__all__ = ["Sieve"]


class Sieve(Eviction[Item]):
    """Item to [bytes, used since the hand last passed], and the two parts of the queue, oldest first."""

    name = "sieve"

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._entries: dict[Item, list[int]] = {}
        self._passed: OrderedDict[Item, None] = OrderedDict()
        self._ahead: OrderedDict[Item, None] = OrderedDict()

    def hit(self, item: Item) -> bool:
        """Return whether the item is resident, and let it survive the hand once."""
        entry = self._entries.get(item)
        if entry is None:
            return False
        entry[1] = 1
        return True

    def __contains__(self, item: object) -> bool:
        return item in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Item]:
        """Those that were not used leave before those that were."""
        for used in (0, 1):
            for item in chain(self._ahead, self._passed):
                if self._entries[item][1] == used:
                    yield item

    def _insert(self, item: Item, nbytes: int) -> None:
        self._entries[item] = [nbytes, 0]
        self._ahead[item] = None

    def _take(self, item: Item) -> int:
        part = self._ahead if item in self._ahead else self._passed
        del part[item]
        self._start_again()
        return self._entries.pop(item)[0]

    def _evict(self) -> tuple[Item, int]:
        while True:
            item, _ = self._ahead.popitem(last=False)
            entry = self._entries[item]
            if entry[1]:
                entry[1] = 0
                self._passed[item] = None
                self._start_again()
                continue
            self._start_again()
            del self._entries[item]
            return item, entry[0]

    def _start_again(self) -> None:
        """At the newest item the hand goes back to the oldest, before anything new comes in behind it."""
        if not self._ahead:
            self._ahead, self._passed = self._passed, self._ahead
