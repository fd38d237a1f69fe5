"""What comes into a node cache and what leaves for it: a policy, told what lies here and who reads.

Invariant: what a decision leaves fits in the capacity together with all that is being filled. A decision is
made anew from the index and the living readers, so any process may make it.

- A policy of `policies.eviction` by name is told of the copies in the order of their admission and use.
- ``clairvoyant``: what the living readers use last leaves (`policies.eviction.foresight`).
- ``auto``: the same where `tiering.cache.choice` says so. Else nothing that a living reader may ever use
  leaves: pin, for as long as somebody reads.
- Both are ``pin`` while nobody is registered.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from policies.eviction import ONLINE, Eviction, make
from policies.eviction.foresight import Course, choose_victims, soonest
from tiering.cache.choice import AUTO, CLAIRVOYANT, PIN, Chosen, choose_for, identity
from tiering.cache.content import Content
from tiering.cache.index import set_setting, setting
from tiering.cache.readers import Readers
from tiering.cache.registration import Registration, numbers_of
from tiering.errors import ConfigError

log = logging.getLogger("tiering.cache")

Ints = np.ndarray[Any, np.dtype[np.int64]]

POLICIES: Final = (AUTO, CLAIRVOYANT, *ONLINE)

UNKNOWN: Final = 1 << 62
"""Capacity where nobody said one."""

CAPACITY, RESIZED, POLICY, CHOSEN = "capacity", "resized", "policy", "chosen"
"""Settings of the index: what a process asked for last, what ``tiering cache resize`` said, the policy asked
for last, and the choice for the readers of now."""


class Admission:
    """The decisions of one `NodeCache`.

    Raises:
        ConfigError: no such policy.
    """

    def __init__(self, path: Path, capacity_bytes: int, policy: str) -> None:
        if policy not in POLICIES:
            try:
                make(policy, capacity_bytes)
            except ValueError as error:
                hint = f"Those of a node cache are {', '.join(POLICIES)}"
                raise ConfigError(str(error), hint=hint) from error
        self.policy = policy
        self.asked_bytes = capacity_bytes
        self.capacity_bytes = capacity_bytes
        """As of the last look at the index."""
        self.readers = Readers(path / "readers", time.monotonic)

    def opened(self, content: Content, db: sqlite3.Connection) -> None:
        """Say what this process wants, and evict what no longer fits."""
        for name, value in ((CAPACITY, self.asked_bytes), (POLICY, self.policy)):
            if setting(db, name) != value:
                set_setting(db, name, value)
        self._heed(db)
        self.fit(content, db)

    def limit_bytes(self, db: sqlite3.Connection) -> int:
        """The capacity that counts: what a resize said, else what this process asked for."""
        resized = resized_bytes(db)
        self.capacity_bytes = self.asked_bytes if resized is None else resized
        return self.capacity_bytes

    def fit(self, content: Content, db: sqlite3.Connection) -> None:
        """Evict what no longer fits in the capacity."""
        room_bytes = self._room_bytes(content, db)
        courses = self._courses(db)
        if courses is None:
            self._fitted(content, db, room_bytes)
            return
        copies = content.by_use(db)
        sizes = _sizes(copies)
        waits = soonest([*courses.values()], numbers_of([name for name, _nbytes in copies]))
        victims = choose_victims(waits, sizes, int(sizes.sum()) - room_bytes)
        self._evict(content, db, copies, victims)

    def admit(
        self,
        content: Content,
        db: sqlite3.Connection,
        name: str,
        nbytes: int,
        reader: Registration | None = None,
        done: int = 0,
    ) -> bool:
        """Make room for a shard; False where the policy refuses it.

        reader: who asks, if it is registered, and `done`: its uses done once this one is.
        """
        self._heed(db)
        room_bytes = self._room_bytes(content, db)
        courses = self._courses(db)
        if courses is None:
            leave = self._fitted(content, db, room_bytes).admit(name, nbytes)
            for victim in leave or ():
                content.evict(db, victim)
            return leave is not None
        copies = content.by_use(db)
        if sum(size for _name, size in copies) > room_bytes:
            self.fit(content, db)
            copies = content.by_use(db)
        sizes = _sizes(copies)
        excess_bytes = int(sizes.sum()) + nbytes - room_bytes
        if excess_bytes <= 0:
            return True
        if nbytes > room_bytes:
            return False
        waits = soonest([*courses.values()], numbers_of([copy for copy, _nbytes in copies]))
        if reader is not None and reader.name in courses:
            courses[reader.name] = replace(courses[reader.name], done=done)
        (wait_seconds,) = soonest([*courses.values()], numbers_of([name])).tolist()
        victims = choose_victims(waits, sizes, excess_bytes, wait_seconds)
        self._evict(content, db, copies, victims)
        return victims is not None

    def choose(self, content: Content) -> None:
        """Choose anew if the readers or the capacity changed. Not within a transaction: it may take 0.1 s."""
        with content.transaction() as db:
            capacity_bytes, living = self.limit_bytes(db), self.readers.living()
            before = chosen(db)
        if before is not None and before.readers == identity(living, capacity_bytes):
            return
        choice = choose_for(living, capacity_bytes)
        with content.transaction() as db:
            now = identity(self.readers.living(), self.limit_bytes(db))
            if choice is not None and choice.readers == now:  # else whoever came or went chooses
                set_setting(db, CHOSEN, choice.to_text())

    def _heed(self, db: sqlite3.Connection) -> None:
        """Say once that another capacity counts than this process asked for."""
        before, limit = self.capacity_bytes, self.limit_bytes(db)
        if limit not in (before, self.asked_bytes):
            log.warning(
                "node cache %s was resized to %d bytes, which count instead of the %d asked for here",
                self.readers.path.parent,
                limit,
                self.asked_bytes,
            )

    def _room_bytes(self, content: Content, db: sqlite3.Connection) -> int:
        """What copies may take, beside what is being filled."""
        return max(0, self.limit_bytes(db) - content.filling_bytes(db))

    def _courses(self, db: sqlite3.Connection) -> dict[str, Course] | None:
        """The living readers by the names of their files; None where the policy is not told of them."""
        if self.policy not in (AUTO, CLAIRVOYANT):
            return None
        living, choice = self.readers.living(), chosen(db)
        if choice is not None and choice.readers != identity(living, self.limit_bytes(db)):
            choice = None  # it was made for others; until there is one for these nothing has to leave
        foreseen = decision(self.policy, choice) == CLAIRVOYANT
        return {reader.name: reader.course(foreseen=foreseen) for reader in living} or None

    def _fitted(self, content: Content, db: sqlite3.Connection, room_bytes: int) -> Eviction[str]:
        """The policy by name, knowing all copies; those that do not fit are evicted."""
        copies = content.whole(db)
        name = PIN if self.policy in (AUTO, CLAIRVOYANT) else self.policy
        policy: Eviction[str] = make(name, sum(nbytes for _name, nbytes in copies))
        for copy, nbytes in copies:
            policy.admit(copy, nbytes)
        for copy, _nbytes in copies:
            if copy not in policy:  # some evict though all fit
                content.evict(db, copy)
        for copy, _nbytes in content.by_use(db):
            policy.hit(copy)
        for victim in policy.resize(room_bytes):
            content.evict(db, victim)
        return policy

    def _evict(
        self, content: Content, db: sqlite3.Connection, copies: list[tuple[str, int]], victims: Ints | None
    ) -> None:
        for place in () if victims is None else victims.tolist():
            content.evict(db, copies[place][0])


def resized_bytes(db: sqlite3.Connection) -> int | None:
    """The capacity that `tiering cache resize` set for all processes; None where it did not."""
    value = setting(db, RESIZED)
    return value if isinstance(value, int) and value > 0 else None


def chosen(db: sqlite3.Connection) -> Chosen | None:
    """The choice for the readers of now, or of a moment ago."""
    return Chosen.from_text(setting(db, CHOSEN))


def decision(policy: str, choice: Chosen | None) -> str:
    """What ``auto`` comes to, or the policy that was named."""
    if policy != AUTO:
        return policy
    return PIN if choice is None else choice.policy


def _sizes(copies: list[tuple[str, int]]) -> Ints:
    return np.array([nbytes for _name, nbytes in copies], np.int64)
