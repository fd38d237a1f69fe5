"""What the policies that know every request to come have in common."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Final

from policies.eviction.base import Algorithm, Item

__all__ = ["NEVER", "Foretold", "follow", "next_uses"]

NEVER: Final = 1 << 62
"""Later than every request."""


def next_uses(future: Sequence[Item]) -> list[int]:
    """For each request the position of the next one for the same item; 2**62 where there is none. O(n)."""
    return [-time if time > -len(future) else NEVER for time in _times(future)]


def follow(future: Sequence[Item], now: int, item: Item) -> int:
    """Return the position after `now`; ValueError where another item than this one was foretold there."""
    now += 1
    if now >= len(future) or future[now] != item:
        foretold = repr(future[now]) if now < len(future) else "nothing more"
        raise ValueError(f"request {now} is for {item!r}, and {foretold} was foretold")
    return now


def _times(future: Sequence[Item]) -> list[int]:
    """For each request the position of the next one, or its own after the end; negative, for a heap."""
    times: list[int] = []
    seen: dict[Item, int] = {}
    count = len(future)
    for time, item in zip(range(1 - count, 1), reversed(future), strict=True):
        times.append(seen.get(item, time - count))
        seen[item] = time
    times.reverse()
    return times


class Foretold(Algorithm[Item]):
    """Follows the future: every request to come, in order; each call of `hit` is the next of them.

    An item that is not used again before all of its victims is refused, unless `must_admit`; any other than
    that of the last request is refused always, for when it is used next is not known.

    A time is the position of a next use, negative for a heap; that of an item never used again is the
    position of its last use after the end. So each belongs to one item, and in a heap those that have passed
    lie below those to come.
    """

    def __init__(self, capacity_bytes: int, future: Sequence[Item], *, must_admit: bool = False) -> None:
        super().__init__(capacity_bytes)
        self._future = list(future)
        self._times = _times(self._future)
        self._never = -len(self._future)  # and all below
        self._must_admit = must_admit
        self._now = -1
        self._nbytes: dict[Item, int] = {}

    def hit(self, item: Item) -> bool:
        """Return whether the item is resident; ValueError where another request was foretold."""
        self._now = follow(self._future, self._now, item)
        nbytes = self._nbytes.get(item)
        if nbytes is None:
            return False
        self._push(self._times[self._now], nbytes)
        return True

    def __contains__(self, item: object) -> bool:
        return item in self._nbytes

    def __len__(self) -> int:
        return len(self._nbytes)

    def _make_room(self, item: Item, nbytes: int) -> list[Item] | None:
        if nbytes > self._capacity_bytes or self._now < 0 or self._future[self._now] != item:
            return None
        time = self._times[self._now]
        if time <= self._never and not self._must_admit:
            return None
        return self._displace(time, nbytes)

    def _insert(self, item: Item, nbytes: int) -> None:
        self._nbytes[item] = nbytes
        self._push(self._times[self._now], nbytes)

    def _take(self, item: Item) -> int:
        return self._nbytes.pop(item)

    def _evict(self) -> tuple[Item, int]:
        victim = self._item(self._pop())
        return victim, self._take(victim)

    def _displace(self, time: int, nbytes: int) -> list[Item] | None:
        """Evict until an item used at `time` fits; None, and no victim, where one is worth more than it."""
        times: list[int] = []
        used_bytes = self._used_bytes
        while used_bytes + nbytes > self._capacity_bytes:
            times.append(self._pop())
            if not self._must_admit and not self._yields(times[-1], time, nbytes):
                for held in times:
                    self._push(held, self._nbytes[self._item(held)])
                return None
            used_bytes -= self._nbytes[self._item(times[-1])]
        self._used_bytes = used_bytes
        victims = [self._item(held) for held in times]
        for victim in victims:
            del self._nbytes[victim]
        return victims

    @abstractmethod
    def _push(self, time: int, nbytes: int) -> None:
        """Record when a resident item is used next."""

    @abstractmethod
    def _pop(self) -> int:
        """Take away the time of the resident item that is worth least; there is one."""

    @abstractmethod
    def _yields(self, held: int, time: int, nbytes: int) -> bool:
        """Whether the item of one time is worth less than one of so many bytes that is used at `time`."""

    def _item(self, time: int) -> Item:
        return self._future[-time % len(self._future)]

    def _is_live(self, time: int) -> bool:
        """Whether it has not passed, and its item was not removed."""
        return -time > self._now and self._item(time) in self._nbytes
