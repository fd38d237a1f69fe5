"""What a shared cache knows of one reader and of one item: when it is needed, and who pays for it."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Final, Generic

from policies.checks import number
from policies.eviction.base import Item
from policies.eviction.foretold import NEVER, follow, next_uses
from policies.eviction.parts import Parts

__all__ = ["Entry", "Reading"]

_SPARE: Final = 64


class Reading(Generic[Item]):
    """A reader's future and where it is in it, what is kept for it, and its account.

    Invariant: of what is kept for it, each item has a node in the heap at the position of its next use.
    """

    def __init__(self, future: Sequence[Item], requests_per_second: float, share: float) -> None:
        self.share = share
        self.pace(requests_per_second)
        self.held = Parts()
        self.fetched = Parts()
        self.served_bytes = 0
        self._future = list(future)
        self._following = next_uses(self._future)
        self._now = -1
        self._next = {item: position for position, item in reversed([*enumerate(self._future)])}
        self._heap: list[int] = []  # positions, negative: the farthest first
        self._most_nodes = _SPARE

    def pace(self, requests_per_second: float) -> None:
        """Set the speed; ValueError for one that is not above 0."""
        number("requests_per_second", requests_per_second, above=0, example=12.5)
        self._requests_per_second = requests_per_second

    def follow(self, item: Item) -> None:
        """Go on to the next request; ValueError where another was foretold."""
        self._now = follow(self._future, self._now, item)
        again = self._following[self._now]
        if again < NEVER:
            self._next[item] = again
        else:
            del self._next[item]

    def is_at(self, item: Item) -> bool:
        """Whether the last request was for this item."""
        return self._now >= 0 and self._future[self._now] == item

    def wants(self, item: Item) -> bool:
        """Whether it will use the item."""
        return item in self._next

    def wanted(self, items: Container[Item]) -> list[Item]:
        """Those of the items that it will use."""
        return [item for item in self._next if item in items]

    def wait_seconds(self, item: Item) -> float:
        """How long until it uses an item that it wants."""
        return (self._next[item] - self._now) / self._requests_per_second

    def push(self, item: Item, resident: Container[Item]) -> None:
        """Keep a resident item for this reader, which wants it."""
        heappush(self._heap, -self._next[item])
        if len(self._heap) > self._most_nodes:
            self._heap = [node for node in set(self._heap) if self._is_current(node, resident)]
            heapify(self._heap)
            self._most_nodes = 2 * len(self._heap) + _SPARE

    def farthest(self, resident: Container[Item]) -> Item | None:
        """Of the resident items kept for it, the one it uses last."""
        while self._heap:
            if self._is_current(self._heap[0], resident):
                return self._future[-self._heap[0]]
            heappop(self._heap)
        return None

    def pop(self) -> None:
        """No longer keep the item that `farthest` named."""
        heappop(self._heap)

    def _is_current(self, node: int, resident: Container[Item]) -> bool:
        item = self._future[-node]
        return item in resident and self._next.get(item) == -node


@dataclass(slots=True, eq=False)
class Entry(Generic[Item]):
    """A resident item: whom it is charged to, and whom it served since it came in."""

    nbytes: int
    charged: list[Reading[Item]] = field(default_factory=list)
    served: list[Reading[Item]] = field(default_factory=list)

    def charge(self, readers: list[Reading[Item]]) -> None:
        """Charge the room to these readers in equal parts, instead of to those before."""
        for reader in self.charged:
            reader.held.add(-self.nbytes, len(self.charged))
        for reader in readers:
            reader.held.add(self.nbytes, len(readers))
        self.charged = readers

    def serve(self, reader: Reading[Item]) -> None:
        """Count a request, and divide the fetch among all who were served by it."""
        reader.served_bytes += self.nbytes
        if reader not in self.served:
            for one in self.served:
                one.fetched.add(-self.nbytes, len(self.served))
            self.served.append(reader)
            for one in self.served:
                one.fetched.add(self.nbytes, len(self.served))
