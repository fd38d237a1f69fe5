"""CLOCK, also called second chance or FIFO reinsertion: a used item goes round once more before it leaves.

Source: F. J. Corbato, "A paging experiment with the Multics system", 1968.
"""

from collections.abc import Iterator, Sequence

from policies.eviction.base import Item
from policies.eviction.fifo import Fifo

__all__ = ["Clock"]


class Clock(Fifo[Item]):
    """The queue of `Fifo`, and those of its items that were used since they were last passed."""

    name = "clock"

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._used: set[Item] = set()

    def hit(self, item: Item) -> bool:
        """Return whether the item is resident, and give it another round."""
        if item not in self._nbytes:
            return False
        self._used.add(item)
        return True

    def __iter__(self) -> Iterator[Item]:
        """Those that were not used leave before those that were."""
        yield from (item for item in self._nbytes if item not in self._used)
        yield from (item for item in self._nbytes if item in self._used)

    def _run(self, items: Sequence[Item], sizes: Sequence[int]) -> tuple[int, int]:
        queue, used, capacity_bytes, used_bytes = (
            self._nbytes, self._used, self._capacity_bytes, self._used_bytes
        )  # fmt: skip
        use, pop = used.add, queue.popitem
        misses = miss_bytes = 0
        for item, nbytes in zip(items, sizes, strict=True):
            if item in used:
                continue
            if item in queue:
                use(item)
                continue
            misses += 1
            miss_bytes += nbytes
            if nbytes <= capacity_bytes:
                used_bytes += nbytes
                while used_bytes > capacity_bytes:
                    passed, passed_bytes = pop(False)
                    if passed in used:
                        used.remove(passed)
                        queue[passed] = passed_bytes
                    else:
                        used_bytes -= passed_bytes
                queue[item] = nbytes
        self._used_bytes = used_bytes
        return misses, miss_bytes

    def _take(self, item: Item) -> int:
        self._used.discard(item)
        return super()._take(item)

    def _evict(self) -> tuple[Item, int]:
        while True:
            item, nbytes = self._nbytes.popitem(last=False)
            if item not in self._used:
                return item, nbytes
            self._used.remove(item)
            self._nbytes[item] = nbytes
