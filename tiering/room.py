"""Room on a tier: what is used, what is spoken for, and who may still write.

Invariant: the data on a tier and all that was admitted to it together never exceed its capacity, whatever
number of processes and machines ask at once. Who asks is admitted by a reservation
(`tiering.reservation`); it counts the reservations before it in full, also where nothing of them is
written yet. Reservations are looked at first and objects afterwards, so what ends in between is counted
at least once.

Small control objects (see `tiering.keys.is_control`) are let through beyond the capacity, up to
`tiering.keys.CONTROL_BYTES`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from tiering import process
from tiering.errors import CapacityExceeded, Conflict
from tiering.keys import CONTROL_BYTES, INTERNAL, is_control
from tiering.reservation import FOLDER, Reservation, reservations
from tiering.stores.base import ObjectInfo
from tiering.tier import Tier

FinalBytes = Callable[[Mapping[str, int]], int]
"""Bytes that a corpus's folder will hold when the work is done, of the data that is there (key: bytes)."""

log = logging.getLogger("tiering.room")

_MARKS: Final = (f"{INTERNAL}/claims/", f"{INTERNAL}/versions/")
"""What only the folder of a corpus has."""

_warned: Final[set[Tier]] = set()
"""Tiers whose high water this process has told of."""


@dataclass(frozen=True, slots=True)
class Usage:
    """How full a tier is. Bytes of all objects; reservations are what is still to be written of them."""

    capacity_bytes: int | None
    used_bytes: int
    reserved_bytes: int
    free_bytes: int | None
    """What can still be asked for: the smaller of capacity and medium; None where neither is known."""
    over_high: bool
    """Whether used and reserved bytes are beyond the tier's high water."""
    excess_bytes: int
    """Beyond high water: bytes that must go to come down to low water; else 0."""


@dataclass(frozen=True, slots=True)
class _Look:
    """A tier as one reservation sees it."""

    used_bytes: int
    reserved_bytes: int
    """Unwritten bytes of the counting reservations."""
    present: Mapping[str, int]
    """Data of the corpus asked for."""
    ahead_bytes: int
    """Unwritten bytes reserved for the same corpus."""
    medium_bytes: int | None

    def free_bytes(self, capacity_bytes: int | None) -> int | None:
        """Room beside all that is used and reserved."""
        rooms = []
        if capacity_bytes is not None:
            rooms.append(capacity_bytes - self.used_bytes - self.reserved_bytes)
        if self.medium_bytes is not None:
            rooms.append(self.medium_bytes - self.reserved_bytes)
        return max(0, min(rooms)) if rooms else None


@dataclass
class Hold:
    """Room that is held; it can grow while the work goes on."""

    tier: Tier
    name: str
    final: FinalBytes
    mine: Reservation | None = None

    def grow(self, final: FinalBytes) -> None:
        """Hold as much as `final` asks for; the earlier reservation ends when the new one is there.

        Raises:
            CapacityExceeded: there is no room; what is held stays held.
        """
        if not _is_bounded(self.tier):
            return
        older, self.mine = self.mine, _take(self.tier, self.name, final)
        self.final = final
        if older is not None:
            reservations(self.tier.store).give_back(older)

    def end(self) -> None:
        """Give the room back."""
        if self.mine is not None:
            reservations(self.tier.store).give_back(self.mine)
            self.mine = None


def refuse_foreign(tier: Tier, name: str, keys: Collection[str]) -> None:
    """Raise `Conflict` when `keys`, all below the folder `name`, are not the work of this engine.

    Every ingest and move begins with a claim, and a claim stays; so where objects lie without any, they are
    somebody else's and must not be written over. A tier inside of the folder keeps other things in a folder
    of that name.
    """
    if keys and not any(key.startswith(_MARKS, len(name) + 1) for key in keys):
        raise Conflict(
            f"the folder {name!r} holds objects that are not of a corpus",
            tier=tier.name,
            key=next(iter(keys)),
            hint="Choose another name, or empty that folder",
        )


def adding(planned: Mapping[str, int]) -> FinalBytes:
    """The final bytes of a folder that gets the `planned` objects (key: bytes) that are not there."""

    def final(present: Mapping[str, int]) -> int:
        missing = sum(nbytes for key, nbytes in planned.items() if present.get(key) != nbytes)
        return sum(present.values()) + missing

    return final


def check_room(tier: Tier, name: str, final: FinalBytes, largest_bytes: int) -> None:
    """Raise `CapacityExceeded` where `room_held` would now; nothing is written."""
    if tier.capacity_bytes is not None and largest_bytes > tier.capacity_bytes:
        raise CapacityExceeded(
            f"a shard of corpus {name!r} has {largest_bytes} bytes, the whole tier {tier.capacity_bytes}",
            tier=tier.name,
            hint="Ingest with a smaller shard_size, or give the tier a larger capacity",
        )
    if _is_bounded(tier) and _needs(tier, name, final):
        _admit(tier, name, final, reservations(tier.store).all())


@contextmanager
def room_held(tier: Tier, name: str, final: FinalBytes) -> Iterator[Hold]:
    """Hold the room that corpus `name` needs while the block runs.

    The caller holds a claim on the name, so that what is there is only changed for the same end. Nothing is
    reserved where nothing is to be written, nor on a tier whose capacity nobody knows.

    Raises:
        CapacityExceeded: there is no room; nothing was written.
    """
    hold = Hold(tier, name, final)
    if _is_bounded(tier):
        tier.store.sweep(FOLDER)  # of who was killed while it wrote a reservation
        if _needs(tier, name, final):
            hold.grow(final)
    try:
        yield hold
    finally:
        hold.end()


def usage(tier: Tier) -> Usage:
    """How full a tier is, by listing it."""
    look = _look(tier, None, [one for one in reservations(tier.store).all() if one.counts], whole=True)
    taken = look.used_bytes + look.reserved_bytes
    over_high = tier.capacity_bytes is not None and taken > tier.high_water * tier.capacity_bytes
    low_bytes = int(tier.low_water * (tier.capacity_bytes or 0))
    return Usage(
        tier.capacity_bytes,
        look.used_bytes,
        look.reserved_bytes,
        look.free_bytes(tier.capacity_bytes),
        over_high,
        max(0, taken - low_bytes) if over_high else 0,
    )


def _is_bounded(tier: Tier) -> bool:
    return tier.capacity_bytes is not None or tier.store.free_bytes() is not None


def _needs(tier: Tier, name: str, final: FinalBytes) -> bool:
    present = {info.key: info.nbytes for info in tier.store.list(name) if not is_control(info.key)}
    return final(present) > sum(present.values())


def _take(tier: Tier, name: str, final: FinalBytes) -> Reservation:
    def make(number: int, token: str, known: list[Reservation]) -> Reservation:
        nbytes = _admit(tier, name, final, known)
        return Reservation(number, name, nbytes, process.current(), token)

    return reservations(tier.store).take(make)


def _admit(tier: Tier, name: str, final: FinalBytes, known: Sequence[Reservation]) -> int:
    """The final bytes of corpus `name` where they fit beside all else; raises `CapacityExceeded`."""
    look = _look(tier, name, [one for one in known if one.counts])
    there_bytes = sum(look.present.values())
    wanted_bytes = final(look.present)
    needed_bytes = wanted_bytes - there_bytes
    free_bytes = look.free_bytes(tier.capacity_bytes)
    # Whoever else writes this corpus writes the same objects: that room is asked for once.
    more_bytes = max(0, needed_bytes - look.ahead_bytes)
    if free_bytes is not None and more_bytes > free_bytes:
        spoken_for = f", {look.reserved_bytes} bytes are reserved" if look.reserved_bytes else ""
        raise CapacityExceeded(
            f"corpus {name!r} needs {more_bytes} more bytes, there is room for {free_bytes}{spoken_for}",
            tier=tier.name,
            hint="Release something from this tier, or give it a larger capacity",
        )
    if tier.capacity_bytes is not None:
        _warn_high(tier, look.used_bytes + look.reserved_bytes + more_bytes)
    return wanted_bytes


def _warn_high(tier: Tier, taken_bytes: int) -> None:
    capacity_bytes = tier.capacity_bytes or 0
    if taken_bytes > tier.high_water * capacity_bytes and tier not in _warned:
        _warned.add(tier)
        log.warning(
            "tier %s passes its high water: %d of %d bytes. Release or forget something: 'tiering usage %s'",
            tier.name,
            taken_bytes,
            capacity_bytes,
            tier.name,
        )


def _look(tier: Tier, name: str | None, live: Sequence[Reservation], *, whole: bool = False) -> _Look:
    """What the tier holds now; `live` was read before."""
    totals: dict[str, int] = {}
    for one in live:
        totals[one.corpus] = max(totals.get(one.corpus, 0), one.nbytes)
    present: dict[str, int] = {}
    used: Counter[str] = Counter()
    control_bytes = 0
    folders = {*totals, *([name] if name else [])}
    for info in _objects(tier, folders, whole=whole or tier.capacity_bytes is not None):
        folder = info.key.partition("/")[0]
        if is_control(info.key):
            control_bytes += info.nbytes
            continue
        used[folder] += info.nbytes
        if folder == name:
            present[info.key] = info.nbytes
    unwritten = {folder: max(0, nbytes - used[folder]) for folder, nbytes in totals.items()}
    return _Look(
        used_bytes=used.total() + max(0, control_bytes - CONTROL_BYTES),
        reserved_bytes=sum(unwritten.values()),
        present=present,
        ahead_bytes=unwritten.get(name or "", 0),
        medium_bytes=tier.store.free_bytes(),  # last: what was written since is then counted twice, not never
    )


def _objects(tier: Tier, folders: Iterable[str], *, whole: bool) -> Iterator[ObjectInfo]:
    """All objects of a tier, or where that matters not, those of some folders."""
    if whole:
        yield from tier.store.list()
    else:
        for folder in folders:
            yield from tier.store.list(folder)
