"""The living readers of a node cache, from the files that they keep locked.

Invariant: a reader whose process died is not among them, from the moment it died, and its file goes with the
next look. A file that makes no sense is passed over: what a reader tells is worth speed, never rows.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from policies.eviction.foresight import Course, Future
from tiering.cache.lock import is_locked
from tiering.cache.registration import LENGTHS, MAGIC, PROGRESS, PROGRESS_AT, Ids

_HEAD_BYTES: Final = PROGRESS_AT + PROGRESS.size + LENGTHS.size
_NONE: Final = np.empty(0, np.uint64)


@dataclass(frozen=True, slots=True)
class ReaderStatus:
    """A reader as people see it; position of uses: shards asked for in this epoch, of those foretold."""

    pid: int
    corpus: str
    version: int
    rank: int
    world_size: int
    epoch: int
    position: int
    uses: int
    uses_per_second: float
    idle_seconds: float


@dataclass(frozen=True, slots=True)
class About:
    """Who a reader is, and how its uses are cut into epochs; `epoch_ends` are those of whole ones."""

    pid: int
    corpus: str
    version: int
    rank: int
    world_size: int
    first_epoch: int
    epoch_ends: list[int]
    shard_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """What a registration says that does not change while its file lasts."""

    about: About
    uses: Ids
    foretold: Future
    unordered: Future
    """The same without an order: all is known, and nothing foretold."""


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """A living reader, now."""

    name: str
    """Of its file."""
    told: Told
    done: int
    uses_per_second: float
    idle_seconds: float

    @property
    def token(self) -> str:
        """The same as long as the reader lives."""
        return self.name.partition("-")[0]

    def course(self, *, foreseen: bool) -> Course:
        """What eviction is told of it: with its order, or of what it may use alone."""
        future = self.told.foretold if foreseen else self.told.unordered
        expected = 1 / self.uses_per_second if self.uses_per_second > 0 else 0.0
        return Course(future, self.done, self.uses_per_second, max(0.0, self.idle_seconds - expected))

    def status(self) -> ReaderStatus:
        """What people are told."""
        about = self.told.about
        limits = [0, *about.epoch_ends, len(self.told.uses)]
        number = min(bisect.bisect_left(about.epoch_ends, self.done), len(limits) - 2)
        return ReaderStatus(
            *(about.pid, about.corpus, about.version, about.rank, about.world_size),
            about.first_epoch + number,
            self.done - limits[number],
            limits[number + 1] - limits[number],
            self.uses_per_second,
            self.idle_seconds,
        )


@dataclass(slots=True)
class Readers:
    """Looks for the living readers of the cache in `path`; remembers what their files say.

    clock: seconds of the clock that registrations go by.
    """

    path: Path
    clock: Callable[[], float]
    _told: dict[str, Told | None] = field(default_factory=dict)

    def living(self) -> list[Reader]:
        """All of them, by name; deletes the files of the dead. Call it within a transaction of the index."""
        try:
            names = sorted(path.name for path in self.path.iterdir())
        except FileNotFoundError:
            return []
        found = [reader for name in names if (reader := self._look(name)) is not None]
        self._told = {name: told for name, told in self._told.items() if name in names}
        return found

    def _look(self, name: str) -> Reader | None:
        path = self.path / name
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:  # it ended just now, or somebody put something else here
            return None
        try:
            if not is_locked(fd):
                with contextlib.suppress(OSError):
                    path.unlink()
                return None
            if name not in self._told:
                self._told[name] = _read(fd)
            told = self._told[name]
            if told is None:
                return None
            done, uses_per_second, asked = PROGRESS.unpack(os.pread(fd, PROGRESS.size, PROGRESS_AT))
        finally:
            os.close(fd)
        speed = uses_per_second if math.isfinite(uses_per_second) and uses_per_second > 0 else 0.0
        idle = self.clock() - asked
        return Reader(
            name, told, min(done, len(told.uses)), speed, max(0.0, idle) if math.isfinite(idle) else 0.0
        )


def _read(fd: int) -> Told | None:
    """What a registration says; None where it makes no sense."""
    data = os.pread(fd, os.fstat(fd).st_size, 0)
    try:
        about_bytes, uses, known = LENGTHS.unpack_from(data, PROGRESS_AT + PROGRESS.size)
        about = _about(json.loads(data[_HEAD_BYTES : _HEAD_BYTES + about_bytes]), uses)
    except (ValueError, TypeError, RecursionError, struct.error):
        return None
    if not data.startswith(MAGIC) or len(data) != _HEAD_BYTES + about_bytes + 8 * (2 * uses + known):
        return None
    numbers = np.frombuffer(data, "<u8", 2 * uses + known, _HEAD_BYTES + about_bytes).astype(np.uint64)
    used, until, others = np.split(numbers, [uses, 2 * uses])
    foretold = Future(used, others, until.astype(np.int64))
    return Told(about, used, foretold, Future(_NONE, np.concatenate([used, others])))


def _about(values: object, uses: int) -> About:
    """The header; ValueError or TypeError where it is none."""
    if not isinstance(values, dict):
        raise TypeError("a header is an object")
    about = About(**values)
    ends = about.epoch_ends
    numbers = (about.pid, about.version, about.rank, about.world_size, about.first_epoch, about.shard_bytes)
    if not (isinstance(about.corpus, str) and isinstance(ends, list)):
        raise TypeError("a header names a corpus and the ends of epochs")
    if not all(isinstance(number, int) and number >= 0 for number in (*numbers, *ends)):
        raise ValueError("a header has no numbers below 0")
    if ends != sorted(ends) or (ends and ends[-1] > uses):
        raise ValueError("epochs end one after the other")
    return about
