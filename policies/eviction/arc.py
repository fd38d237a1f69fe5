"""ARC: two LRU queues, of items used once and of items used again, and a share between them that adapts.

Source: N. Megiddo, D. S. Modha, "ARC: a self-tuning, low overhead replacement cache", FAST 2003, figure 4, in
bytes instead of pages. Names as there: t1, t2 hold resident items, b1, b2 the ghosts of those they lost.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic

from policies.eviction.base import Algorithm, Item

__all__ = ["Arc"]


class Arc(Algorithm[Item]):
    """Four queues of item to bytes, least recently used first; `_t1_target` is the paper's p, in bytes."""

    name = "arc"

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._t1, self._t2, self._b1, self._b2 = (_Queue[Item]() for _ in range(4))
        self._t1_target: float = 0
        self._again = False  # whether the item that comes in now was known

    def hit(self, item: Item) -> bool:
        """Return whether the item is resident, and make it the last of those used again."""
        if item in self._t2.items:
            self._t2.items.move_to_end(item)
            return True
        nbytes = self._t1.drop(item)
        if nbytes is None:
            return False
        self._t2.append(item, nbytes)
        return True

    def __contains__(self, item: object) -> bool:
        return item in self._t1.items or item in self._t2.items

    def __len__(self) -> int:
        return len(self._t1.items) + len(self._t2.items)

    def __iter__(self) -> Iterator[Item]:
        yield from self._t1.items
        yield from self._t2.items

    def _make_room(self, item: Item, nbytes: int) -> list[Item] | None:
        if nbytes > self._capacity_bytes:
            return None
        in_b2 = item in self._b2.items
        self._again = in_b2 or item in self._b1.items
        if in_b2:
            step = max(self._b1.nbytes / max(1, self._b2.nbytes), 1)
            self._t1_target = max(self._t1_target - step, 0)
            self._b2.drop(item)
        elif self._again:
            step = max(self._b2.nbytes / max(1, self._b1.nbytes), 1)
            self._t1_target = min(self._t1_target + step, self._capacity_bytes)
            self._b1.drop(item)
        victims = []
        while self._used_bytes + nbytes > self._capacity_bytes:
            victim, victim_bytes = self._replace(in_b2) if self._again else self._discard(nbytes)
            self._used_bytes -= victim_bytes
            victims.append(victim)
        return victims

    def _discard(self, nbytes: int) -> tuple[Item, int]:
        """Case IV of the paper: forget a ghost where there are too many, and evict."""
        seen_once_bytes = self._t1.nbytes + self._b1.nbytes
        if seen_once_bytes + nbytes > self._capacity_bytes:
            if not self._b1.items:
                return self._t1.pop()
            self._b1.pop()
        elif seen_once_bytes + self._t2.nbytes + self._b2.nbytes >= 2 * self._capacity_bytes:
            self._b2.pop()
        return self._replace(in_b2=False)

    def _replace(self, in_b2: bool) -> tuple[Item, int]:
        """REPLACE of the paper: evict from the queue that is over its share, and remember a ghost."""
        over = self._t1.nbytes > self._t1_target or (in_b2 and self._t1.nbytes == self._t1_target)
        first = not self._t2.items or (self._t1.items and over)
        queue, ghosts = (self._t1, self._b1) if first else (self._t2, self._b2)
        victim = queue.pop()
        ghosts.append(*victim)
        return victim

    def _insert(self, item: Item, nbytes: int) -> None:
        (self._t2 if self._again else self._t1).append(item, nbytes)

    def _take(self, item: Item) -> int:
        return self._t1.drop(item) or self._t2.drop(item) or 0

    def _evict(self) -> tuple[Item, int]:
        """For `resize` alone: ghosts and target shrink with the cache."""
        self._t1_target = min(self._t1_target, self._capacity_bytes)
        victim = self._replace(in_b2=False)
        while self._b1.nbytes + self._b2.nbytes > self._capacity_bytes:
            (self._b1 if self._b1.items else self._b2).pop()
        return victim


class _Queue(Generic[Item]):
    """Item to bytes, oldest first, and their sum."""

    def __init__(self) -> None:
        self.items: OrderedDict[Item, int] = OrderedDict()
        self.nbytes = 0

    def append(self, item: Item, nbytes: int) -> None:
        self.items[item] = nbytes
        self.nbytes += nbytes

    def pop(self) -> tuple[Item, int]:
        item, nbytes = self.items.popitem(last=False)
        self.nbytes -= nbytes
        return item, nbytes

    def drop(self, item: Item) -> int | None:
        nbytes = self.items.pop(item, None)
        self.nbytes -= nbytes or 0
        return nbytes
