"""The node cache: one node's bounded, shared, disposable copies of shards, by digest.

Invariant: the bytes of whole copies and of reserved fills never exceed the capacity, whatever processes do at
the same time; a copy is readable only after its digest was checked; a process that dies at any instant
leaves nothing that another takes for whole or waits for. Nothing here is needed: a cache that is full,
sick or gone makes training slower, never wrong.

Below its folder: ``objects/`` (a file tier; keys are digests), ``index.sqlite`` (WAL: what is whole or being
filled) and ``locks/`` (one flock for each fill, which the kernel frees when its process dies).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from policies.eviction import Eviction, make
from tiering.digest import Buffer, digest
from tiering.errors import ConfigError, Corrupt, TieringError
from tiering.monitor.stats import COUNTERS
from tiering.stores.file import FileStore
from tiering.tier import parse_size

log = logging.getLogger("tiering.cache")

BUSY_SECONDS: Final = 30.0
WAIT_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.02
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS entries (
    digest TEXT PRIMARY KEY,
    nbytes INTEGER NOT NULL,
    whole INTEGER NOT NULL,     -- 0 while it is being filled
    used INTEGER NOT NULL       -- counts uses; the largest is the latest
) STRICT;
CREATE INDEX IF NOT EXISTS entries_used ON entries (used);
"""


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """What a node cache holds now."""

    path: Path
    policy: str
    capacity_bytes: int
    used_bytes: int
    shards: int
    filling: int


class NodeCache:
    """Copies of shards on this node, shared by all processes that name the same folder.

    Args:
        path: a folder on a local disk; made when it is not there.
        capacity: bytes, or ``"500GB"``.
        policy: eviction policy by name (`policies.eviction`); ``pin`` keeps what it has, the best that one
            job can do that reads each row once an epoch.

    Raises:
        ConfigError: no such policy, or no size.
    """

    def __init__(self, path: str | os.PathLike[str], capacity: str | int, policy: str = "pin") -> None:
        self.path = Path(path).expanduser().absolute()
        self.capacity_bytes = parse_size(capacity, "capacity")
        self.policy = policy
        try:
            make(policy, self.capacity_bytes)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._process = 0
        self._objects: FileStore | None = None
        self._sick = False

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "capacity": self.capacity_bytes, "policy": self.policy}

    def __setstate__(self, state: dict[str, Any]) -> None:
        NodeCache.__init__(self, **state)

    def __repr__(self) -> str:
        return f"NodeCache({str(self.path)!r}, {self.capacity_bytes}, {self.policy!r})"

    def get(self, name: str, nbytes: int, fetch: Callable[[], Sequence[Buffer]]) -> bool:
        """Have the shard of digest `name` here if the policy wants it; whether it can be read now.

        `fetch` is called, by one process of the node at a time, when the shard is wanted and not here; errors
        it raises come out. Errors of the cache itself are logged once, and the answer is False.
        """
        try:
            if self._touch(name):
                COUNTERS.add_cache(hits=1, hit_bytes=nbytes)
                return True
            COUNTERS.add_cache(misses=1, miss_bytes=nbytes)
            if self._sick:
                return False
            with self._filling(name, WAIT_SECONDS) as alone:
                if not alone or self._touch(name):  # filled by another process meanwhile
                    return alone
                return self._reserve(name, nbytes) and self._fill(name, fetch)
        except _FetchError as error:
            raise error.reason from None
        except (sqlite3.Error, OSError) as error:
            if not self._sick:
                log.warning("node cache %s takes no more shards: %s", self.path, error)
            self._sick = True
            return False

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with bytes of a shard from `offset` on.

        Raises:
            NotFound: it was evicted, or never here. Corrupt: it is truncated.
        """
        self._files.read_into(_key(name), offset, buffer)

    def discard(self, name: str) -> None:
        """Forget a shard, because its bytes turned out bad."""
        with self._transaction() as db:
            db.execute("DELETE FROM entries WHERE digest = ?", (name,))
        self._files.delete(_key(name))

    def status(self) -> CacheStatus:
        """What is here now."""
        with self._transaction() as db:
            used, shards, filling = db.execute(
                "SELECT coalesce(sum(nbytes), 0), coalesce(sum(whole), 0), count(*) - coalesce(sum(whole), 0)"
                " FROM entries"
            ).fetchone()
        return CacheStatus(self.path, self.policy, self.capacity_bytes, used, shards, filling)

    def resident_bytes(self, names: Iterable[str]) -> int:
        """Bytes of those of the named shards that are here."""
        with self._transaction() as db:
            sizes = dict(db.execute("SELECT digest, nbytes FROM entries WHERE whole = 1").fetchall())
        return sum(sizes.get(name, 0) for name in set(names))

    def close(self) -> None:
        """Close the index; the next use opens it again."""
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
            self._connection = None

    def _touch(self, name: str) -> bool:
        """Whether the shard is whole here; counts as a use of it."""
        with self._transaction() as db:
            last = "SELECT max(used) + 1 FROM entries"
            changed = db.execute(
                f"UPDATE entries SET used = ({last}) WHERE digest = ? AND whole = 1",  # noqa: S608
                (name,),
            )
            return changed.rowcount == 1

    def _reserve(self, name: str, nbytes: int) -> bool:
        """Make room for a shard and claim it, in one transaction; False when the policy refuses it."""
        with self._transaction() as db:
            db.execute("DELETE FROM entries WHERE digest = ? AND whole = 0", (name,))  # its filler died
            self._drop_abandoned(db)
            policy: Eviction[str] = make(self.policy, self.capacity_bytes)
            for entry, size in db.execute("SELECT digest, nbytes FROM entries ORDER BY used").fetchall():
                if policy.admit(entry, size) is None:  # the capacity is smaller than last time
                    self._evict(db, entry)
            filling = {row[0] for row in db.execute("SELECT digest FROM entries WHERE whole = 0")}
            victims = policy.admit(name, nbytes)
            if victims is None or filling.intersection(victims):
                return False
            for victim in victims:
                self._evict(db, victim)
            last = "SELECT coalesce(max(used), 0) + 1 FROM entries"
            db.execute(f"INSERT INTO entries VALUES (?, ?, 0, ({last}))", (name, nbytes))  # noqa: S608
            return True

    def _fill(self, name: str, fetch: Callable[[], Sequence[Buffer]]) -> bool:
        whole = False
        try:
            buffers = _fetched(name, fetch)
            self._files.write(_key(name), buffers)
            with self._transaction() as db:
                db.execute("UPDATE entries SET whole = 1 WHERE digest = ?", (name,))
            whole = True
        finally:
            if not whole:
                with contextlib.suppress(sqlite3.Error, OSError):
                    self.discard(name)
        return True

    def _evict(self, db: sqlite3.Connection, name: str) -> None:
        """Readers that have it open go on; the others find it gone and fetch."""
        self._files.delete(_key(name))
        db.execute("DELETE FROM entries WHERE digest = ?", (name,))

    def _drop_abandoned(self, db: sqlite3.Connection) -> None:
        """Give back what dead processes had reserved."""
        for (name,) in db.execute("SELECT digest FROM entries WHERE whole = 0").fetchall():
            with self._filling(name, 0.0) as alone:
                if alone:
                    self._evict(db, name)

    @contextmanager
    def _filling(self, name: str, wait_seconds: float) -> Iterator[bool]:
        """Hold the lock of a shard's fill; yields whether it could be had in time."""
        fd = os.open(self._folder("locks") / name[:3], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + wait_seconds
        try:
            while not (locked := _try_lock(fd)) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
            yield locked
        finally:
            os.close(fd)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """The index, with no other writer in any process until the block ends."""
        with self._lock:
            db = self._connect()
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    def _connect(self) -> sqlite3.Connection:
        if self._connection is not None and self._process == os.getpid():
            return self._connection
        path = self._folder("") / "index.sqlite"
        db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")  # what a power cut loses is fetched again
            db.executescript(_SCHEMA)
        except BaseException:
            db.close()
            raise
        self._files.sweep()
        self._connection, self._process = db, os.getpid()
        return db

    @property
    def _files(self) -> FileStore:
        if self._objects is None:
            self._objects = FileStore("node cache", self._folder("objects"))
        return self._objects

    def _folder(self, name: str) -> Path:
        folder = self.path / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder


class _FetchError(Exception):
    """Carries an error of the tier through the handlers of the cache's own errors."""

    def __init__(self, reason: TieringError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _fetched(name: str, fetch: Callable[[], Sequence[Buffer]]) -> Sequence[Buffer]:
    try:
        buffers = fetch()
    except TieringError as error:
        raise _FetchError(error) from error
    if digest(buffers) != name:
        raise _FetchError(Corrupt(f"the bytes fetched are not those of digest {name[:12]}"))
    return buffers


def _key(name: str) -> str:
    return f"{name[:2]}/{name}"


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
