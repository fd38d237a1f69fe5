"""Belady: the item whose next use is farthest away leaves; for those who know the future.

Source: L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal
1966; with refusal, R. L. Mattson et al., "Evaluation techniques for storage hierarchies", IBM Systems Journal
1970. With items of one size no policy has fewer misses; with sizes that vary, finding the best is NP-hard.
"""

import heapq
from collections.abc import Iterator, Sequence
from typing import Final

from policies.eviction.base import Eviction, Item

__all__ = ["Belady", "next_uses"]

_SPARE: Final = 64
_NEVER: Final = 1 << 62


def next_uses(future: Sequence[Item]) -> list[int]:
    """For each request the position of the next one for the same item; 2**62 where there is none. O(n)."""
    following = [_NEVER] * len(future)
    seen: dict[Item, int] = {}
    for position in range(len(future) - 1, -1, -1):
        item = future[position]
        following[position] = seen.get(item, _NEVER)
        seen[item] = position
    return following


class Belady(Eviction[Item]):
    """Item to [bytes, next use], and a heap, the farthest first, whose outdated nodes are passed over.

    future: every request to come, in order; each call of `hit` is the next of them. An item that is not used
    again before all of its victims is refused, unless `must_admit`.
    """

    name = "belady"

    def __init__(self, capacity_bytes: int, future: Sequence[Item], *, must_admit: bool = False) -> None:
        super().__init__(capacity_bytes)
        self._future = future
        self._next = next_uses(future)
        self._must_admit = must_admit
        self._now = -1
        self._entries: dict[Item, list[int]] = {}
        self._heap: list[tuple[int, Item]] = []

    def hit(self, item: Item) -> bool:
        """Return whether the item is resident; ValueError where another request was foretold."""
        now = self._now + 1
        if now >= len(self._future) or self._future[now] != item:
            foretold = repr(self._future[now]) if now < len(self._future) else "nothing more"
            raise ValueError(f"request {now} is for {item!r}, and {foretold} was foretold")
        self._now = now
        entry = self._entries.get(item)
        if entry is None:
            return False
        entry[1] = self._next[now]
        self._push(item, entry)
        return True

    def __contains__(self, item: object) -> bool:
        return item in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Item]:
        return iter(sorted(self._entries, key=lambda item: self._entries[item][1], reverse=True))

    def _make_room(self, item: Item, nbytes: int) -> list[Item] | None:  # noqa: ARG002
        if nbytes > self._capacity_bytes:
            return None
        again = self._next[self._now] if self._now >= 0 else _NEVER
        if again == _NEVER and not self._must_admit:
            return None
        victims: list[tuple[Item, int]] = []
        missing_bytes = self._used_bytes + nbytes - self._capacity_bytes
        while missing_bytes > 0:
            victim, victim_again = self._farthest()
            if victim_again <= again and not self._must_admit:
                for kept, kept_again in victims:
                    heapq.heappush(self._heap, (-kept_again, kept))
                return None
            heapq.heappop(self._heap)
            victims.append((victim, victim_again))
            missing_bytes -= self._entries[victim][0]
        for victim, _ in victims:
            self._used_bytes -= self._entries.pop(victim)[0]
        return [victim for victim, _ in victims]

    def _insert(self, item: Item, nbytes: int) -> None:
        entry = self._entries[item] = [nbytes, self._next[self._now] if self._now >= 0 else _NEVER]
        self._push(item, entry)

    def _take(self, item: Item) -> int:
        return self._entries.pop(item)[0]

    def _evict(self) -> tuple[Item, int]:
        victim, _ = self._farthest()
        heapq.heappop(self._heap)
        return victim, self._take(victim)

    def _farthest(self) -> tuple[Item, int]:
        while True:
            again, item = self._heap[0]
            entry = self._entries.get(item)
            if entry is not None and entry[1] == -again:
                return item, -again
            heapq.heappop(self._heap)

    def _push(self, item: Item, entry: list[int]) -> None:
        heapq.heappush(self._heap, (-entry[1], item))
        if len(self._heap) > 2 * len(self._entries) + _SPARE:
            self._heap = [(-again, known) for known, (_, again) in self._entries.items()]
            heapq.heapify(self._heap)
