"""The node cache's index: an SQLite file (WAL) that says which copies are whole and which are being filled.

Invariant: whoever gets a connection from `connect` has a sound index that agrees with the files of the cache.
The files are the truth: an index that is damaged is put aside, once, and made anew from them. What it says
beside that, requests counted and settings that all processes share, begins anew then.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tiering.digest import DIGEST_CHARS

log = logging.getLogger("tiering.cache")

BAD_SUFFIX: Final = ".bad"
"""Ends the name of a damaged index, kept for whoever asks why; the next one replaces it."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS entries (
    digest TEXT PRIMARY KEY,    -- rows stand in the order of admission
    nbytes INTEGER NOT NULL,
    whole INTEGER NOT NULL,     -- 0 while it is being filled
    used INTEGER NOT NULL       -- counts uses; the largest is the latest
);
CREATE INDEX IF NOT EXISTS entries_used ON entries (used);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counts (
    one INTEGER PRIMARY KEY CHECK (one = 1),  -- requests of all processes, in one row
    hits INTEGER NOT NULL, hit_bytes INTEGER NOT NULL, misses INTEGER NOT NULL, miss_bytes INTEGER NOT NULL
);
INSERT OR IGNORE INTO counts VALUES (1, 0, 0, 0, 0);
"""
_DROP_NONSENSE: Final = f"""
DELETE FROM entries WHERE typeof(digest) != 'text' OR length(digest) != {DIGEST_CHARS}
    OR digest GLOB '*[^0-9a-f]*'
    OR typeof(nbytes) != 'integer' OR nbytes < 0 OR whole NOT IN (0, 1) OR typeof(used) != 'integer'
"""  # noqa: S608
"""SQLite has no checksums: a bit may turn in a row and leave the file well-formed."""

_NOT_DAMAGE: Final = frozenset(
    {
        *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_NOMEM),
        *(sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM),
    }
)


Copies = Callable[[], Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests of all processes since the cache was made or cleared."""

    hits: int = 0
    hit_bytes: int = 0
    misses: int = 0
    miss_bytes: int = 0

    @property
    def hit_ratio(self) -> float:
        """Share of the bytes asked for that was here; 0 where nothing was asked for."""
        asked_bytes = self.hit_bytes + self.miss_bytes
        return self.hit_bytes / asked_bytes if asked_bytes else 0.0


@dataclass(slots=True)
class Connection:
    """One process's connection. A child must neither use nor close its parent's, nor wait for its lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    db: sqlite3.Connection | None = None
    inode: int = 0

    def close(self) -> None:
        """Close it; who has it next opens it again."""
        if self.db is not None:
            self.db.close()
        self.db = None


def is_damage(error: BaseException) -> bool:
    """Whether an error is of the index's bytes, and not of the disk or of who else uses it."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)  # text that is none has no code
    return isinstance(error, sqlite3.Error) and code & 0xFF not in _NOT_DAMAGE


def setting(db: sqlite3.Connection, name: str) -> object:
    """What the processes agreed on; None where nothing. SQLite keeps no checksums: check it."""
    row = db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
    return None if row is None else row[0]


def set_setting(db: sqlite3.Connection, name: str, value: str | int | None) -> None:
    """Agree on a value; None forgets it."""
    if value is None:
        db.execute("DELETE FROM settings WHERE name = ?", (name,))
    else:
        db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, value))


def count(db: sqlite3.Connection, nbytes: int, *, hit: bool) -> None:
    """Count a request."""
    if hit:
        db.execute("UPDATE counts SET hits = hits + 1, hit_bytes = hit_bytes + ?", (nbytes,))
    else:
        db.execute("UPDATE counts SET misses = misses + 1, miss_bytes = miss_bytes + ?", (nbytes,))


def counts(db: sqlite3.Connection) -> Counts:
    """Requests so far."""
    row = db.execute("SELECT hits, hit_bytes, misses, miss_bytes FROM counts").fetchone() or ()
    sound = len(row) == 4 and all(isinstance(value, int) and value >= 0 for value in row)
    return Counts(*row) if sound else Counts()


def forget_counts(db: sqlite3.Connection) -> None:
    """Begin to count anew."""
    db.execute("UPDATE counts SET hits = 0, hit_bytes = 0, misses = 0, miss_bytes = 0")


def connect(path: Path, copies: Copies, busy_seconds: float) -> sqlite3.Connection:
    """Open the index; the caller keeps others from opening it meanwhile.

    Args:
        path: of the file; made when it is not there.
        copies: looks which copies lie in the cache, by digest, with their lengths.
        busy_seconds: how long a transaction waits for those of other processes.
    """
    try:
        return _connect(path, copies, busy_seconds)
    except sqlite3.Error as error:
        if not is_damage(error):
            raise
        log.warning(
            "index %s of the node cache is damaged (%s); it is made anew from the copies", path, error
        )
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.rename(path.with_name(path.name + BAD_SUFFIX))
    return _connect(path, copies, busy_seconds)


def _connect(path: Path, copies: Copies, busy_seconds: float) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # SQLite would ask the umask
    db = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")  # what a power cut loses is found or fetched again
        _check(db)
        db.executescript(_SCHEMA)
        with immediate(db):
            _reconcile(db, copies())
    except BaseException:
        db.close()
        raise
    return db


def _check(db: sqlite3.Connection) -> None:
    """Raise sqlite3.DatabaseError unless the file is well-formed."""
    told = db.execute("PRAGMA integrity_check(1)").fetchone()
    if told != ("ok",):
        raise sqlite3.DatabaseError(f"integrity check: {told}")


def _reconcile(db: sqlite3.Connection, copies: Mapping[str, int]) -> None:
    """Make the index say what is there: a crash may have kept a file and lost its row, or the reverse."""
    db.execute(_DROP_NONSENSE)
    for (name,) in db.execute("SELECT digest FROM entries WHERE whole = 1").fetchall():
        if name not in copies:
            db.execute("DELETE FROM entries WHERE digest = ?", (name,))
    db.executemany(
        "INSERT INTO entries VALUES (?, ?, 1, 0) ON CONFLICT (digest) DO UPDATE SET nbytes = excluded.nbytes",
        copies.items(),
    )


@contextmanager
def immediate(db: sqlite3.Connection) -> Iterator[None]:
    """One transaction that holds the write lock from its beginning."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # a full disk may have ended it already
            with contextlib.suppress(sqlite3.Error):  # of what is damaged; closing it ends the transaction
                db.execute("ROLLBACK")
        raise
