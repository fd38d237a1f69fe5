"""The interface of every cache policy, and the bookkeeping that the algorithms share.

Invariant: used_bytes is the sum of the resident items' sizes and never exceeds capacity_bytes. An object of
this kind decides and holds no data: the same one runs in a simulator and in a node cache. It has no clock and
is not thread-safe.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from typing import ClassVar, Generic, TypeVar

from policies.checks import whole

__all__ = ["Algorithm", "Eviction", "Item", "absent", "checked_capacity"]

Item = TypeVar("Item", bound=Hashable)
_MOST_BYTES = 1 << 63


class Eviction(ABC, Generic[Item]):
    """Decides which items stay within `capacity_bytes`: ask `hit`, and after a miss call `admit`."""

    name: ClassVar[str]

    @property
    @abstractmethod
    def capacity_bytes(self) -> int:
        """The most bytes that may be resident."""

    @property
    @abstractmethod
    def used_bytes(self) -> int:
        """Bytes resident now."""

    @abstractmethod
    def hit(self, item: Item) -> bool:
        """Return whether the item is resident, and count this as a use of it where it is."""

    @abstractmethod
    def admit(self, item: Item, nbytes: int) -> list[Item] | None:
        """Make an absent item resident and return the victims evicted for it, or None where it is refused.

        An item larger than the capacity is refused and evicts nothing. The victims are gone when this
        returns: the caller deletes their bytes before it stores the item's. Some algorithms give up items at
        other moments, too, and name them among the next victims. Raises ValueError for a resident
        item or nbytes < 0.
        """

    @abstractmethod
    def remove(self, item: Item) -> bool:
        """Forget an item that left for another reason, and return whether it was resident."""

    @abstractmethod
    def resize(self, capacity_bytes: int) -> list[Item]:
        """Set the capacity and return the victims that no longer fit; ValueError for a capacity below 0."""

    @abstractmethod
    def __contains__(self, item: object) -> bool:
        """Return whether the item is resident, without counting a use."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of resident items."""

    @abstractmethod
    def __iter__(self) -> Iterator[Item]:
        """Yield the resident items, the next victim first where the algorithm has such an order."""

    def run(self, items: Sequence[Item], sizes: Sequence[int]) -> tuple[int, int]:
        """Serve requests in turn, admit what is missed, and return how many were missed and their bytes.

        For those that hold no data: it leaves the policy as `hit` and `admit` would, and names no victim.
        Raises ValueError, before anything changes, for as many sizes as there are not items and sizes < 0.
        """
        if len(items) != len(sizes):
            raise ValueError(
                f"sizes must be as many as items, {len(items)}, not {len(sizes)}; e.g. run([7], [4096])"
            )
        if len(sizes) and min(sizes) < 0:
            raise ValueError(f"sizes must be at least 0, not {min(sizes)}; e.g. run([7], [4096])")
        return self._run(items, sizes)

    def _run(self, items: Sequence[Item], sizes: Sequence[int]) -> tuple[int, int]:
        """`run` of checked arguments; algorithms with a faster loop than this one override it."""
        hit, admit = self.hit, self.admit
        misses = miss_bytes = 0
        for item, nbytes in zip(items, sizes, strict=True):
            if not hit(item):
                misses += 1
                miss_bytes += nbytes
                admit(item, nbytes)
        return misses, miss_bytes


class Algorithm(Eviction[Item]):
    """Evicts by one rule; the rule is what subclasses write.

    Raises ValueError for a capacity below 0. Every call is O(1), a call that returns victims O(1) for each of
    them, unless the algorithm says otherwise.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = checked_capacity(capacity_bytes)
        self._used_bytes = 0

    @property
    def capacity_bytes(self) -> int:
        """The most bytes that may be resident."""
        return self._capacity_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes resident now."""
        return self._used_bytes

    def admit(self, item: Item, nbytes: int) -> list[Item] | None:
        """Make an absent item resident; see `Eviction.admit`."""
        absent(self, item, nbytes)
        victims = self._make_room(item, nbytes)
        if victims is not None:
            self._insert(item, nbytes)
            self._used_bytes += nbytes
        return victims

    def _run(self, items: Sequence[Item], sizes: Sequence[int]) -> tuple[int, int]:
        hit, make_room, insert = self.hit, self._make_room, self._insert
        misses = miss_bytes = 0
        for item, nbytes in zip(items, sizes, strict=True):
            if not hit(item):
                misses += 1
                miss_bytes += nbytes
                if make_room(item, nbytes) is not None:
                    insert(item, nbytes)
                    self._used_bytes += nbytes
        return misses, miss_bytes

    def remove(self, item: Item) -> bool:
        """Forget an item that left for another reason, and return whether it was resident."""
        if item not in self:
            return False
        self._used_bytes -= self._take(item)
        return True

    def resize(self, capacity_bytes: int) -> list[Item]:
        """Set the capacity and return the victims that no longer fit; ValueError for a capacity below 0."""
        self._capacity_bytes = checked_capacity(capacity_bytes)
        return self._shrink(self._capacity_bytes)

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


def absent(policy: Eviction[Item], item: Item, nbytes: int) -> None:
    """Raise ValueError where `admit` may not be called: for a resident item and for nbytes < 0."""
    if item in policy:
        raise ValueError(f"item {item!r} is resident already; call admit only after hit returned False")
    if nbytes < 0:
        raise ValueError(f"nbytes must be at least 0, not {nbytes}; for example nbytes=67108864")


def checked_capacity(capacity_bytes: int) -> int:
    """Return the capacity; ValueError for one below 0."""
    return whole("capacity_bytes", capacity_bytes, least=0, below=_MOST_BYTES, example=500_000_000_000)
