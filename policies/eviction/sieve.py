"""SIEVE: a queue in which used items stay where they are and a hand sweeps away those that were not.

Source: Y. Zhang, J. Yang, Y. Yue, Y. Vigfusson, K. V. Rashmi, "SIEVE is simpler than LRU", NSDI 2024.

The hand goes from the oldest item to the newest and starts again. So the queue is two: what the hand has
passed, then what it has not; survivors go to the end of the first, new items to the end of the second. That
is the paper's list with its hand, without a list of our own.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import chain

from policies.eviction.base import Algorithm, Item

__all__ = ["Sieve"]


class Sieve(Algorithm[Item]):
    """The two parts of the queue, item to bytes, oldest first, and those used since the hand last passed."""

    name = "sieve"

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._passed: OrderedDict[Item, int] = OrderedDict()
        self._ahead: OrderedDict[Item, int] = OrderedDict()
        self._used: set[Item] = set()

    def hit(self, item: Item) -> bool:
        """Return whether the item is resident, and let it survive the hand once."""
        if item not in self._ahead and item not in self._passed:
            return False
        self._used.add(item)
        return True

    def __contains__(self, item: object) -> bool:
        return item in self._ahead or item in self._passed

    def __len__(self) -> int:
        return len(self._ahead) + len(self._passed)

    def __iter__(self) -> Iterator[Item]:
        """Those that were not used leave before those that were."""
        yield from (item for item in chain(self._ahead, self._passed) if item not in self._used)
        yield from (item for item in chain(self._ahead, self._passed) if item in self._used)

    def _run(self, items: Sequence[Item], sizes: Sequence[int]) -> tuple[int, int]:
        ahead, passed, used = self._ahead, self._passed, self._used
        capacity_bytes, used_bytes, use = self._capacity_bytes, self._used_bytes, self._used.add
        misses = miss_bytes = 0
        for item, nbytes in zip(items, sizes, strict=True):
            if item in used:
                continue
            if item in passed or item in ahead:
                use(item)
                continue
            misses += 1
            miss_bytes += nbytes
            if nbytes <= capacity_bytes:
                used_bytes += nbytes
                while used_bytes > capacity_bytes:
                    found, found_bytes = ahead.popitem(False)
                    if found in used:
                        used.remove(found)
                        passed[found] = found_bytes
                    else:
                        used_bytes -= found_bytes
                    if not ahead:
                        ahead, passed = passed, ahead
                ahead[item] = nbytes
        self._ahead, self._passed, self._used_bytes = ahead, passed, used_bytes
        return misses, miss_bytes

    def _insert(self, item: Item, nbytes: int) -> None:
        self._ahead[item] = nbytes

    def _take(self, item: Item) -> int:
        self._used.discard(item)
        nbytes = (self._ahead if item in self._ahead else self._passed).pop(item)
        self._start_again()
        return nbytes

    def _evict(self) -> tuple[Item, int]:
        while True:
            item, nbytes = self._ahead.popitem(last=False)
            used = item in self._used
            if used:
                self._used.remove(item)
                self._passed[item] = nbytes
            self._start_again()
            if not used:
                return item, nbytes

    def _start_again(self) -> None:
        """At the newest item the hand goes back to the oldest, before anything new comes in behind it."""
        if not self._ahead:
            self._ahead, self._passed = self._passed, self._ahead
