"""A reader's registration: who it is, which shards it will use, how far it is and how fast, in a small file.

Invariant: the file is locked (flock) by the process that reads, from before it says anything until it is
gone: the kernel frees the lock when the process dies, however it dies, so a registration without a lock is
nobody's. A child forked meanwhile gives up its copy of the lock at once. Files are made, replaced and looked
at within transactions of the index, so nobody meets a half-written one of a living reader.

What is foretold is bounded: `HORIZON` uses of shards. Behind it lies, in no order, all that the reader may
ever use. A shard is told by the first 8 bytes of its digest: 16 bytes a use, 8 bytes a shard.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import struct
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from policies.eviction.foresight import Future
from tiering.cache.lock import try_lock
from tiering.errors import Corrupt

Ids = np.ndarray[Any, np.dtype[np.uint64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

HORIZON: Final = 1 << 15
"""The most uses that are foretold: 2 TiB of shards of 64 MiB."""
MAGIC: Final = b"TIERRDR1"
PROGRESS: Final = struct.Struct("<Qdd")
"""Uses done, uses a second (0: not known), and when it last asked (seconds of the monotonic clock)."""
PROGRESS_AT: Final = len(MAGIC)
LENGTHS: Final = struct.Struct("<QQQ")
"""Of what follows: a JSON object in bytes; uses, and as many numbers of when they end; known shards."""
_SLACK: Final = 64
"""So many uses behind the furthest, one that was not asked for no longer will be."""


def numbers_of(digests: Sequence[str]) -> Ids:
    """What stands for shards in a registration: uint64, the first 8 bytes of each digest.

    Raises:
        Corrupt: one of them is no digest.
    """
    try:
        heads = bytes.fromhex("".join([digest[:16] for digest in digests]))
    except ValueError as error:
        raise Corrupt(f"the index names what is no digest: {error}") from error
    return np.frombuffer(heads, ">u8").astype(np.uint64)


@dataclass(frozen=True, slots=True, eq=False)
class Outlook:
    """What a reader tells of itself.

    corpus, version, rank, world_size: whose shards, and which part of them, as people know it.
    first_epoch: number of the first of `epochs`. epochs: for each epoch from it on the shards (`numbers_of`)
    in the order in which the cache will be asked for them; what goes beyond `HORIZON` is left out.
    known: all shards that it may ever use. shard_bytes: of a shard, on average.
    uses_per_second: its speed; 0 to have it measured. until: for each epoch and use of it, before how many
    uses of that epoch, at most, its shard is read to its end, int64; by default before the next one.
    """

    corpus: str
    version: int
    rank: int
    world_size: int
    first_epoch: int
    epochs: Sequence[Ids]
    known: Ids
    shard_bytes: int
    uses_per_second: float = 0.0
    until: Sequence[Ints] = ()

    def uses(self) -> Ids:
        """All that is foretold, in order."""
        return np.concatenate([np.empty(0, np.uint64), *self.epochs])[:HORIZON]

    def lasting(self) -> Ints:
        """How many uses are done, at most, while each of `uses` lasts; 0 where that is not known."""
        if not self.until:
            return np.zeros(len(self.uses()), np.int64)
        begins = np.cumsum([0, *(len(epoch) for epoch in self.epochs[:-1])])
        return np.concatenate([begin + part for begin, part in zip(begins, self.until, strict=True)])[
            :HORIZON
        ]

    def epoch_ends(self) -> list[int]:
        """Where the epochs end in `uses`; one that goes beyond the horizon has no end."""
        ends = np.cumsum([len(epoch) for epoch in self.epochs]).tolist()
        return [end for end in ends if end <= HORIZON]


class Registration:
    """One reader's place in a cache, in the process that reads. Usable from many threads."""

    def __init__(self) -> None:
        self._token = secrets.token_hex(8)
        self._file = _Held()
        self._lock = threading.Lock()
        self._outlook: Outlook | None = None
        self._future = Future(np.empty(0, np.uint64), np.empty(0, np.uint64))
        self._asked: list[int] = []
        self._renewals = 0
        self._furthest = 0
        self._behind = bytearray()
        self._speed = 0.0
        self._since = time.monotonic()
        self._epoch: int | None = None
        self.done = 0
        weakref.finalize(self, _Held.drop, self._file)

    @property
    def name(self) -> str:
        """The name of its file; "" before there is one."""
        return self._file.path.name if self._file.path else ""

    def begin(self, epoch: int) -> None:
        """Say that an epoch begins: of others, nothing is asked for until the next one begins.

        Without this, all that is foretold is taken for one epoch.
        """
        with self._lock:
            self._asked, self._since, self._epoch = [], time.monotonic(), epoch
            start, end = self._limits()
            if start < end:  # it is foretold already
                self.done = self._furthest = start
                self._behind[start:] = bytes(len(self._behind) - start)

    def renew(self, folder: Path, outlook: Outlook) -> None:
        """Register, or tell what comes now, in place of what was told before.

        Call it within a transaction of the index. What was asked for since `begin` is taken for done.
        """
        with self._lock:
            self._outlook = outlook
            uses = outlook.uses()
            self._future = Future(uses, outlook.known)
            self._behind = bytearray(len(uses))
            self.done = self._furthest = 0
            for number in self._asked:
                self._mark(number)
            self._renewals += 1
            self._file.replace(folder / f"{self._token}-{self._renewals}", self._content(outlook, uses))

    def ask(self, digest: str) -> int:
        """Note that the cache is asked for a shard; returns how many uses are done once this one is."""
        (number,) = numbers_of([digest]).tolist()
        with self._lock:
            self._asked.append(number)
            after = self._mark(number)
            self._tell()
            return after

    def _mark(self, number: int) -> int:
        """Take the next use of a shard in this epoch for done; a shard that has none is asked for again."""
        _start, end = self._limits()
        position = self._next(number, self.done)
        while position < end and self._behind[position]:
            position = self._next(number, position + 1)
        if position >= end:
            return self.done
        self._behind[position] = 1
        self._furthest = max(self._furthest, position + 1)
        self.done = max(self.done, self._furthest - _SLACK)
        while self.done < self._furthest and self._behind[self.done]:
            self.done += 1
        return position + 1

    def _limits(self) -> tuple[int, int]:
        """Which of the uses [start, end) are of the epoch that it is in."""
        if self._outlook is None or self._epoch is None:
            return 0, len(self._behind)
        limits = [0, *self._outlook.epoch_ends(), len(self._behind)]
        number = self._epoch - self._outlook.first_epoch
        return (limits[number], limits[number + 1]) if 0 <= number < len(limits) - 1 else (0, 0)

    def _next(self, number: int, start: int) -> int:
        return int(self._future.look(np.array([number], np.uint64), start)[0][0])

    def _tell(self) -> None:
        """Write how far it is."""
        if self._file.is_ours():
            os.pwrite(self._file.fd, self._progress(), PROGRESS_AT)

    def _progress(self) -> bytes:
        now = time.monotonic()
        if self._outlook is not None and self._outlook.uses_per_second:
            self._speed = self._outlook.uses_per_second
        elif len(self._asked) > 1 and now > self._since:
            self._speed = len(self._asked) / (now - self._since)
        return PROGRESS.pack(self.done, self._speed, now)

    def _content(self, outlook: Outlook, uses: Ids) -> bytes:
        about = json.dumps(
            {
                "pid": os.getpid(),
                "corpus": outlook.corpus,
                "version": outlook.version,
                "rank": outlook.rank,
                "world_size": outlook.world_size,
                "first_epoch": outlook.first_epoch,
                "epoch_ends": outlook.epoch_ends(),
                "shard_bytes": outlook.shard_bytes,
            }
        ).encode()
        lengths = LENGTHS.pack(len(about), len(uses), len(outlook.known))
        arrays = [array.astype("<u8").tobytes() for array in (uses, outlook.lasting(), outlook.known)]
        return b"".join([MAGIC, self._progress(), lengths, about, *arrays])


class _Held:
    """A locked file of this process; not of a child that was forked from it."""

    def __init__(self) -> None:
        self.fd = -1
        self.path: Path | None = None
        _held.add(self)

    def is_ours(self) -> bool:
        return self.fd >= 0

    def replace(self, path: Path, content: bytes) -> None:
        """Have a new file in place of the one before."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try_lock(fd)  # nobody else has it open
            _write(fd, content)
        except BaseException:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        self.drop()
        self.fd, self.path = fd, path

    def drop(self) -> None:
        """Delete it, if it is ours."""
        fd, self.fd = self.fd, -1
        path, self.path = self.path, None
        if fd >= 0:
            os.close(fd)
            if path is not None:
                with contextlib.suppress(
                    OSError
                ):  # what has no lock is nobody's, and goes with the next look
                    path.unlink(missing_ok=True)

    def forget(self) -> None:
        """Close it in a child: else the lock would outlive the parent."""
        fd, self.fd, self.path = self.fd, -1, None
        if fd >= 0:
            os.close(fd)


def _write(fd: int, content: bytes) -> None:
    if os.write(fd, content) != len(content):
        raise OSError("the disk took a part of a registration")


_held: weakref.WeakSet[_Held] = weakref.WeakSet()


def _forget_all() -> None:
    for held in list(_held):
        held.forget()


os.register_at_fork(after_in_child=_forget_all)
