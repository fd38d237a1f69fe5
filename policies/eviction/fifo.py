"""First in, first out: the item admitted longest ago leaves; uses do not count."""

from collections import OrderedDict
from collections.abc import Iterator

from policies.eviction.base import Eviction, Item

__all__ = ["Fifo"]


class Fifo(Eviction[Item]):
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

    def _insert(self, item: Item, nbytes: int) -> None:
        self._nbytes[item] = nbytes

    def _take(self, item: Item) -> int:
        return self._nbytes.pop(item)

    def _evict(self) -> tuple[Item, int]:
        return self._nbytes.popitem(last=False)
