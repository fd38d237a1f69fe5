"""The node cache: one node's bounded, shared, disposable copies of shards, by digest.

Invariant: the bytes of whole copies and of reserved fills never exceed the capacity, whatever processes do at
the same time; a copy is readable only after its digest was checked; a process that dies at any instant
leaves nothing that another takes for whole or waits for. Nothing here is needed: a cache that is full,
sick or gone makes training slower, never wrong.

Below its folder: ``objects/`` (a file tier; keys are digests), ``index.sqlite`` (`tiering.cache_index`) and
``locks/`` (one flock for each fill, which the kernel frees when its process dies). The files are the truth,
the index only counts them: whoever opens it takes over what a crash kept from it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from policies.eviction import Eviction, make
from tiering.access_log import AccessLog
from tiering.cache_index import Connection, connect, immediate, is_damage
from tiering.cache_lock import locked
from tiering.digest import DIGEST_CHARS, Buffer, digest
from tiering.errors import ConfigError, Corrupt, TieringError, Unavailable
from tiering.monitor.stats import COUNTERS
from tiering.sizes import parse_size
from tiering.stores.base import Extent, Reader
from tiering.stores.file import FileStore
from tiering.transfer import is_verified

log = logging.getLogger("tiering.cache")

STORE_NAME: Final = "node cache"
"""The tier that messages and statistics name for copies here."""
BUSY_SECONDS: Final = 30.0
WAIT_SECONDS: Final = 60.0
_SICKNESS: Final = (sqlite3.Error, OSError, TieringError)
_NEXT_USE: Final = "(SELECT coalesce(max(used), 0) + 1 FROM entries)"


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
        access_log: a file that is told of every request (docs/traces.md), or an `AccessLog`.

    Raises:
        ConfigError: no such policy, or no size.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        capacity: str | int,
        policy: str = "pin",
        access_log: AccessLog | str | os.PathLike[str] | None = None,
    ) -> None:
        self.path = Path(path).expanduser().absolute()
        self.capacity_bytes = parse_size(capacity, "capacity")
        self.policy = policy
        self.access_log = AccessLog.of(access_log)
        try:
            make(policy, self.capacity_bytes)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self._indexes: dict[int, Connection] = {}  # by process
        self._objects: FileStore | None = None
        self._sick = self._renewed = False
        weakref.finalize(self, _close_own, self._indexes)

    def __getstate__(self) -> dict[str, Any]:
        state = {"path": self.path, "capacity": self.capacity_bytes, "policy": self.policy}
        return {**state, "access_log": self.access_log}

    def __setstate__(self, state: dict[str, Any]) -> None:
        NodeCache.__init__(self, **state)

    def __repr__(self) -> str:
        return f"NodeCache({str(self.path)!r}, {self.capacity_bytes}, {self.policy!r})"

    def get(
        self, name: str, nbytes: int, fetch: Callable[[], Sequence[Buffer]], *, verified: bool = False
    ) -> bool:
        """Have the shard of digest `name` here if the policy wants it; whether it can be read now.

        `fetch` is called, by one process of the node at a time, when the shard is wanted and not here; errors
        it raises come out. What it gives is hashed, unless `verified` says that `fetch` has done that. After
        an error of the cache itself, which is logged once, it takes no more shards and goes on giving those
        it has.
        """
        try:
            hit = self._use(name, nbytes)
            self._count(name, nbytes, hit)
            if hit or self._sick:
                return hit
            with self._locked(name[:3], WAIT_SECONDS) as alone:
                if not alone or self._use(name, nbytes):  # filled by another process meanwhile
                    return alone
                return self._reserve(name, nbytes) and self._fill(name, fetch, verified=verified)
        except _FetchError as error:
            raise error.reason from error.reason.__cause__
        except _SICKNESS as error:
            self._fall_sick(error)
            return self._is_present(name, nbytes)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with bytes of a shard from `offset` on.

        Raises:
            NotFound: it was evicted, or never here. Corrupt: it is truncated.
        """
        self._files.read_into(_key(name), offset, buffer)

    def reader(self, name: str) -> Reader:
        """What reads as `read_into` of a shard does, for many blocks; drop it when these are read."""
        return self._files.reader(_key(name))

    def locate(self, name: str) -> Extent:
        """The file of a shard; whoever opened it may read on after it was evicted.

        Raises:
            NotFound: it was evicted, or never here.
        """
        return self._files.locate(_key(name))

    def verify(self, name: str, nbytes: int) -> bool:
        """Read a shard back, and discard it where it has not its digest; whether it has."""
        with contextlib.suppress(*_SICKNESS):
            if is_verified(self._files, _key(name), nbytes, name):
                return True
        self.discard(name)
        return False

    def discard(self, name: str) -> None:
        """Forget a shard, because its bytes turned out bad."""
        try:
            with self._transaction() as db:
                filling = db.execute("SELECT 1 FROM entries WHERE digest = ? AND whole = 0", (name,))
                if filling.fetchone() is None:  # else its bytes are new ones
                    self._evict(db, name)
        except _SICKNESS as error:
            self._fall_sick(error)
            with contextlib.suppress(*_SICKNESS):
                self._files.delete(_key(name))

    def status(self) -> CacheStatus:
        """What is here now.

        Raises:
            Unavailable: the cache is sick.
        """
        try:
            with self._transaction() as db:
                used, shards, filling = db.execute(
                    "SELECT coalesce(sum(nbytes), 0), coalesce(sum(whole), 0),"
                    " count(*) - coalesce(sum(whole), 0) FROM entries"
                ).fetchone()
        except _SICKNESS as error:
            hint = "Look at the folder and its disk; it may be deleted while nobody uses it"
            raise Unavailable(f"{self.path}: {error}", tier=STORE_NAME, hint=hint) from error
        return CacheStatus(self.path, self.policy, self.capacity_bytes, used, shards, filling)

    def resident_bytes(self, names: Iterable[str]) -> int:
        """Bytes of those of the named shards that are here; 0 where the cache cannot tell."""
        wanted = {_key(name) for name in names}
        try:
            return sum(info.nbytes for info in self._files.list() if info.key in wanted)
        except _SICKNESS as error:
            self._fall_sick(error)
            return 0

    def close(self) -> None:
        """Close the index; the next use opens it again."""
        _close_own(self._indexes)

    def _count(self, name: str, nbytes: int, hit: bool) -> None:
        if hit:
            COUNTERS.add_cache(hits=1, hit_bytes=nbytes)
        else:
            COUNTERS.add_cache(misses=1, miss_bytes=nbytes)
        if self.access_log is not None:
            self.access_log.add(name, nbytes, hit=hit)

    def _use(self, name: str, nbytes: int) -> bool:
        """Whether the shard can be read here; counts as a use of it."""
        if self._sick or not self._touch(name):
            return self._sick and self._is_present(name, nbytes)
        if self._is_present(name, nbytes):
            return True
        self.discard(name)  # a process was killed between file and index, or somebody tidied up by hand
        return False

    def _touch(self, name: str) -> bool:
        with self._transaction() as db:
            statement = f"UPDATE entries SET used = {_NEXT_USE} WHERE digest = ? AND whole = 1"  # noqa: S608
            return db.execute(statement, (name,)).rowcount == 1

    def _is_present(self, name: str, nbytes: int) -> bool:
        """Whether the file is there. Its name is enough: it got it whole, after its digest was checked."""
        try:
            return self._files.stat(_key(name)).nbytes == nbytes
        except _SICKNESS:
            return False

    def _reserve(self, name: str, nbytes: int) -> bool:
        """Make room for a shard and claim it, in one transaction; False when the policy refuses it."""
        with self._transaction() as db:
            self._evict(db, name)  # its filler died: we hold its lock
            self._drop_abandoned(db)
            victims = self._fitted(db).admit(name, nbytes)
            if victims is None:
                return False
            for victim in victims:
                self._evict(db, victim)
            db.execute(f"INSERT INTO entries VALUES (?, ?, 0, {_NEXT_USE})", (name, nbytes))  # noqa: S608
            return True

    def _fitted(self, db: sqlite3.Connection) -> Eviction[str]:
        """The policy, knowing all whole copies, with the room that fills leave it.

        Copies that no longer fit, because the capacity is smaller than last time, are evicted.
        """
        (filling,) = db.execute("SELECT coalesce(sum(nbytes), 0) FROM entries WHERE whole = 0").fetchone()
        whole = db.execute("SELECT digest, nbytes FROM entries WHERE whole = 1 ORDER BY rowid").fetchall()
        policy: Eviction[str] = make(self.policy, sum(nbytes for _name, nbytes in whole))
        for name, nbytes in whole:
            policy.admit(name, nbytes)
        for (name,) in db.execute("SELECT digest FROM entries WHERE whole = 1 ORDER BY used"):
            policy.hit(name)
        for victim in policy.resize(max(0, self.capacity_bytes - filling)):
            self._evict(db, victim)
        return policy

    def _fill(self, name: str, fetch: Callable[[], Sequence[Buffer]], *, verified: bool) -> bool:
        try:
            self._files.write(_key(name), _fetched(name, fetch, verified=verified))
            with self._transaction() as db:
                if db.execute("UPDATE entries SET whole = 1 WHERE digest = ?", (name,)).rowcount == 1:
                    return True
                self._evict(db, name)  # the index was made anew, and knew nothing of our room
                return False
        except BaseException:
            with contextlib.suppress(*_SICKNESS), self._transaction() as db:
                self._evict(db, name)
            raise

    def _evict(self, db: sqlite3.Connection, name: str) -> None:
        """Readers that have it open go on; the others find it gone and fetch."""
        self._files.delete(_key(name))
        db.execute("DELETE FROM entries WHERE digest = ?", (name,))

    def _drop_abandoned(self, db: sqlite3.Connection) -> None:
        """Give back what dead processes had reserved."""
        abandoned = False
        for (name,) in db.execute("SELECT digest FROM entries WHERE whole = 0").fetchall():
            with self._locked(name[:3], 0.0) as alone:
                if alone:
                    self._evict(db, name)
                    abandoned = True
        if abandoned:
            self._files.sweep()

    def _copies(self) -> dict[str, int]:
        """Digest and length of each copy that lies here, after unfinished writes were swept away."""
        self._files.sweep()
        found = {info.key: info.nbytes for info in self._files.list()}
        names = {key.rpartition("/")[2]: nbytes for key, nbytes in found.items()}
        return {n: nbytes for n, nbytes in names.items() if len(n) == DIGEST_CHARS and _key(n) in found}

    def _locked(self, lock: str, wait_seconds: float) -> AbstractContextManager[bool]:
        """Hold one of the locks that all processes share; whether it could be had in time."""
        return locked(self._folder("locks") / lock, wait_seconds)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """The index, with no other writer in any process until the block ends."""
        index = self._indexes.setdefault(os.getpid(), Connection())
        with index.lock:
            if index.db is not None and index.inode != _inode(self._index_path):
                index.close()  # another process found it damaged and made it anew
            if index.db is None:
                index.db, index.inode = self._open()
            try:
                with immediate(index.db):
                    yield index.db
            except sqlite3.Error as error:
                if is_damage(error):
                    index.close()  # the next transaction opens it, which makes it anew
                raise

    def _open(self) -> tuple[sqlite3.Connection, int]:
        """A connection to the sound index, and that file's inode."""
        self._folder("")
        with self._locked("index", BUSY_SECONDS):  # SQLite cannot wait for the change to WAL
            db = connect(self._index_path, self._copies, BUSY_SECONDS)
            try:
                with immediate(db):
                    self._fitted(db)
            except BaseException:
                db.close()
                raise
            return db, _inode(self._index_path)

    @property
    def _index_path(self) -> Path:
        return self.path / "index.sqlite"

    def _fall_sick(self, error: Exception) -> None:
        if is_damage(error) and not self._renewed:  # the next transaction makes the index anew
            self._renewed = True
            return
        first, self._sick = not self._sick, True
        if first:
            log.warning("node cache %s takes no more shards; reading is slower: %s", self.path, error)

    @property
    def _files(self) -> FileStore:
        if self._objects is None:
            self._objects = FileStore(STORE_NAME, self.path / "objects")
        return self._objects

    def _folder(self, name: str) -> Path:
        folder = self.path / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder


class _FetchError(Exception):
    """Carries an error of the tier through the handlers of the cache's own errors."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _fetched(name: str, fetch: Callable[[], Sequence[Buffer]], *, verified: bool) -> Sequence[Buffer]:
    try:
        buffers = fetch()
    except Exception as error:
        raise _FetchError(error) from error
    if not verified and digest(buffers) != name:
        raise _FetchError(Corrupt(f"the bytes fetched are not those of digest {name[:12]}"))
    return buffers


def _key(name: str) -> str:
    return f"{name[:2]}/{name}"


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


def _close_own(indexes: dict[int, Connection]) -> None:
    """Close this process's connection."""
    index = indexes.pop(os.getpid(), None)
    if index is not None:
        index.close()
