"""Merged clairvoyance: readers who each know their future share a cache; what none of them uses for longest
leaves.

When a reader uses an item next is estimated from its requests until then and its speed; the soonest of all
readers counts. Estimates are made anew at every decision, so readers may run ahead of each other, change
their speed, join and leave. With one reader this is `policies.eviction.belady`.

Shares. An item is kept for the reader that uses it soonest, its owner, and charged in equal parts to all who
will use it. A reader may hold more than its share while nobody else wants the room; an item whose owner is
charged less than its share claims room from those. Credit. What a reader saves is the bytes of its requests
less its part of the fetches, each of which all readers it served bear equally. Equal parts are the Shapley
value of both, and the rule of Q. Pu, H. Li, M. Zaharia, A. Ghodsi, I. Stoica, "FairRide: near-optimal, fair
cache sharing", NSDI 2016; without its blocking, for these readers' futures are computed and not claimed.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import Generic

from policies.eviction.base import Eviction, Item, absent, checked_capacity
from policies.eviction.reading import Entry, Reading

__all__ = ["Merged", "Reader"]

_ROUNDING = 1e-9


class Merged(Generic[Item]):
    """A cache of `capacity_bytes` that readers `join`; each of them is an `Eviction` of the same content.

    A request costs O(readers + log items), and a reader that joins or leaves O(items). Raises ValueError for
    a capacity below 0.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = checked_capacity(capacity_bytes)
        self.used_bytes = 0
        self._readers: list[Reading[Item]] = []
        self._entries: dict[Item, Entry[Item]] = {}
        self._unwanted: dict[Item, None] = {}  # resident items that no reader will use

    def join(
        self, future: Sequence[Item], *, requests_per_second: float = 1.0, share: float = 0.0
    ) -> "Reader[Item]":
        """Return a new reader.

        future: every request that it will make, in order. requests_per_second: its speed, of which only the
        ratio to that of others counts. share: the part of the capacity, in [0, 1], that it may claim; readers
        without shares compete by the time of the next use alone.
        Raises ValueError for a speed not above 0, and for a share below 0 or one that makes all exceed 1.
        """
        left = 1 - sum(reader.share for reader in self._readers)
        if not 0 <= share <= left + _ROUNDING:
            raise ValueError(
                f"share must be in [0, {left:g}], what other readers left, not {share}; for example share=0"
            )
        reading = Reading(future, requests_per_second, share)
        self._readers.append(reading)
        self._charge_anew(reading)
        return Reader(self, reading)

    def __contains__(self, item: object) -> bool:
        return item in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Item]:
        """The one that is used last comes first; shares are not looked at."""
        return iter(sorted(self._entries, key=self._wait_seconds, reverse=True))

    def remove(self, item: Item) -> bool:
        """Forget an item that left for another reason, and return whether it was resident."""
        if item not in self._entries:
            return False
        self._drop(item)
        return True

    def resize(self, capacity_bytes: int) -> list[Item]:
        """Set the capacity and return the victims; ValueError for a capacity below 0."""
        self.capacity_bytes = checked_capacity(capacity_bytes)
        victims = []
        while self.used_bytes > self.capacity_bytes and (victim := self._victim()) is not None:
            self._drop(victim)
            victims.append(victim)
        return victims

    def _leave(self, reader: Reading[Item]) -> None:
        if reader in self._readers:
            self._readers.remove(reader)
            self._charge_anew(reader)

    def _charge_anew(self, reader: Reading[Item]) -> None:
        """Charge what a reader begins or ceases to want to all who want it."""
        for item in reader.wanted(self._entries):
            self._keep(item, self._drop(item))

    def _hit(self, reader: Reading[Item], item: Item) -> bool:
        entry = self._entries.get(item)
        if entry is None:
            return False
        entry.serve(reader)
        if reader.wants(item):
            self._queue(item)
        else:  # no longer: others are charged for it
            self._keep(item, self._drop(item))
        return True

    def _admit(self, reader: Reading[Item], item: Item, nbytes: int) -> list[Item] | None:
        wanting = self._wanting(item)
        if not wanting or nbytes > self.capacity_bytes:
            return None
        owner = self._owner(item)
        charged_bytes = owner.held.total_bytes + nbytes / len(wanting)
        entitled = charged_bytes <= owner.share * self.capacity_bytes
        taken: dict[Item, Entry[Item]] = {}
        while self.used_bytes + nbytes > self.capacity_bytes:
            victim = self._victim(owner.wait_seconds(item), None if entitled else owner)
            if victim is None:
                for kept, entry in taken.items():
                    self._keep(kept, entry)
                return None
            taken[victim] = self._drop(victim)
        entry = Entry[Item](nbytes)
        entry.serve(reader)
        self._keep(item, entry)
        return list(taken)

    def _victim(self, wait_seconds: float = -inf, owner: Reading[Item] | None = None) -> Item | None:
        """Who leaves for an item that is used after so long; None where all who might are used sooner.

        owner: for whom the item is kept, where he has no claim: then only he and those who hold more than
        their share lose something. With a claim these lose it however soon they use it.
        """
        if self._unwanted:
            return next(iter(self._unwanted))
        over = [one for one in self._readers if one.held.total_bytes > one.share * self.capacity_bytes]
        if owner is None and (borrowed := self._farthest(over)) is not None:
            return borrowed
        farthest = self._farthest(self._readers if owner is None else [*over, owner])
        return farthest if farthest is not None and self._wait_seconds(farthest) > wait_seconds else None

    def _farthest(self, owners: Iterable[Reading[Item]]) -> Item | None:
        """Of what is kept for these readers, the item that is used last."""
        while True:
            found: Item | None = None
            most_seconds = -inf
            for reader in owners:
                item = reader.farthest(self._entries)
                if item is not None and (seconds := reader.wait_seconds(item)) > most_seconds:
                    found, most_seconds, keeper = item, seconds, reader
            if found is None or self._owner(found) is keeper:
                return found
            keeper.pop()  # by now another reader uses it sooner
            self._queue(found)

    def _wanting(self, item: Item) -> list[Reading[Item]]:
        return [reader for reader in self._readers if reader.wants(item)]

    def _owner(self, item: Item) -> Reading[Item]:
        """Of the readers that want the item the one that uses it soonest; there is one."""
        return min(self._wanting(item), key=lambda reader: reader.wait_seconds(item))

    def _wait_seconds(self, item: Item) -> float:
        return min((reader.wait_seconds(item) for reader in self._wanting(item)), default=inf)

    def _queue(self, item: Item) -> None:
        """Let a resident item be found when room is wanted."""
        if self._wanting(item):
            self._owner(item).push(item, self._entries)
        else:
            self._unwanted[item] = None

    def _keep(self, item: Item, entry: Entry[Item]) -> None:
        self._entries[item] = entry
        self.used_bytes += entry.nbytes
        entry.charge(self._wanting(item))
        self._queue(item)

    def _drop(self, item: Item) -> Entry[Item]:
        entry = self._entries.pop(item)
        self._unwanted.pop(item, None)
        self.used_bytes -= entry.nbytes
        entry.charge([])
        return entry


class Reader(Eviction[Item]):
    """One reader of a `Merged` cache, made by its `join`; what is resident is the same for all readers.

    Each call of `hit` is the next request of its future. `admit` is for the item of the last one; any other
    is refused, and so is one that no reader will use before all of its victims.
    """

    name = "merged"

    def __init__(self, cache: Merged[Item], reading: Reading[Item]) -> None:
        self._cache, self._reading = cache, reading

    @property
    def capacity_bytes(self) -> int:
        """The most bytes that may be resident."""
        return self._cache.capacity_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes resident now."""
        return self._cache.used_bytes

    @property
    def held_bytes(self) -> float:
        """Bytes of items that it will use, each divided by the number of readers who will."""
        return self._reading.held.total_bytes

    @property
    def saved_bytes(self) -> float:
        """Bytes that it need not pay for; of all readers together, the bytes of all hits.

        Of each request for a resident or admitted item its bytes, less its part of the fetch.
        """
        return self._reading.served_bytes - self._reading.fetched.total_bytes

    def pace(self, requests_per_second: float) -> None:
        """Set the speed that it was found to have; ValueError for one that is not above 0."""
        self._reading.pace(requests_per_second)

    def leave(self) -> None:
        """Give up the share and everything foretold; what it saved remains on its account."""
        self._cache._leave(self._reading)

    def hit(self, item: Item) -> bool:
        """Return whether the item is resident, and count the use; ValueError where another was foretold."""
        self._reading.follow(item)
        return self._cache._hit(self._reading, item)

    def admit(self, item: Item, nbytes: int) -> list[Item] | None:
        """Make an absent item resident for all readers; see `Eviction.admit`."""
        absent(self, item, nbytes)
        return self._cache._admit(self._reading, item, nbytes) if self._reading.is_at(item) else None

    def remove(self, item: Item) -> bool:
        """Forget an item that left for another reason, and return whether it was resident."""
        return self._cache.remove(item)

    def resize(self, capacity_bytes: int) -> list[Item]:
        """Set the capacity of all readers and return the victims; see `Eviction.resize`."""
        return self._cache.resize(capacity_bytes)

    def __contains__(self, item: object) -> bool:
        return item in self._cache

    def __len__(self) -> int:
        return len(self._cache)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._cache)
