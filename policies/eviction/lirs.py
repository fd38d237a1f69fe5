"""LIRS: items used again within a short time are kept, judged by how many others were used in between.

Source: S. Jiang, X. Zhang, "LIRS: an efficient low inter-reference recency set replacement policy",
SIGMETRICS 2002, in bytes instead of pages, with the limit of twice the capacity on what the stack remembers.

Words of the paper: LIR items are the hot ones; HIR items are the others, of which the queue holds the
resident ones; the stack orders items by their last use down to the least recent LIR item.
"""

from collections import OrderedDict
from collections.abc import Iterator

from policies.eviction.base import Algorithm, Item

__all__ = ["Lirs"]

_QUEUE_SHARE = 0.01
_REMEMBERED = 2


class _Seen:
    """An item in the stack."""

    __slots__ = ("hot", "nbytes", "resident")

    def __init__(self, nbytes: int, *, hot: bool) -> None:
        self.nbytes, self.hot, self.resident = nbytes, hot, True


class Lirs(Algorithm[Item]):
    """The stack and the queue, least recent first, and the items that the stack only remembers.

    A hit may cool a hot item down, and with sizes that differ another may then have to leave: the next
    `admit` or `resize` names it among its victims. The queue takes a hundredth of the capacity and at least
    the largest item seen, so that a cache of a few large items can hold any.
    """

    name = "lirs"

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._stack: OrderedDict[Item, _Seen] = OrderedDict()
        self._queue: OrderedDict[Item, int] = OrderedDict()
        self._remembered: OrderedDict[Item, None] = OrderedDict()
        self._stack_bytes = self._hot_bytes = self._queue_bytes = 0
        self._largest_bytes = 0
        self._gone: list[Item] = []
        self._set_limits()

    def hit(self, item: Item) -> bool:
        """Return whether the item is resident, and count the use."""
        seen = self._stack.get(item)
        if seen is not None:
            if not seen.resident:
                return False
            self._stack.move_to_end(item)
            if seen.hot:
                self._prune()
            else:
                self._queue_bytes -= self._queue.pop(item)
                self._cool_down(seen.nbytes)
                seen.hot = True
                self._hot_bytes += seen.nbytes
        elif item in self._queue:
            nbytes = self._queue.pop(item)
            self._queue_bytes -= nbytes
            self._cool_down(nbytes, reserved_bytes=nbytes)
            self._queue[item] = nbytes
            self._queue_bytes += nbytes
            self._push(item, nbytes, hot=False)
        else:
            return False
        self._forget_oldest()
        return True

    def resize(self, capacity_bytes: int) -> list[Item]:
        """Set the capacity and return the victims; see `Eviction.resize`."""
        victims = super().resize(capacity_bytes)
        self._set_limits()
        self._forget_oldest()
        return self._all_gone() + victims

    def __contains__(self, item: object) -> bool:
        seen = self._stack.get(item)  # type: ignore[arg-type]  # any object may be asked for
        return item in self._queue or (seen is not None and seen.resident)

    def __len__(self) -> int:
        return len(self._queue) + sum(seen.hot for seen in self._stack.values())

    def __iter__(self) -> Iterator[Item]:
        yield from self._queue
        yield from (item for item, seen in self._stack.items() if seen.hot)

    def _make_room(self, item: Item, nbytes: int) -> list[Item] | None:
        if nbytes > self._capacity_bytes:
            return None
        if nbytes > self._largest_bytes:
            self._largest_bytes = nbytes
            self._set_limits()
        seen = self._stack.get(item)
        if seen is not None:  # remembered: it will be hot
            self._stack.move_to_end(item)
            self._stack_bytes += nbytes - seen.nbytes
            seen.nbytes = nbytes
            self._cool_down(nbytes)
        elif self._hot_bytes + nbytes > self._hot_limit:
            while self._queue and self._queue_bytes + nbytes > self._queue_limit:
                self._drop_first()
        while self._used_bytes + nbytes > self._capacity_bytes:
            victim, victim_bytes = self._evict()
            self._used_bytes -= victim_bytes
            self._gone.append(victim)
        return [victim for victim in self._all_gone() if victim != item]

    def _insert(self, item: Item, nbytes: int) -> None:
        seen = self._stack.get(item)
        if seen is not None:
            self._remembered.pop(item, None)
            seen.hot = seen.resident = True
            self._hot_bytes += nbytes
        elif self._hot_bytes + nbytes <= self._hot_limit:
            self._push(item, nbytes, hot=True)
            self._hot_bytes += nbytes
        else:
            self._push(item, nbytes, hot=False)
            self._queue[item] = nbytes
            self._queue_bytes += nbytes
        self._forget_oldest()

    def _take(self, item: Item) -> int:
        seen = self._stack.pop(item, None)
        if seen is not None:
            self._stack_bytes -= seen.nbytes
            if seen.hot:
                self._hot_bytes -= seen.nbytes
                self._prune()
                return seen.nbytes
        nbytes = self._queue.pop(item)
        self._queue_bytes -= nbytes
        return nbytes

    def _evict(self) -> tuple[Item, int]:
        item = next(iter(self._queue)) if self._queue else next(iter(self))
        return item, self._take(item)

    def _set_limits(self) -> None:
        share = max(int(self._capacity_bytes * _QUEUE_SHARE), self._largest_bytes, 1)
        self._queue_limit = min(share, max(1, self._capacity_bytes))
        self._hot_limit = self._capacity_bytes - self._queue_limit

    def _push(self, item: Item, nbytes: int, *, hot: bool) -> None:
        self._stack[item] = _Seen(nbytes, hot=hot)
        self._stack_bytes += nbytes

    def _cool_down(self, nbytes: int, reserved_bytes: int = 0) -> None:
        """Move the least recent hot items to the queue until `nbytes` more may be hot."""
        while self._hot_bytes and self._hot_bytes + nbytes > self._hot_limit:
            self._prune()
            item, seen = next(iter(self._stack.items()))
            if not seen.hot:
                return
            del self._stack[item]
            self._stack_bytes -= seen.nbytes
            self._hot_bytes -= seen.nbytes
            while self._queue and self._queue_bytes + reserved_bytes + seen.nbytes > self._queue_limit:
                self._drop_first()
            self._queue[item] = seen.nbytes
            self._queue_bytes += seen.nbytes
            self._prune()

    def _drop_first(self) -> None:
        """Evict the first of the queue; the stack remembers it where it is in it."""
        item, nbytes = self._queue.popitem(last=False)
        self._queue_bytes -= nbytes
        self._used_bytes -= nbytes
        self._gone.append(item)
        seen = self._stack.get(item)
        if seen is not None:
            seen.resident = False
            self._remembered[item] = None

    def _prune(self) -> None:
        """Let the stack end with a hot item."""
        while len(self._stack) > 1:
            item, seen = next(iter(self._stack.items()))
            if seen.hot:
                return
            del self._stack[item]
            self._stack_bytes -= seen.nbytes
            self._remembered.pop(item, None)

    def _forget_oldest(self) -> None:
        while self._stack_bytes > _REMEMBERED * self._capacity_bytes and self._remembered:
            item, _ = self._remembered.popitem(last=False)
            self._stack_bytes -= self._stack.pop(item).nbytes

    def _all_gone(self) -> list[Item]:
        gone, self._gone = self._gone, []
        return gone
