"""Looks after a node cache from outside, while others use it: status, clear, verify, resize.

Invariant: no reader is stopped: one that has a file open goes on, one that finds it gone fetches, and what is
being filled is left alone.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tiering.cache.admission import CAPACITY, POLICIES, POLICY, RESIZED, UNKNOWN, Admission
from tiering.cache.choice import AUTO
from tiering.cache.content import SICKNESS, STORE_NAME, Content, key_of
from tiering.cache.index import forget_counts, set_setting, setting
from tiering.cache.status import CacheStatus, look
from tiering.errors import Unavailable
from tiering.scrub import in_part, parse_subset
from tiering.sizes import parse_size
from tiering.transfer import is_verified


@dataclass(frozen=True, slots=True)
class CacheReport:
    """What `Upkeep.verify` found. checked, nbytes: copies read back. corrupt: digests of those dropped."""

    checked: int
    nbytes: int
    share: float
    """Of the copies that were there, those that were checked."""
    corrupt: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether all were right."""
        return not self.corrupt


class Upkeep:
    """Looks after the cache in the folder `path`, which must be there. A context manager.

    Raises:
        NotFound: there is no node cache. Its methods: Unavailable, where it is sick.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser().absolute()
        self._content = Content(self.path)
        self._content.require()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._content.close()

    def status(self) -> CacheStatus:
        """What is here now, and who reads."""
        with self._transaction() as db:
            return look(self._content, db, self._admission(db))

    def clear(self) -> tuple[int, int]:
        """Drop all copies, but not what is being filled; counts begin anew. Returns shards and bytes."""
        with self._transaction() as db:
            self._content.drop_abandoned(db)
            copies = self._content.whole(db)
            for name, _nbytes in copies:
                self._content.evict(db, name)
            forget_counts(db)
        return len(copies), sum(nbytes for _name, nbytes in copies)

    def resize(self, capacity: str | int | None) -> CacheStatus:
        """Set the capacity that counts for all processes, those that run already too, and evict down to it.

        It counts until it is set again, whatever `NodeCache` is given. None gives that back to those who make
        a `NodeCache`.

        Raises:
            ConfigError: no size.
        """
        nbytes = None if capacity is None else parse_size(capacity, "capacity")
        with self._transaction() as db:
            set_setting(db, RESIZED, nbytes)
            admission = self._admission(db)
            admission.fit(self._content, db)
            return look(self._content, db, admission)

    def verify(self, subset: str | tuple[int, int] | None = None) -> CacheReport:
        """Read copies back and drop those that have not their digests.

        Args:
            subset: ``(k, n)`` or ``"k/n"``, k from 1: of n parts, by digest, the k-th.

        Raises:
            UsageError: `subset` is no part of anything.
        """
        part = parse_subset(subset)
        with self._transaction() as db:
            copies = self._content.whole(db)
        chosen = [(name, nbytes) for name, nbytes in copies if in_part(name, part)]
        checked = checked_bytes = 0
        corrupt = []
        for name, nbytes in chosen:
            if not self._is_good(name, nbytes):
                with self._transaction() as db:
                    if not self._content.is_listed(db, name):  # it was evicted meanwhile
                        continue
                    self._content.discard(db, name)
                corrupt.append(name)
            checked, checked_bytes = checked + 1, checked_bytes + nbytes
        share = len(chosen) / len(copies) if copies else 1.0
        return CacheReport(checked, checked_bytes, share, tuple(corrupt))

    def _is_good(self, name: str, nbytes: int) -> bool:
        try:
            return is_verified(self._content.files, key_of(name), nbytes, name)
        except SICKNESS:  # a dying disk
            return False

    def _admission(self, db: sqlite3.Connection) -> Admission:
        """As the process that opened the cache last wanted it."""
        capacity_bytes, policy = setting(db, CAPACITY), setting(db, POLICY)
        return Admission(
            self.path,
            capacity_bytes if isinstance(capacity_bytes, int) and capacity_bytes > 0 else UNKNOWN,
            policy if isinstance(policy, str) and policy in POLICIES else AUTO,
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._content.transaction() as db:
                yield db
        except SICKNESS as error:
            hint = "Look at the folder and its disk; it may be deleted while nobody uses it"
            raise Unavailable(f"{self.path}: {error}", tier=STORE_NAME, hint=hint) from error
