"""Pin: what came in stays; an item is admitted only while there is room for it.

For a reader that takes each item once an epoch this reaches the best hit ratio there is, capacity over corpus
(`policies.regime`), where LRU and FIFO evict every item just before it comes round again.
"""

from collections.abc import Iterator, Sequence

from policies.eviction.base import Item
from policies.eviction.fifo import Fifo

__all__ = ["Pin"]


class Pin(Fifo[Item]):
    """Refuses instead of evicting. Only `resize` has victims: the newest, so that the oldest still stay."""

    name = "pin"

    def __iter__(self) -> Iterator[Item]:
        return reversed(self._nbytes)

    def _run(self, items: Sequence[Item], sizes: Sequence[int]) -> tuple[int, int]:
        queue, room_bytes = self._nbytes, self._capacity_bytes - self._used_bytes
        misses = miss_bytes = 0
        for item, nbytes in zip(items, sizes, strict=True):
            if item in queue:
                continue
            misses += 1
            miss_bytes += nbytes
            if nbytes <= room_bytes:
                room_bytes -= nbytes
                queue[item] = nbytes
        self._used_bytes = self._capacity_bytes - room_bytes
        return misses, miss_bytes

    def _make_room(self, item: Item, nbytes: int) -> list[Item] | None:  # noqa: ARG002
        return [] if self._used_bytes + nbytes <= self._capacity_bytes else None

    def _evict(self) -> tuple[Item, int]:
        return self._nbytes.popitem(last=True)
