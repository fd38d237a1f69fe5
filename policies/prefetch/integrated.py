"""Prefetching and caching decided together: the whole capacity is one room, and the known order rules it.

The four rules of Cao, Felten, Karlin and Li, which an optimal schedule never needs to break: optimal
prefetching (fetch the missing item that is needed next), optimal replacement (evict the one whose next
use is farthest), do no harm (never evict what is needed before the item fetched) and first opportunity
(never put off what could have been done before). With one slot, items of one size and an unbounded
lookahead this is their Aggressive, whose elapsed time is at most min(1 + F/k, 2) times the least there
is, for F requests' time a fetch and k items of cache. With a bounded lookahead less is evicted early, so
less is fetched again.
"""

import heapq
from collections.abc import Sequence
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from policies.eviction.base import Item, checked_capacity
from policies.prefetch.base import Prefetcher
from policies.prefetch.lookahead import Lookahead

__all__ = ["Integrated"]

_SPARE: Final = 64


class Integrated(Prefetcher[Item]):
    """Item to bytes, and a heap of the next uses of what may be evicted; a request's number tells its item.

    An item that is not used again leaves before all others. Time O(log n) a request and a fetch.
    """

    name: ClassVar[str] = "integrated"

    def __init__(
        self,
        future: Sequence[Item],
        sizes: int | Sequence[int] | npt.NDArray[np.integer],
        capacity_bytes: int,
        *,
        slots: int = 8,
        lookahead: Lookahead | int,
        demand_slots: int | None = None,
    ) -> None:
        super().__init__(
            future, sizes, capacity_bytes, slots=slots, lookahead=lookahead, demand_slots=demand_slots
        )
        self._held: dict[Item, int] = {}
        one_size = dict(zip(future, self._sizes, strict=True))
        if any(one_size[item] != nbytes for item, nbytes in zip(future, self._sizes, strict=True)):
            raise ValueError("sizes must be the same for every request of an item; e.g. the largest it has")
        self._uses: list[int] = []  # minus the next use of items held and not being read; outdated ones too
        self._spent: list[Item] = []  # held, and never used again
        self._again = -1  # the next use of what is being read; -1: nothing is, or it is not held
        self._prefetched = bytearray(len(future))  # 1 for a request that something was prefetched for
        self._used_bytes = 0

    def _take(self, item: Item, cursor: int, *, first: bool) -> bool:
        if first and (again := self._again) >= 0:
            self._again = -1
            if again < len(self._future):
                self._push(again)
            else:
                self._spent.append(self._future[cursor - 1])
        if item in self._held:
            self._again = self._following[cursor]
            return True
        return self._passed_by(item, cursor)

    def _present(self, item: Item) -> bool:
        return item in self._held or item in self._flying

    def _room(self, nbytes: int, position: int) -> list[Item] | None:
        missing_bytes = self._used_bytes + nbytes - self._capacity_bytes
        if missing_bytes <= 0:
            self._used_bytes += nbytes
            return []
        victims = self._evict(missing_bytes, position) if nbytes <= self._capacity_bytes else None
        if victims is not None:
            self._used_bytes += nbytes
        return victims

    def resize(self, capacity_bytes: int) -> list[Item]:
        """Set the capacity and return the victims; as in the base class."""
        self._capacity_bytes = self._most_bytes = checked_capacity(capacity_bytes)
        self._look_at_all_again()
        victims: list[Item] = []
        while self._used_bytes > self._capacity_bytes and (more := self._evict(1, self._cursor - 1)):
            victims += more
        return victims

    def _evict(self, missing_bytes: int, position: int) -> list[Item] | None:
        """Evict so many bytes of what is needed after `position`; None, and nothing, where there is less."""
        held, spent, uses, future = self._held, self._spent, self._uses, self._future
        victims: list[Item] = []
        passed: list[int] = []
        while missing_bytes > 0:
            if len(victims) < len(spent):
                victim = spent[-1 - len(victims)]
            elif uses and uses[0] < -position:
                passed.append(heapq.heappop(uses))
                victim = future[-passed[-1]]
            else:
                for use in passed:
                    heapq.heappush(uses, use)
                return None
            victims.append(victim)
            missing_bytes -= held[victim]
        for use in passed:
            self._look_again(-use)
            if self._prefetched[-use]:
                self._wasted_bytes += held[future[-use]]
        del spent[len(spent) - len(victims) + len(passed) :]
        for victim in victims:
            self._used_bytes -= held.pop(victim)
        return victims

    def _demand(self, item: Item, cursor: int) -> list[Item] | None:  # noqa: ARG002
        return self._room(self._sizes[cursor], cursor)

    def _keep(self, item: Item, nbytes: int, position: int) -> None:
        self._held[item] = nbytes
        self._prefetched[position] = 1
        self._push(position)

    def _give_up(self, item: Item, nbytes: int) -> None:  # noqa: ARG002
        self._used_bytes -= nbytes

    def _occupied(self) -> int:
        return self._used_bytes

    def _push(self, use: int) -> None:
        uses = self._uses
        heapq.heappush(uses, -use)
        if len(uses) > 2 * len(self._held) + _SPARE:
            self._uses = [use for use in uses if -use >= self._cursor]
            heapq.heapify(self._uses)
