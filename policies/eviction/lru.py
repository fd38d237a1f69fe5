"""Least recently used: the item whose last use or admission is longest ago leaves."""

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
