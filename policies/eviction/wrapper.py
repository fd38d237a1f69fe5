"""What the decorators have in common: an eviction around another one, which decides."""

from collections.abc import Iterator

from policies.eviction.base import Eviction, Item

__all__ = ["Wrapper"]


class Wrapper(Eviction[Item]):
    """Passes every question on to the policy inside."""

    def __init__(self, inside: Eviction[Item]) -> None:
        self._inside = inside

    @property
    def capacity_bytes(self) -> int:
        """The most bytes that may be resident."""
        return self._inside.capacity_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes resident now."""
        return self._inside.used_bytes

    def hit(self, item: Item) -> bool:
        """Return whether the item is resident, and count the use; see `Eviction.hit`."""
        return self._inside.hit(item)

    def admit(self, item: Item, nbytes: int) -> list[Item] | None:
        """Make an absent item resident; see `Eviction.admit`."""
        return self._inside.admit(item, nbytes)

    def remove(self, item: Item) -> bool:
        """Forget an item that left for another reason, and return whether it was resident."""
        return self._inside.remove(item)

    def resize(self, capacity_bytes: int) -> list[Item]:
        """Set the capacity and return the victims; see `Eviction.resize`."""
        return self._inside.resize(capacity_bytes)

    def __contains__(self, item: object) -> bool:
        return item in self._inside

    def __len__(self) -> int:
        return len(self._inside)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._inside)
