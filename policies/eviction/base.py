"""The interface of every eviction algorithm, and the bookkeeping they share.

Invariant: used_bytes is the sum of the resident items' sizes and never exceeds capacity_bytes. An object of
this kind decides and holds no data: the same one runs in a simulator and in a node cache. It has no clock and
is not thread-safe.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator
from typing import ClassVar, Generic, TypeVar

from policies.checks import whole

__all__ = ["Eviction", "Item"]

Item = TypeVar("Item", bound=Hashable)
_MOST_BYTES = 1 << 63


class Eviction(ABC, Generic[Item]):
    """Decides which items stay within `capacity_bytes`: ask `hit`, and after a miss call `admit`.

    Raises ValueError for a capacity below 0. Every call is O(1), a call that returns victims O(1) for each of
    them.
    """

    name: ClassVar[str]

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = _capacity(capacity_bytes)
        self._used_bytes = 0

    @property
    def capacity_bytes(self) -> int:
        """The most bytes that may be resident."""
        return self._capacity_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes resident now."""
        return self._used_bytes

    @abstractmethod
    def hit(self, item: Item) -> bool:
        """Return whether the item is resident, and count this as a use of it where it is."""

    def admit(self, item: Item, nbytes: int) -> list[Item] | None:
        """Make an absent item resident and return the victims evicted for it, or None where it is refused.

        An item larger than the capacity is refused and evicts nothing. The victims are gone when this
        returns: the caller deletes their bytes before it stores the item's. Some algorithms give up items at
        other moments, too, and name them among the next victims. Raises ValueError for a resident
        item or nbytes < 0.
        """
        if item in self:
            raise ValueError(f"item {item!r} is resident already; call admit only after hit returned False")
        if nbytes < 0:
            raise ValueError(f"nbytes must be at least 0, not {nbytes}; for example nbytes=67108864")
        victims = self._make_room(item, nbytes)
        if victims is not None:
            self._insert(item, nbytes)
            self._used_bytes += nbytes
        return victims

    def remove(self, item: Item) -> bool:
        """Forget an item that left for another reason, and return whether it was resident."""
        if item not in self:
            return False
        self._used_bytes -= self._take(item)
        return True

    def resize(self, capacity_bytes: int) -> list[Item]:
        """Set the capacity and return the victims that no longer fit; ValueError for a capacity below 0."""
        self._capacity_bytes = _capacity(capacity_bytes)
        return self._shrink(self._capacity_bytes)

    @abstractmethod
    def __contains__(self, item: object) -> bool:
        """Return whether the item is resident, without counting a use."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of resident items."""

    @abstractmethod
    def __iter__(self) -> Iterator[Item]:
        """Yield the resident items, the next victim first where the algorithm has such an order."""

    def _make_room(self, item: Item, nbytes: int) -> list[Item] | None:  # noqa: ARG002
        """Evict until an absent item fits and return the victims, or None, and no victim, to refuse it."""
        if nbytes > self._capacity_bytes:
            return None
        return self._shrink(self._capacity_bytes - nbytes)

    @abstractmethod
    def _insert(self, item: Item, nbytes: int) -> None:
        """Record an item that is absent and fits."""

    @abstractmethod
    def _take(self, item: Item) -> int:
        """Drop a resident item and return its bytes."""

    @abstractmethod
    def _evict(self) -> tuple[Item, int]:
        """Choose a victim, drop it and return it with its bytes; at least one item is resident."""

    def _shrink(self, most_bytes: int) -> list[Item]:
        victims = []
        while self._used_bytes > most_bytes:
            victim, nbytes = self._evict()
            self._used_bytes -= nbytes
            victims.append(victim)
        return victims


def _capacity(capacity_bytes: int) -> int:
    return whole("capacity_bytes", capacity_bytes, least=0, below=_MOST_BYTES, example=500_000_000_000)
