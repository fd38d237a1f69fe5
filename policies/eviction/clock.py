"""CLOCK, also called second chance or FIFO reinsertion: a used item goes round once more before it leaves.

Source: F. J. Corbato, "A paging experiment with the Multics system", 1968.
"""

from collections import OrderedDict
from collections.abc import Iterator

from policies.eviction.base import Eviction, Item

__all__ = ["Clock"]


class Clock(Eviction[Item]):
    """A queue of item to [bytes, used since it was last passed], the next to be looked at first."""

    name = "clock"

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._queue: OrderedDict[Item, list[int]] = OrderedDict()

    def hit(self, item: Item) -> bool:
        """Return whether the item is resident, and give it another round."""
        entry = self._queue.get(item)
        if entry is None:
            return False
        entry[1] = 1
        return True

    def __contains__(self, item: object) -> bool:
        return item in self._queue

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Item]:
        """Those that were not used leave before those that were."""
        for used in (0, 1):
            yield from (item for item, entry in self._queue.items() if entry[1] == used)

    def _insert(self, item: Item, nbytes: int) -> None:
        self._queue[item] = [nbytes, 0]

    def _take(self, item: Item) -> int:
        return self._queue.pop(item)[0]

    def _evict(self) -> tuple[Item, int]:
        while True:
            item, entry = self._queue.popitem(last=False)
            if not entry[1]:
                return item, entry[0]
            entry[1] = 0
            self._queue[item] = entry
