"""First in, first out: the item admitted longest ago leaves; uses do not count."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from policies.eviction.base import Algorithm, Item

__all__ = ["Fifo"]


class Fifo(Algorithm[Item]):
    """A queue: item to bytes, the next victim first; ordered, for finding a dict's first item is not O(1)."""

    name = "fifo"

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._nbytes: OrderedDict[Item, int] = OrderedDict()

    def hit(self, item: Item) -> bool:
        """Return whether the item is resident."""
        return item in self._nbytes

    def __contains__(self, item: object) -> bool:
        return item in self._nbytes

    def __len__(self) -> int:
        return len(self._nbytes)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._nbytes)

    def _run(self, items: Sequence[Item], sizes: Sequence[int]) -> tuple[int, int]:
        queue, capacity_bytes, used_bytes = self._nbytes, self._capacity_bytes, self._used_bytes
        pop = queue.popitem
        misses = miss_bytes = 0
        for item, nbytes in zip(items, sizes, strict=True):
            if item in queue:
                continue
            misses += 1
            miss_bytes += nbytes
            if nbytes <= capacity_bytes:
                used_bytes += nbytes
                while used_bytes > capacity_bytes:
                    used_bytes -= pop(False)[1]
                queue[item] = nbytes
        self._used_bytes = used_bytes
        return misses, miss_bytes

    def _insert(self, item: Item, nbytes: int) -> None:
        self._nbytes[item] = nbytes

    def _take(self, item: Item) -> int:
        return self._nbytes.pop(item)

    def _evict(self) -> tuple[Item, int]:
        return self._nbytes.popitem(last=False)
