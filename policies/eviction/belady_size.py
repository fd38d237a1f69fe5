"""Belady-Size: the item with the most bytes times requests until its next use leaves; fewest requests.

Source: D. S. Berger, N. Beckmann, M. Harchol-Balter, "Practical bounds on optimal caching with variable
object sizes", POMACS 2018, where it is an offline heuristic beside the bounds (PFOO): an item costs the cache
its bytes for as long as it waits, and earns one hit. Who pays for bytes and not for requests wants
`policies.eviction.belady`: there a hit earns the item's bytes, which cancel.

The cost of two items may change its order while time goes on, so no heap of costs can be kept. Among items of
one size it does not: they lie in classes by size, at most a quarter wide, and the farthest of each class is
compared. The paper draws a sample of items instead. With one size this is Belady.
"""

from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush
from typing import Final

from policies.eviction.base import Item
from policies.eviction.foretold import Foretold

__all__ = ["BeladySize"]

_SPARE: Final = 16
_FOR_EVER: Final = 1 << 62
_CLASS_BITS: Final = 3
"""Leading bits of a size that make its class."""


class BeladySize(Foretold[Item]):
    """Item to bytes, and for each class of sizes a heap of the times of `Foretold`.

    O(log n) a call, and O(classes) for each victim: four for each doubling of the size.
    """

    name = "belady-size"

    def __init__(self, capacity_bytes: int, future: Sequence[Item], *, must_admit: bool = False) -> None:
        super().__init__(capacity_bytes, future, must_admit=must_admit)
        self._heaps: dict[int, list[int]] = {}
        self._most_nodes: dict[int, int] = {}

    def __iter__(self) -> Iterator[Item]:
        """The costliest at this moment first."""
        times = [time for heap in self._heaps.values() for time in heap if self._is_live(time)]
        return (self._item(time) for time in sorted(times, key=lambda time: (-self._cost(time), time)))

    def _yields(self, held: int, time: int, nbytes: int) -> bool:
        return self._cost(held) >= nbytes * (-time - self._now)

    def _cost(self, time: int) -> int:
        wait = _FOR_EVER if time <= self._never else -time - self._now
        return self._nbytes[self._item(time)] * wait

    def _push(self, time: int, nbytes: int) -> None:
        narrow = max(0, nbytes.bit_length() - _CLASS_BITS)
        size_class = nbytes >> narrow << narrow
        heap = self._heaps.setdefault(size_class, [])
        heappush(heap, time)
        if len(heap) > self._most_nodes.get(size_class, _SPARE):
            heap[:] = filter(self._is_live, heap)
            heapify(heap)
            self._most_nodes[size_class] = 2 * len(heap) + _SPARE

    def _pop(self) -> int:
        costliest, most = -1, -1
        for size_class, heap in self._heaps.items():
            while heap and not self._is_live(heap[0]):
                heappop(heap)
            if heap and (cost := self._cost(heap[0])) > most:
                costliest, most = size_class, cost
        return heappop(self._heaps[costliest])
