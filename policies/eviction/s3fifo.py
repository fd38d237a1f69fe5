"""S3-FIFO: a small queue that most items leave soon, a main queue for the used ones, a memory of the
dismissed.

Source: J. Yang, Y. Zhang, Z. Qiu, Y. Yue, K. V. Rashmi, "FIFO queues are all you need for cache eviction",
SOSP 2023; and its authors' later form, in which new items go to the main queue while the cache first fills.

A cache for shards is a few dozen items large, so one that is as large as the small queue goes straight to the
main one here, where the authors refuse it: they cache many small objects.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import chain

from policies.eviction.base import Algorithm, Item

__all__ = ["S3Fifo"]

_SMALL_SHARE = 0.1
_GHOST_SHARE = 0.9
_USES_TO_STAY = 2
_MOST_USES = 3


class S3Fifo(Algorithm[Item]):
    """Two queues and the ghosts of those dismissed from the small one, item to bytes; and item to its uses.

    Uses are counted from the moment an item joined its queue, up to three; who has none is not in the table.
    """

    name = "s3fifo"

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._small: OrderedDict[Item, int] = OrderedDict()
        self._main: OrderedDict[Item, int] = OrderedDict()
        self._ghost: OrderedDict[Item, int] = OrderedDict()
        self._uses: dict[Item, int] = {}
        self._small_bytes = self._main_bytes = self._ghost_bytes = 0
        self._was_full = False
        self._was_dismissed = False  # the item that comes in now

    def hit(self, item: Item) -> bool:
        """Return whether the item is resident, and count the use."""
        if item not in self._main and item not in self._small:
            return False
        uses = self._uses.get(item, 0)
        if uses < _MOST_USES:
            self._uses[item] = uses + 1
        return True

    def __contains__(self, item: object) -> bool:
        return item in self._main or item in self._small

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    def __iter__(self) -> Iterator[Item]:
        return chain(self._small, self._main)

    def _run(self, items: Sequence[Item], sizes: Sequence[int]) -> tuple[int, int]:
        small, main, ghost, uses_of, capacity_bytes = (
            self._small, self._main, self._ghost, self._uses, self._capacity_bytes
        )  # fmt: skip
        small_bytes, main_bytes, ghost_bytes = self._small_bytes, self._main_bytes, self._ghost_bytes
        small_share, ghost_share = self._small_share, capacity_bytes * _GHOST_SHARE
        main_share = capacity_bytes - small_share
        misses = miss_bytes = 0
        for item, nbytes in zip(items, sizes, strict=True):
            if item in main or item in small:
                uses = uses_of.get(item, 0)
                if uses < _MOST_USES:
                    uses_of[item] = uses + 1
                continue
            misses += 1
            miss_bytes += nbytes
            if nbytes > capacity_bytes:
                continue
            dismissed = item in ghost
            if dismissed:
                ghost_bytes -= ghost.pop(item)
            while small_bytes + main_bytes + nbytes > capacity_bytes:
                self._was_full = True
                from_small = main_bytes <= main_share
                while from_small and small:
                    found, found_bytes = small.popitem(False)
                    small_bytes -= found_bytes
                    if found not in uses_of or uses_of.pop(found) < _USES_TO_STAY:
                        ghost[found] = found_bytes
                        ghost_bytes += found_bytes
                        while ghost_bytes > ghost_share:
                            ghost_bytes -= ghost.popitem(False)[1]
                        break
                    main[found] = found_bytes
                    main_bytes += found_bytes
                else:
                    found, found_bytes = main.popitem(False)
                    while found in uses_of:
                        main[found] = found_bytes
                        uses = uses_of.pop(found)
                        if uses > 1:
                            uses_of[found] = uses - 1
                        found, found_bytes = main.popitem(False)
                    main_bytes -= found_bytes
            if dismissed or nbytes >= small_share or (not self._was_full and small_bytes >= small_share):
                main[item] = nbytes
                main_bytes += nbytes
            else:
                small[item] = nbytes
                small_bytes += nbytes
        self._small_bytes, self._main_bytes, self._ghost_bytes = small_bytes, main_bytes, ghost_bytes
        self._used_bytes = small_bytes + main_bytes
        return misses, miss_bytes

    def _make_room(self, item: Item, nbytes: int) -> list[Item] | None:
        if nbytes > self._capacity_bytes:
            return None
        ghost_bytes = self._ghost.pop(item, None)
        self._was_dismissed = ghost_bytes is not None
        self._ghost_bytes -= ghost_bytes or 0
        return self._shrink(self._capacity_bytes - nbytes)

    def _insert(self, item: Item, nbytes: int) -> None:
        filling = not self._was_full and self._small_bytes >= self._small_share
        if self._was_dismissed or filling or nbytes >= self._small_share:
            self._main[item] = nbytes
            self._main_bytes += nbytes
        else:
            self._small[item] = nbytes
            self._small_bytes += nbytes

    def _take(self, item: Item) -> int:
        self._uses.pop(item, None)
        if item in self._main:
            nbytes = self._main.pop(item)
            self._main_bytes -= nbytes
        else:
            nbytes = self._small.pop(item)
            self._small_bytes -= nbytes
        return nbytes

    def _evict(self) -> tuple[Item, int]:
        self._was_full = True
        small, main, ghost, uses_of = self._small, self._main, self._ghost, self._uses
        if self._main_bytes <= self._capacity_bytes - self._small_share:
            while small:
                item, nbytes = small.popitem(False)
                self._small_bytes -= nbytes
                if item not in uses_of or uses_of.pop(item) < _USES_TO_STAY:
                    ghost[item] = nbytes
                    self._ghost_bytes += nbytes
                    while self._ghost_bytes > self._capacity_bytes * _GHOST_SHARE:
                        self._ghost_bytes -= ghost.popitem(False)[1]
                    return item, nbytes
                main[item] = nbytes
                self._main_bytes += nbytes
        item, nbytes = main.popitem(False)
        while item in uses_of:
            main[item] = nbytes
            uses = uses_of.pop(item)
            if uses > 1:
                uses_of[item] = uses - 1
            item, nbytes = main.popitem(False)
        self._main_bytes -= nbytes
        return item, nbytes

    @property
    def _small_share(self) -> int:
        return int(self._capacity_bytes * _SMALL_SHARE)
