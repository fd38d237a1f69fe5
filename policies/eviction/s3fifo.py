"""S3-FIFO: a small queue that most items leave soon, a main queue for the used ones, a memory of the
dismissed.

Source: J. Yang, Y. Zhang, Z. Qiu, Y. Yue, K. V. Rashmi, "FIFO queues are all you need for cache eviction",
SOSP 2023; and its authors' later form, in which new items go to the main queue while the cache first fills.

A cache for shards is a few dozen items large, so one that is as large as the small queue goes straight to the
main one here, where the authors refuse it: they cache many small objects.
"""

from collections import OrderedDict
from collections.abc import Iterator

from policies.eviction.base import Eviction, Item

__all__ = ["S3Fifo"]

_SMALL_SHARE = 0.1
_GHOST_SHARE = 0.9
_USES_TO_STAY = 2
_MOST_USES = 3


class S3Fifo(Eviction[Item]):
    """Two queues of item to [bytes, uses], and the bytes of items dismissed from the small one."""

    name = "s3fifo"

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._small: OrderedDict[Item, list[int]] = OrderedDict()
        self._main: OrderedDict[Item, list[int]] = OrderedDict()
        self._ghost: OrderedDict[Item, int] = OrderedDict()
        self._small_bytes = 0
        self._ghost_bytes = 0
        self._was_full = False
        self._was_dismissed = False  # the item that comes in now

    def hit(self, item: Item) -> bool:
        """Return whether the item is resident, and count the use."""
        entry = self._small.get(item) or self._main.get(item)
        if entry is None:
            return False
        entry[1] += 1
        return True

    def __contains__(self, item: object) -> bool:
        return item in self._small or item in self._main

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    def __iter__(self) -> Iterator[Item]:
        yield from self._small
        yield from self._main

    def _make_room(self, item: Item, nbytes: int) -> list[Item] | None:
        if nbytes > self._capacity_bytes:
            return None
        ghost_bytes = self._ghost.pop(item, None)
        self._was_dismissed = ghost_bytes is not None
        self._ghost_bytes -= ghost_bytes or 0
        return super()._make_room(item, nbytes)

    def _insert(self, item: Item, nbytes: int) -> None:
        small_bytes = self._small_share()
        filling = not self._was_full and self._small_bytes >= small_bytes
        if self._was_dismissed or filling or nbytes >= small_bytes:
            self._main[item] = [nbytes, 0]
        else:
            self._small[item] = [nbytes, 0]
            self._small_bytes += nbytes

    def _take(self, item: Item) -> int:
        if item in self._main:
            return self._main.pop(item)[0]
        nbytes = self._small.pop(item)[0]
        self._small_bytes -= nbytes
        return nbytes

    def _evict(self) -> tuple[Item, int]:
        self._was_full = True
        while (
            self._small and self._used_bytes - self._small_bytes <= self._capacity_bytes - self._small_share()
        ):
            for item, entry in _popped(self._small):
                self._small_bytes -= entry[0]
                if entry[1] < _USES_TO_STAY:
                    self._remember(item, entry[0])
                    return item, entry[0]
                self._main[item] = [entry[0], 0]
        for item, entry in _popped(self._main):
            if not entry[1]:
                return item, entry[0]
            entry[1] = min(entry[1], _MOST_USES) - 1
            self._main[item] = entry
        raise AssertionError("nothing is resident")

    def _small_share(self) -> int:
        return int(self._capacity_bytes * _SMALL_SHARE)

    def _remember(self, item: Item, nbytes: int) -> None:
        self._ghost[item] = nbytes
        self._ghost_bytes += nbytes
        while self._ghost_bytes > self._capacity_bytes * _GHOST_SHARE:
            self._ghost_bytes -= self._ghost.popitem(last=False)[1]


def _popped(queue: OrderedDict[Item, list[int]]) -> Iterator[tuple[Item, list[int]]]:
    while queue:
        yield queue.popitem(last=False)
