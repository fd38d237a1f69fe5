"""What lies in a node cache: its files, the index that counts them, and the locks of those who fill it.

Invariant: `whole` and `filling` entries of the index are the files below ``objects/``, to within what a
process that was killed just now did; whoever opens the index takes over what a crash kept from it.

No index is open across a fork: SQLite remembers in memory which locks of a file the process has, and a child
would take its parent's for its own. So a fork waits for transactions, and both open it anew.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from tiering.cache.index import Connection, connect, immediate, is_damage
from tiering.cache.lock import locked
from tiering.digest import DIGEST_CHARS
from tiering.errors import NotFound, TieringError
from tiering.stores.file import FileStore

STORE_NAME: Final = "node cache"
"""The tier that messages and statistics name for copies here."""
BUSY_SECONDS: Final = 30.0
_FORK_SECONDS: Final = 60.0  # no transaction takes so long
SICKNESS: Final = (sqlite3.Error, OSError, TieringError)
"""What a sick disk or index raises."""
_NEXT_USE: Final = "(SELECT coalesce(max(used), 0) + 1 FROM entries)"


Opened = Callable[["Content", sqlite3.Connection], None]


def key_of(name: str) -> str:
    """The key of a shard's file, by its digest."""
    return f"{name[:2]}/{name}"


class Content:
    """The content of the cache in the folder `path`.

    Args:
        path: made when it is not there, by the first transaction.
        opened: called within a transaction whenever the index was opened.
    """

    def __init__(self, path: Path, opened: Opened | None = None) -> None:
        self.path = path
        self._opened = opened
        self._indexes: dict[int, Connection] = {}  # by process
        self._objects: FileStore | None = None
        weakref.finalize(self, _close_own, self._indexes)
        _all.add(self)

    @property
    def files(self) -> FileStore:
        """The copies; keys by `key_of`."""
        if self._objects is None:
            self._objects = FileStore(STORE_NAME, self.path / "objects")
        return self._objects

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The index, with no other writer in any process until the block ends."""
        index = self.connection
        with index.lock:
            if index.db is not None and index.inode != _inode(self.index_path):
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

    def locked(self, lock: str, wait_seconds: float) -> AbstractContextManager[bool]:
        """Hold one of the locks that all processes share; whether it could be had in time."""
        return locked(self.folder("locks") / lock, wait_seconds)

    def is_present(self, name: str, nbytes: int) -> bool:
        """Whether the file is there. Its name is enough: it got it whole, after its digest was checked."""
        try:
            return self.files.stat(key_of(name)).nbytes == nbytes
        except SICKNESS:
            return False

    def whole(self, db: sqlite3.Connection) -> list[tuple[str, int]]:
        """Digest and length of each copy, in the order of their admission."""
        return db.execute("SELECT digest, nbytes FROM entries WHERE whole = 1 ORDER BY rowid").fetchall()

    def by_use(self, db: sqlite3.Connection) -> list[tuple[str, int]]:
        """Digest and length of each copy, that of the oldest use first."""
        return db.execute("SELECT digest, nbytes FROM entries WHERE whole = 1 ORDER BY used").fetchall()

    def filling_bytes(self, db: sqlite3.Connection) -> int:
        """Bytes that are reserved for fills."""
        (nbytes,) = db.execute("SELECT coalesce(sum(nbytes), 0) FROM entries WHERE whole = 0").fetchone()
        return int(nbytes)

    def touch(self, db: sqlite3.Connection, name: str) -> bool:
        """Count a use of a copy that is whole; whether there is one."""
        statement = f"UPDATE entries SET used = {_NEXT_USE} WHERE digest = ? AND whole = 1"  # noqa: S608
        return db.execute(statement, (name,)).rowcount == 1

    def reserve(self, db: sqlite3.Connection, name: str, nbytes: int) -> None:
        """Claim room for a fill; whoever does holds its lock."""
        db.execute(f"INSERT INTO entries VALUES (?, ?, 0, {_NEXT_USE})", (name, nbytes))  # noqa: S608

    def take_over(self, db: sqlite3.Connection, name: str) -> None:
        """Forget what one who died while filling a shard left; its lock is ours now."""
        died = db.execute("SELECT 1 FROM entries WHERE digest = ? AND whole = 0", (name,)).fetchone()
        self.evict(db, name)
        if died is not None:
            self.files.sweep()

    def finish(self, db: sqlite3.Connection, name: str) -> bool:
        """Say that a fill is whole; False where the index was made anew, and knew nothing of its room."""
        if db.execute("UPDATE entries SET whole = 1 WHERE digest = ?", (name,)).rowcount == 1:
            return True
        self.evict(db, name)
        return False

    def evict(self, db: sqlite3.Connection, name: str) -> None:
        """Readers that have it open go on; the others find it gone and fetch."""
        self.files.delete(key_of(name))
        db.execute("DELETE FROM entries WHERE digest = ?", (name,))

    def is_listed(self, db: sqlite3.Connection, name: str) -> bool:
        """Whether the index knows a copy that is whole."""
        return (
            db.execute("SELECT 1 FROM entries WHERE digest = ? AND whole = 1", (name,)).fetchone() is not None
        )

    def used_bytes(self, db: sqlite3.Connection) -> int:
        """Bytes of copies, and of what is being filled."""
        return int(db.execute("SELECT coalesce(sum(nbytes), 0) FROM entries").fetchone()[0])

    def discard(self, db: sqlite3.Connection, name: str) -> None:
        """Evict a copy, but not one that is being filled: its bytes are new ones."""
        filling = db.execute("SELECT 1 FROM entries WHERE digest = ? AND whole = 0", (name,))
        if filling.fetchone() is None:
            self.evict(db, name)

    def drop_abandoned(self, db: sqlite3.Connection) -> None:
        """Give back what dead processes had reserved."""
        abandoned = False
        for (name,) in db.execute("SELECT digest FROM entries WHERE whole = 0").fetchall():
            with self.locked(name[:3], 0.0) as alone:
                if alone:
                    self.evict(db, name)
                    abandoned = True
        if abandoned:
            self.files.sweep()

    def folder(self, name: str) -> Path:
        """A folder of the cache, made if need be."""
        folder = self.path / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def require(self) -> None:
        """Raise `NotFound` where there is no cache."""
        if not self.index_path.is_file():
            hint = "Give the folder that NodeCache(...) was given; training makes it"
            raise NotFound(f"no node cache in {str(self.path)!r}", tier=STORE_NAME, hint=hint)

    def close(self) -> None:
        """Close the index; the next use opens it again."""
        _close_own(self._indexes)

    @property
    def index_path(self) -> Path:
        """The file of the index."""
        return self.path / "index.sqlite"

    @property
    def connection(self) -> Connection:
        """This process's own."""
        return self._indexes.setdefault(os.getpid(), Connection())

    def _open(self) -> tuple[sqlite3.Connection, int]:
        """A connection to the sound index, and that file's inode."""
        self.folder("")
        with self.locked("index", BUSY_SECONDS):  # SQLite cannot wait for the change to WAL
            db = connect(self.index_path, self._copies, BUSY_SECONDS)
            try:
                if self._opened is not None:
                    with immediate(db):
                        self._opened(self, db)
            except BaseException:
                db.close()
                raise
            return db, _inode(self.index_path)

    def _copies(self) -> dict[str, int]:
        """Digest and length of each copy that lies here, after unfinished writes were swept away."""
        self.files.sweep()
        found = {info.key: info.nbytes for info in self.files.list()}
        names = {key.rpartition("/")[2]: nbytes for key, nbytes in found.items()}
        return {n: nbytes for n, nbytes in names.items() if len(n) == DIGEST_CHARS and key_of(n) in found}


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


_all: weakref.WeakSet[Content] = weakref.WeakSet()


class _Forking(threading.local):
    """Connections that this thread keeps locked while it forks; another thread may fork as well."""

    def __init__(self) -> None:
        self.held: list[Connection] = []


_forking = _Forking()


def _close_for_fork() -> None:
    for content in sorted(_all, key=id):  # two threads that fork wait for each other in one order
        index = content._indexes.get(os.getpid())
        if index is not None and index.lock.acquire(timeout=_FORK_SECONDS):
            _forking.held.append(index)
            with contextlib.suppress(sqlite3.Error):
                index.close()


def _go_on_after_fork() -> None:
    while _forking.held:
        _forking.held.pop().lock.release()


def _begin_anew_in_child() -> None:
    """With connections, locks and open files of its own."""
    _forking.held.clear()
    for content in list(_all):
        content._indexes.clear()
        content._objects = None


os.register_at_fork(
    before=_close_for_fork, after_in_parent=_go_on_after_fork, after_in_child=_begin_anew_in_child
)
