"""Pinning: chosen items stay whatever the policy inside thinks of them, which decides about the others."""

from collections.abc import Iterator
from itertools import chain

from policies.eviction.base import Eviction, Item, absent
from policies.eviction.wrapper import Wrapper

__all__ = ["Pinning"]


class Pinning(Wrapper[Item]):
    """Wraps a policy; items between `pin` and `unpin` are never victims. `remove` removes them all the same.

    Pinned items are taken out of the policy inside, with their share of the capacity: what they leave of it
    is all that others get, who are refused when they do not fit there. An item that is unpinned comes back
    into the policy as if it were admitted at that moment.
    """

    name = "pinning"

    def __init__(self, inside: Eviction[Item]) -> None:
        super().__init__(inside)
        self._capacity_bytes = inside.capacity_bytes
        self._pinned: set[Item] = set()
        self._nbytes: dict[Item, int] = {}  # of those pinned items that are resident
        self._pinned_bytes = 0
        self._gone: list[Item] = []  # evicted by a call that could not say so

    @property
    def capacity_bytes(self) -> int:
        """The most bytes that may be resident, pinned ones included."""
        return self._capacity_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes resident now, pinned ones included."""
        return self._inside.used_bytes + self._pinned_bytes

    @property
    def pinned_bytes(self) -> int:
        """Bytes of resident items that are pinned."""
        return self._pinned_bytes

    def pin(self, item: Item) -> None:
        """Keep the item from now on, or from its next admission on where it is not resident."""
        self._pinned.add(item)
        used_bytes = self._inside.used_bytes
        if self._inside.remove(item):
            self._keep(item, used_bytes - self._inside.used_bytes)

    def unpin(self, item: Item) -> list[Item]:
        """Leave the item to the policy inside, and return the victims: it is one itself if it is refused."""
        self._pinned.discard(item)
        nbytes = self._nbytes.get(item)
        if nbytes is None:
            return self._all_gone()
        self._let_go(item)
        victims = self._inside.admit(item, nbytes)
        return self._all_gone() + ([item] if victims is None else victims)

    def hit(self, item: Item) -> bool:
        """Return whether the item is resident, and count the use; the policy inside hears of all requests."""
        return self._inside.hit(item) or item in self._nbytes

    def admit(self, item: Item, nbytes: int) -> list[Item] | None:
        """Make an absent item resident; see `Eviction.admit`. A pinned one is refused only by pinned ones."""
        absent(self, item, nbytes)
        if item not in self._pinned:
            victims = self._inside.admit(item, nbytes)
            return None if victims is None else self._all_gone(item) + victims
        if self._pinned_bytes + nbytes > self._capacity_bytes:
            return None
        self._keep(item, nbytes)
        return self._all_gone(item)

    def remove(self, item: Item) -> bool:
        """Forget an item that left for another reason, and return whether it was resident; see `pin`."""
        if item not in self._nbytes:
            return self._inside.remove(item)
        self._let_go(item)
        return True

    def resize(self, capacity_bytes: int) -> list[Item]:
        """Set the capacity and return the victims; ValueError for one below the pinned bytes."""
        if capacity_bytes < self._pinned_bytes:
            raise ValueError(
                f"capacity_bytes must be at least {self._pinned_bytes}, the bytes that are pinned, "
                f"not {capacity_bytes}; for example unpin some first"
            )
        self._gone += self._inside.resize(capacity_bytes - self._pinned_bytes)
        self._capacity_bytes = capacity_bytes
        return self._all_gone()

    def __contains__(self, item: object) -> bool:
        return item in self._nbytes or item in self._inside

    def __len__(self) -> int:
        return len(self._inside) + len(self._nbytes)

    def __iter__(self) -> Iterator[Item]:
        return chain(self._inside, self._nbytes)

    def _keep(self, item: Item, nbytes: int) -> None:
        self._nbytes[item] = nbytes
        self._pinned_bytes += nbytes
        self._gone += self._inside.resize(self._capacity_bytes - self._pinned_bytes)

    def _let_go(self, item: Item) -> None:
        self._pinned_bytes -= self._nbytes.pop(item)
        self._gone += self._inside.resize(self._capacity_bytes - self._pinned_bytes)

    def _all_gone(self, coming: Item | None = None) -> list[Item]:
        """Whom nobody was told of yet; one that comes back now is not among them."""
        gone, self._gone = self._gone, []
        return [victim for victim in gone if victim != coming]
