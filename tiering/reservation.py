"""Reservations: who is going to fill how much of a tier.

Invariant: a reservation names a corpus and the bytes that its folder will hold when the work is done. It is
a ticket (see `tiering.tickets`), so whoever takes one has seen all that were admitted before: of two that
race for the last room, the later one counts the earlier one in full.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from tiering import process, tickets
from tiering.keys import INTERNAL, validate_name
from tiering.manifest import FORMAT_VERSION
from tiering.process import ProcessId
from tiering.stores.base import Store
from tiering.tickets import UNKNOWN, Tickets

FOLDER: Final = f"{INTERNAL}/reservations"


@dataclass(frozen=True, slots=True)
class Reservation:
    """Room on a tier that is spoken for."""

    number: int
    corpus: str
    nbytes: int
    """Bytes of all data below the corpus's folder when the work is done, those that are there already too."""
    owner: ProcessId
    token: str
    released: bool = False

    @property
    def counts(self) -> bool:
        """Whether its holder may still be at work."""
        return tickets.counts(self)

    def as_released(self) -> Reservation:
        """The same reservation, given back."""
        return replace(self, released=True)

    def encode(self) -> bytes:
        """The JSON document."""
        fields = {
            "format_version": FORMAT_VERSION,
            "corpus": self.corpus,
            "bytes": self.nbytes,
            "owner": self.owner.text(),
            "token": self.token,
            "released": self.released,
        }
        return tickets.encode(fields)


def reservations(store: Store) -> Tickets[Reservation]:
    """All reservations on a tier, those that do not count any more too."""
    unlock = f"tiering unlock {UNKNOWN} --on {store.name} --reservation"
    return Tickets(store, FOLDER, "reservation", _parse, _void, unlock)


def unlock_reservations(store: Store, name: str, owner: ProcessId) -> int:
    """Release the reservations for `name` of a process that is dead for sure; returns how many."""
    line = reservations(store)
    found = [one for one in line.all() if one.counts and (one.corpus, one.owner) == (name, owner)]
    for one in found:
        store.write(line.key(one.number), [one.as_released().encode()])
    return len(found)


def _void(number: int) -> Reservation:
    return Reservation(number, UNKNOWN, 0, process.current(), "", released=True)


def _parse(number: int, fields: dict[str, Any]) -> Reservation:
    nbytes = fields["bytes"]
    if not isinstance(nbytes, int) or isinstance(nbytes, bool) or nbytes < 0:
        raise ValueError(f"{nbytes!r} bytes")
    return Reservation(
        number,
        validate_name(str(fields["corpus"])),
        nbytes,
        ProcessId.parse(str(fields["owner"])),
        str(fields["token"]),
        released=bool(fields["released"]),
    )
