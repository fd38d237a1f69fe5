"""Belady: the item whose next use is farthest away leaves; for those who know the future.

Source: L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal
1966; with refusal, R. L. Mattson et al., "Evaluation techniques for storage hierarchies", IBM Systems Journal
1970. With items of one size no policy has fewer misses; with sizes that vary, finding the best is NP-hard.
"""

from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush
from typing import Final

from policies.eviction.base import Item
from policies.eviction.foretold import Foretold, next_uses

__all__ = ["Belady", "next_uses"]

_SPARE: Final = 64


class Belady(Foretold[Item]):
    """Item to bytes, and a heap of the times of `Foretold`, the farthest first; O(log n) a call."""

    name = "belady"

    def __init__(self, capacity_bytes: int, future: Sequence[Item], *, must_admit: bool = False) -> None:
        super().__init__(capacity_bytes, future, must_admit=must_admit)
        self._heap: list[int] = []
        self._most_nodes = _SPARE

    def __iter__(self) -> Iterator[Item]:
        return (self._item(time) for time in sorted(filter(self._is_live, self._heap)))

    def _run(self, items: Sequence[Item], sizes: Sequence[int]) -> tuple[int, int]:
        now = self._now
        foretold = slice(now + 1, now + 1 + len(items))
        if self._future[foretold] != list(items):
            return super()._run(items, sizes)  # which tells the request that was not foretold
        held, heap, times, capacity_bytes = (
            self._nbytes, self._heap, self._times[foretold], self._capacity_bytes
        )  # fmt: skip
        misses = miss_bytes = 0
        for item, nbytes, time in zip(items, sizes, times, strict=True):
            now += 1
            if item not in held:
                misses += 1
                miss_bytes += nbytes
                if nbytes > capacity_bytes or (time <= self._never and not self._must_admit):
                    continue
                if self._used_bytes + nbytes > capacity_bytes:
                    if heap[0] > time and not self._must_admit:
                        continue
                    self._now = now
                    if self._displace(time, nbytes) is None:
                        continue
                held[item] = nbytes
                self._used_bytes += nbytes
            heappush(heap, time)
            if len(heap) > self._most_nodes:
                self._now = now
                self._forget_the_past()
        self._now = now
        return misses, miss_bytes

    def _yields(self, held: int, time: int, nbytes: int) -> bool:  # noqa: ARG002
        return held < time

    def _push(self, time: int, nbytes: int) -> None:  # noqa: ARG002
        heappush(self._heap, time)
        if len(self._heap) > self._most_nodes:
            self._forget_the_past()

    def _pop(self) -> int:
        time = heappop(self._heap)
        while not self._is_live(time):
            time = heappop(self._heap)
        return time

    def _forget_the_past(self) -> None:
        now = -self._now
        self._heap[:] = [time for time in self._heap if time < now]
        heapify(self._heap)
        self._most_nodes = 2 * len(self._heap) + _SPARE
