"""Expiring: items leave a fixed time after they were admitted, whatever the policy inside thinks of them.

The time is passed in by `advance`, and not by a clock that `hit` would read: an item that expires is a
victim, whose bytes the caller has to delete, and `hit` could name none. And a simulator may run a year in a
second.
"""

from collections import OrderedDict

from policies.eviction.base import Eviction, Item
from policies.eviction.wrapper import Wrapper

__all__ = ["Expiring"]


class Expiring(Wrapper[Item]):
    """Wraps a policy; `ttl_seconds` after its admission an item leaves. Uses do not prolong its stay.

    Items that the policy holds already count as admitted at `now_seconds`, the time of any epoch from which
    `advance` goes on. Raises ValueError for a ttl that is not above 0.
    """

    name = "expiring"

    def __init__(self, inside: Eviction[Item], ttl_seconds: float, now_seconds: float = 0.0) -> None:
        if not ttl_seconds > 0:
            raise ValueError(
                f"ttl_seconds must be above 0, not {ttl_seconds}; for example ttl_seconds=86400 for a day"
            )
        super().__init__(inside)
        self._ttl_seconds, self._now_seconds = ttl_seconds, now_seconds
        self._ends = OrderedDict.fromkeys(inside, now_seconds + ttl_seconds)  # in seconds, soonest first

    def advance(self, now_seconds: float) -> list[Item]:
        """Set the time and return the victims: those admitted `ttl_seconds` ago or earlier.

        Raises ValueError for a time before the last one.
        """
        if not now_seconds >= self._now_seconds:
            raise ValueError(
                f"now_seconds must be at least {self._now_seconds}, the last time, not {now_seconds}; "
                f"for example advance({self._now_seconds + 1})"
            )
        self._now_seconds = now_seconds
        expired = []
        while self._ends and next(iter(self._ends.values())) <= now_seconds:
            item, _ = self._ends.popitem(last=False)
            if self._inside.remove(item):  # else it left, and is named among the next victims
                expired.append(item)
        return expired

    def admit(self, item: Item, nbytes: int) -> list[Item] | None:
        """Make an absent item resident until its time is up; see `Eviction.admit`."""
        victims = self._inside.admit(item, nbytes)
        if victims is not None:
            self._forget([*victims, item])
            self._ends[item] = self._now_seconds + self._ttl_seconds
        return victims

    def remove(self, item: Item) -> bool:
        """Forget an item that left for another reason, and return whether it was resident."""
        self._forget([item])
        return self._inside.remove(item)

    def resize(self, capacity_bytes: int) -> list[Item]:
        """Set the capacity and return the victims; see `Eviction.resize`."""
        victims = self._inside.resize(capacity_bytes)
        self._forget(victims)
        return victims

    def _forget(self, items: list[Item]) -> None:
        for item in items:
            self._ends.pop(item, None)
