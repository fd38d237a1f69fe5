"""Least recently used: the item whose last use or admission is longest ago leaves."""

from collections.abc import Sequence

from policies.eviction.base import Item
from policies.eviction.fifo import Fifo

__all__ = ["Lru"]


class Lru(Fifo[Item]):
    """The queue of `Fifo`, in which a use sends an item to the end."""

    name = "lru"

    def hit(self, item: Item) -> bool:
        """Return whether the item is resident, and make it the last to leave."""
        if item not in self._nbytes:
            return False
        self._nbytes.move_to_end(item)
        return True

    def _run(self, items: Sequence[Item], sizes: Sequence[int]) -> tuple[int, int]:
        queue, capacity_bytes, used_bytes = self._nbytes, self._capacity_bytes, self._used_bytes
        pop, move_to_end = queue.popitem, queue.move_to_end
        misses = miss_bytes = 0
        for item, nbytes in zip(items, sizes, strict=True):
            if item in queue:
                move_to_end(item)
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
