"""Tickets: numbered objects by which processes tell each other what they are at, without a server.

Invariant: whoever took a ticket has seen every ticket that was taken before it. A ticket is made by
conditional create under the number after the highest, and given back when a higher one is there afterwards.
The highest number is never deleted, so no number is used twice: it stays behind as a released ticket.

A ticket carries a CRC32C of itself and is read back when it was made: one that a network, a server or a disk
altered is no ticket, and is neither trusted nor passed over. `Tickets.unlock` voids it, where a user knows
that nobody is at work.

A ticket counts as long as it is neither released nor its process known to be dead. A process knows by itself
which of its own tickets it holds. So nothing has to be cleaned up after a kill, and no clock is asked.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, Self, TypeVar

from tiering import process
from tiering.digest import crc32c
from tiering.errors import (
    ConfigError,
    Conflict,
    Corrupt,
    FormatError,
    Locked,
    NotFound,
    TieringError,
    UnsupportedVersion,
)
from tiering.manifest import check_version, parse_json
from tiering.process import ProcessId
from tiering.stores.base import Store

MAX_TICKET_BYTES: Final = 1 << 16

UNKNOWN: Final = "unknown"
"""The holder of a ticket that cannot be read."""

_CRC: Final = "crc32c"
_WRITE_ATTEMPTS: Final = 3

log = logging.getLogger("tiering.tickets")

_at_work: Final[set[str]] = set()
"""Tokens of the tickets that this process holds now: no others of its own count."""


class Ticket(Protocol):
    """What all kinds of tickets have."""

    @property
    def number(self) -> int:
        """Its place in the order."""

    @property
    def owner(self) -> ProcessId:
        """Who took it."""

    @property
    def token(self) -> str:
        """Tells the tickets of one process apart."""

    @property
    def released(self) -> bool:
        """Whether its owner gave it back."""

    def encode(self) -> bytes:
        """The JSON document."""

    def as_released(self) -> Self:
        """The same ticket, given back."""


T = TypeVar("T", bound=Ticket)


def counts(ticket: Ticket) -> bool:
    """Whether the holder of a ticket may still be at work."""
    if ticket.released or ticket.owner.is_dead():
        return False
    return ticket.token in _at_work or ticket.owner != process.current()


def holder(owner: ProcessId) -> str:
    """A short name of a process, for messages and for typing."""
    return f"{owner.pid}@{owner.machine[:8]}"


def encode(fields: dict[str, Any]) -> bytes:
    """The JSON document of a ticket, with its CRC32C."""
    return json.dumps({**fields, _CRC: _crc(fields)}, sort_keys=True).encode()


def _crc(fields: dict[str, Any]) -> int:
    return crc32c(json.dumps(fields, sort_keys=True).encode())


def _check_crc(fields: dict[str, Any]) -> None:
    """Take the checksum out of `fields`; ValueError where it is not theirs."""
    told = fields.pop(_CRC, None)
    if told != _crc(fields):
        raise ValueError("the checksum is another")


@dataclass(frozen=True)
class Tickets(Generic[T]):
    """The tickets in one folder of a tier."""

    store: Store
    folder: str
    what: str
    """The word for one of them in messages."""
    parse: Callable[[int, dict[str, Any]], T]
    """Makes one of its number and its document; KeyError and ValueError where that is none."""
    void: Callable[[int], T]
    """Makes a released one of its number, in place of one that cannot be read."""
    unlock_command: str
    """What a user types before the number of one to unlock it."""

    def key(self, number: int) -> str:
        """Where a ticket lies."""
        return f"{self.folder}/{number:08d}.json"

    def numbers(self) -> list[int]:
        """All numbers that are there, ascending."""
        names = self.store.children(self.folder)
        return sorted(int(child[:8]) for child in names if child[:8].isdecimal() and child[8:] == ".json")

    def read(self, number: int) -> T | None:
        """One ticket; None where it is there no more.

        Raises:
            UnsupportedVersion: a newer engine wrote it. FormatError: it is no ticket.
        """
        key = self.key(number)
        try:
            data = self.store.read(key)
        except FileNotFoundError:
            return None
        try:
            fields = parse_json(data, self.what, MAX_TICKET_BYTES)
            check_version(fields.get("format_version"), f"the {self.what}")
            _check_crc(fields)
            return self.parse(number, fields)
        except (UnsupportedVersion, ConfigError) as error:
            error.tier, error.key = self.store.name, key
            raise
        except (KeyError, ValueError) as error:
            hint = f"If nobody is at work there: {self.unlock_command} {number} --holder {UNKNOWN}"
            raise FormatError(
                f"not a {self.what}, or a damaged one", tier=self.store.name, key=key, hint=hint
            ) from error

    def all(self) -> list[T]:
        """All tickets, ascending."""
        return [ticket for ticket in map(self.read, self.numbers()) if ticket is not None]

    def look(self) -> tuple[list[T], list[int]]:
        """All tickets, ascending, and the numbers of those that are damaged."""
        sound, damaged = [], []
        for number in self.numbers():
            try:
                ticket = self.read(number)
            except UnsupportedVersion:
                raise
            except FormatError:
                damaged.append(number)
            else:
                sound += [] if ticket is None else [ticket]
        return sound, damaged

    def take(self, make: Callable[[int, str, list[T]], T]) -> T:
        """Take the next ticket, which `make` builds of its number, its token and all tickets before it.

        `make` is called again for each time that somebody else was faster. What it raises ends it, and
        nothing is left behind.
        """
        token = secrets.token_hex(8)
        _at_work.add(token)
        try:
            return self._take(token, make)
        except BaseException:
            _at_work.discard(token)
            raise

    def give_back(self, ticket: T) -> None:
        """Say that a ticket is released; if the tier is full or sick, it ends with this process.

        Where a write or delete was given up that may still take effect, the ticket counts until it has.
        """
        if not self.store.when_settled(lambda: self._give_back(ticket)):
            text = "%s %s on tier %s is held until a write or delete that was given up comes to its end"
            log.warning(text, self.what, self.key(ticket.number), self.store.name)

    def _give_back(self, ticket: T) -> None:
        _at_work.discard(ticket.token)
        try:
            self.store.write(self.key(ticket.number), [ticket.as_released().encode()])
        except TieringError as error:
            text = "%s %s on tier %s stays until this process ends: %s"
            log.warning(text, self.what, self.key(ticket.number), self.store.name, error)

    def unlock(self, number: int, held_by: str) -> T:
        """Declare a ticket released whose process ended on another machine, which cannot be known from here.

        Args:
            number: of the ticket.
            held_by: its holder as `holder` names it: proof that the right one was looked at. `UNKNOWN` for
                a ticket that is damaged.

        Raises:
            NotFound: no such ticket is held. Locked: its process lives on this machine.
            Conflict: somebody else holds it.
        """
        tier, key = self.store.name, self.key(number)
        try:
            ticket = self.read(number)
        except UnsupportedVersion:
            raise
        except FormatError:
            if held_by != UNKNOWN:
                raise
            void = self.void(number)
            self.store.write(key, [void.encode()])
            return void
        if ticket is None or ticket.released:
            hint = "Nothing has to be unlocked"
            raise NotFound(f"no {self.what} {number} is held", tier=tier, key=key, hint=hint)
        if ticket.owner.is_alive():
            hint = "Wait until it has ended, or end it"
            problem = f"{self.what} {number} is held by process {ticket.owner.pid}, which lives"
            raise Locked(problem, tier=tier, key=key, hint=hint)
        if held_by != holder(ticket.owner):
            problem = f"{self.what} {number} is held by {holder(ticket.owner)}, not by {held_by!r}"
            hint = "Look whether that process has ended, then name it"
            raise Conflict(problem, tier=tier, key=key, hint=hint)
        self.store.write(key, [ticket.as_released().encode()])
        return ticket

    def _take(self, token: str, make: Callable[[int, str, list[T]], T]) -> T:
        while True:
            numbers = self.numbers()
            known = [ticket for ticket in map(self.read, numbers) if ticket is not None]
            mine = make(max(numbers, default=0) + 1, token, known)
            try:
                self._create(mine)
            except FileExistsError:  # somebody was faster: look again
                self._check_seen(mine.number)
                continue
            if max(self.numbers(), default=0) > mine.number:
                # Between our look and our write a higher one came, and took away the one that had our number.
                self.store.delete(self.key(mine.number))
                continue
            for ticket in known:
                if not counts(ticket):
                    self.store.delete(self.key(ticket.number))
            return mine

    def _check_seen(self, number: int) -> None:
        """Raise `Conflict` when what keeps us from a number is no ticket, and would do so for ever."""
        if max(self.numbers(), default=0) < number:
            raise Conflict(
                f"something lies in the place of a {self.what}, which is no object of this tier",
                tier=self.store.name,
                key=self.key(number),
                hint="Look what it is, and delete it",
            )

    def _create(self, mine: T) -> None:
        """Make a ticket that lies there as it was sent.

        Raises:
            Conflict: its number is taken. Corrupt: other bytes arrive each time; nothing is left.
        """
        key, document = self.key(mine.number), mine.encode()
        self._write_new(mine, document)
        for _attempt in range(_WRITE_ATTEMPTS):
            try:
                if self.store.read(key) == document:
                    return
            except FileNotFoundError:  # a higher one came and took it away; the caller looks
                return
            self.store.write(key, [document])
        self.store.delete(key)
        raise Corrupt(
            f"a {self.what} was read back with other bytes than were written",
            tier=self.store.name,
            key=key,
            hint="The medium or the path to it is damaged; look at its health",
        )

    def _write_new(self, mine: T, document: bytes) -> None:
        try:
            self.store.write(self.key(mine.number), [document], if_absent=True)
        except TieringError as error:
            if not error.retryable:
                raise
            found = self.read(mine.number)  # the answer alone may have been lost
            if found is None or found.token != mine.token:
                raise
