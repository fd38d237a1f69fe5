"""Free space of a block volume: which bytes the next object may take.

Invariant: free runs are disjoint, no two touch, none has a reader, and together with what is taken they are
the whole volume. `python -m bench block` measures why the fit is the best one and not the first.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable


class FreeSpace:
    """Free runs of a volume, in memory. Best fit: the smallest run that is large enough. Not thread-safe."""

    def __init__(self, start: int, stop: int, taken: Iterable[tuple[int, int]]) -> None:
        """All of ``[start, stop)`` but the `taken` (offset, length) pairs.

        Raises:
            ValueError: two of them overlap or one lies outside.
        """
        self.nbytes = 0
        self._starts: list[int] = []
        self._lengths: dict[int, int] = {}
        self._by_length: list[tuple[int, int]] = []
        self._readers: Counter[int] = Counter()
        self._waiting: dict[int, int] = {}
        at = start
        for offset, length in sorted(taken):
            if offset < at or length <= 0 or offset + length > stop:
                raise ValueError(f"extent [{offset}, {offset + length}) overlaps or leaves [{at}, {stop})")
            self.give(at, offset - at)
            at = offset + length
        self.give(at, stop - at)

    @property
    def largest_bytes(self) -> int:
        """Length of the longest run."""
        return self._by_length[-1][0] if self._by_length else 0

    @property
    def runs(self) -> int:
        """How many free runs there are."""
        return len(self._starts)

    @property
    def fragmentation(self) -> float:
        """Share of the free bytes that lies outside of the longest run, 0 to 1."""
        return 1 - self.largest_bytes / self.nbytes if self.nbytes else 0.0

    def take(self, length: int) -> int | None:
        """Offset of `length` bytes that are free no more; None when no run is long enough."""
        at = bisect.bisect_left(self._by_length, (length, 0))
        if at == len(self._by_length):
            return None
        run_bytes, offset = self._by_length[at]
        self._remove(offset)
        self._add(offset + length, run_bytes - length)
        return offset

    def give(self, offset: int, length: int) -> None:
        """Make ``[offset, offset + length)`` free, once the readers of `offset` have let go."""
        if offset in self._readers:
            self._waiting[offset] = length
            return
        if not length:
            return
        at = bisect.bisect_left(self._starts, offset)
        if at < len(self._starts) and self._starts[at] == offset + length:
            length += self._remove(offset + length)
        if at and (before := self._starts[at - 1]) + self._lengths[before] == offset:
            offset, length = before, length + self._remove(before)
        self._add(offset, length)

    def pin(self, offset: int) -> None:
        """Count a reader of the extent at `offset`."""
        self._readers[offset] += 1

    def unpin(self, offset: int) -> None:
        """Let go of it; the last reader frees what was given back meanwhile."""
        self._readers[offset] -= 1
        if not self._readers[offset]:
            del self._readers[offset]
            self.give(offset, self._waiting.pop(offset, 0))

    def _add(self, offset: int, length: int) -> None:
        if length:
            bisect.insort(self._starts, offset)
            self._lengths[offset] = length
            bisect.insort(self._by_length, (length, offset))
            self.nbytes += length

    def _remove(self, offset: int) -> int:
        length = self._lengths.pop(offset)
        del self._starts[bisect.bisect_left(self._starts, offset)]
        del self._by_length[bisect.bisect_left(self._by_length, (length, offset))]
        self.nbytes -= length
        return length
