"""Index of a block volume: a SQLite database that says which object lies where, and what is free.

Invariant: every page of the volume that would pass for an object's header is named here, in `extents` (it
counts) or in `doomed` (it must be zeroed before its space is free). So a header is doomed before it is
written and when it stops counting. The database holds nothing that a scan of the volume does not give back,
and every row carries a CRC32C, for SQLite has none: a flipped bit must not become a wrong offset.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

from tiering.digest import crc32c
from tiering.errors import FormatError, Locked, UnsupportedVersion, UsageError
from tiering.stores.pages import PAGE_BYTES, round_up

_APPLICATION_ID: Final = 0x43545842  # "CTXB", in the header of the database file
_VERSION: Final = 1
_RECENT: Final = 4096
_TABLES: Final = [
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE extents (key TEXT PRIMARY KEY, offset INTEGER NOT NULL, nbytes INTEGER NOT NULL,"
    " generation INTEGER NOT NULL, digest TEXT NOT NULL, damaged INTEGER NOT NULL, crc INTEGER NOT NULL)"
    " WITHOUT ROWID",
    "CREATE TABLE doomed (offset INTEGER PRIMARY KEY, span INTEGER NOT NULL, intended INTEGER NOT NULL,"
    " crc INTEGER NOT NULL)",
]
_SCHEMA: Final = (
    *_TABLES,
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_VERSION}",
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One object's extent: a header page at `offset`, then `nbytes` of data, padded to whole pages."""

    key: str
    offset: int
    nbytes: int
    generation: int
    digest: str
    damaged: bool = False
    """A rebuild found data that differ from their digest: kept as evidence, never read out."""

    @property
    def data_offset(self) -> int:
        """Where the data begin, on a page boundary."""
        return self.offset + PAGE_BYTES

    @property
    def span(self) -> int:
        """Bytes of the volume that the extent takes."""
        return span_of(self.nbytes)


@dataclass(frozen=True, slots=True)
class Doomed:
    """An extent whose header must be zeroed before its space is free."""

    offset: int
    span: int
    intended: bool = False
    """It was being written: where it is whole, nobody knows whether its writer was told so."""


def span_of(nbytes: int) -> int:
    """Bytes of the volume that an object of `nbytes` takes."""
    return PAGE_BYTES + round_up(nbytes)


class BlockIndex:
    """One connection. Not thread-safe: the store calls it under its one lock."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection: sqlite3.Connection | None = connection
        self.broken = False
        """A commit failed in a way that leaves its outcome unknown until the database is opened again."""

        self.commits = 0
        """Durable transactions in the life of this database: an earlier state of it has fewer."""

        self._recent: dict[str, Entry] = {}  # rows of the last state that was committed

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the index for one writer, or make an empty one; one that is damaged is replaced.

        Raises:
            Locked: another process has it open. FormatError: the file is something else.
            UnsupportedVersion: a newer engine wrote it. OSError, sqlite3.Error: the file system failed.
        """
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            sync_folder(path.parent)
        except FileExistsError:
            pass
        try:
            return cls._open(path)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            # SQLite quotes a damaged schema in its message, which then may be no text.
            code = error_code(error) if isinstance(error, sqlite3.Error) else sqlite3.SQLITE_CORRUPT
            if code == sqlite3.SQLITE_BUSY:
                hint = "Name this volume's own index_path, or stop the process that has it open"
                raise Locked(f"index {path} is in use", hint=hint) from error
            if code not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise
            with path.open("rb") as file:
                if file.read(72)[68:] != _APPLICATION_ID.to_bytes(4):
                    raise _foreign(path) from error
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        return cls.open(path)

    @classmethod
    def snapshot(cls, path: Path) -> Self:
        """A copy in memory for a reader, empty when there is none or it cannot be read; writes nothing.

        The caller holds the volume's shared lock, so no writer changes the database meanwhile.
        """
        memory = _memory()
        # A database in WAL mode opens without write access only when it is declared unchanging.
        mode = "mode=ro" if Path(f"{path}-wal").exists() else "mode=ro&immutable=1"
        try:
            disk = sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True)
            with contextlib.closing(disk):
                if (
                    _pragma(disk, "application_id") == _APPLICATION_ID
                    and _pragma(disk, "user_version") == _VERSION
                ):
                    disk.backup(memory)
                    _verify(memory)
        except (sqlite3.Error, UnicodeDecodeError):
            memory.close()
            memory = _memory()
        if _pragma(memory, "application_id") != _APPLICATION_ID:
            for statement in _SCHEMA:
                memory.execute(statement)
        index = cls(memory)
        index.commits = _commits(memory)
        return index

    def get(self, key: str) -> Entry | None:
        """The entry of `key`."""
        if found := self._recent.get(key):
            return found
        for entry in self._entries("WHERE key = ?", key):
            if len(self._recent) >= _RECENT:
                self._recent.clear()
            self._recent[key] = entry
            return entry
        return None

    def below(self, prefix: str) -> list[Entry]:
        """Entries below the folder `prefix` (all, for ``""``) in the order of their UTF-8 bytes."""
        if not prefix:
            return self._entries("ORDER BY key")
        return self._entries(
            "WHERE key > ? AND key < ? ORDER BY key", f"{prefix}/", f"{prefix}0"
        )  # "0" follows "/"

    def doomed(self) -> list[Doomed]:
        """Every extent whose header must be zeroed."""
        rows = self._db.execute("SELECT offset, span, intended, crc FROM doomed ORDER BY offset")
        return [Doomed(offset, span, bool(new)) for offset, span, new in map(_checked, rows.fetchall())]

    def count(self) -> int:
        """How many objects there are."""
        count: int = self._db.execute("SELECT count(*) FROM extents").fetchone()[0]
        return count

    def tokens(self) -> set[str]:
        """The sessions of the volume that this index is good for; see `Superblock.token`."""
        return {
            value for (value,) in self._db.execute("SELECT value FROM meta WHERE name IN ('token', 'next')")
        }

    def set_tokens(self, token: str, following: str | None = None) -> None:
        """Bind this index to a session, and to the one that is about to begin."""
        with self._transaction() as db:
            self._set_tokens(db, token, following)

    def intend(self, offset: int, span: int) -> None:
        """Doom the extent that is about to be written: until it is published it must not count."""
        with self._transaction() as db:
            self._doom(db, Doomed(offset, span, intended=True))

    def publish(self, entry: Entry, old: Entry | None) -> None:
        """Let `entry` count and doom the `old` one of its key."""
        self._recent.pop(entry.key, None)
        with self._transaction() as db:
            db.execute("DELETE FROM doomed WHERE offset = ?", (entry.offset,))
            if old:
                db.execute("DELETE FROM extents WHERE key = ?", (old.key,))
                self._doom(db, Doomed(old.offset, old.span))
            self._insert(db, entry)

    def withdraw(self, entry: Entry) -> None:
        """Doom `entry`."""
        self._recent.pop(entry.key, None)
        with self._transaction() as db:
            db.execute("DELETE FROM extents WHERE key = ?", (entry.key,))
            self._doom(db, Doomed(entry.offset, entry.span))

    def buried(self, offset: int) -> None:
        """The header at `offset` is durably zero: its space is free."""
        with self._transaction() as db:
            db.execute("DELETE FROM doomed WHERE offset = ?", (offset,))

    def replace(self, entries: Iterable[Entry], doomed: Iterable[Entry], token: str) -> None:
        """Hold exactly these, whatever was here before."""
        self._recent.clear()
        with self._transaction() as db:
            for table in ("extents", "doomed"):
                db.execute(f"DELETE FROM {table}")  # noqa: S608 - one of two literals
            for entry in entries:
                self._insert(db, entry)
            for entry in doomed:
                self._doom(db, Doomed(entry.offset, entry.span))
            self._set_tokens(db, token, None)

    def close(self) -> None:
        """Idempotent."""
        if self._connection:
            self._connection.close()
        self._connection = None
        self._recent.clear()

    @classmethod
    def _open(cls, path: Path) -> Self:
        connection = sqlite3.connect(path, timeout=0, check_same_thread=False, isolation_level=None)
        connection.text_factory = _text
        try:
            _prepare(connection, path)
            index = cls(connection)
            index.commits = _commits(connection)
        except BaseException:
            connection.close()
            raise
        return index

    @property
    def _db(self) -> sqlite3.Connection:
        if not self._connection:
            raise UsageError("the store is closed", hint="Open it again")
        return self._connection

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("INSERT OR REPLACE INTO meta VALUES ('commits', ?)", (str(self.commits + 1),))
            db.execute("COMMIT")
            self.commits += 1
        except BaseException as error:
            # A full disk leaves no commit record. Any other failure may have left one that the next opening
            # replays, so until then nothing on the volume may change that such a record relies on.
            if isinstance(error, sqlite3.Error) and error_code(error) != sqlite3.SQLITE_FULL:
                self.broken = True
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _entries(self, where: str, *values: str) -> list[Entry]:
        columns = "key, offset, nbytes, generation, digest, damaged, crc"
        rows = self._db.execute(f"SELECT {columns} FROM extents {where}", values)  # noqa: S608 - literals only
        return list(map(_entry, rows.fetchall()))

    @staticmethod
    def _insert(db: sqlite3.Connection, entry: Entry) -> None:
        db.execute("INSERT INTO extents VALUES (?, ?, ?, ?, ?, ?, ?)", _with_crc(astuple(entry)))

    @staticmethod
    def _doom(db: sqlite3.Connection, doomed: Doomed) -> None:
        db.execute("INSERT INTO doomed VALUES (?, ?, ?, ?)", _with_crc(astuple(doomed)))

    @staticmethod
    def _set_tokens(db: sqlite3.Connection, token: str, following: str | None) -> None:
        rows = [("token", token), ("next", following or token)]
        db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)


def error_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code."""
    code: int = getattr(error, "sqlite_errorcode", 0)  # an error of the module itself has none
    return code & 0xFF


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    # Exclusive: a second volume that is given this index is refused, and WAL needs no shared memory.
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    db.execute("BEGIN IMMEDIATE")  # takes the lock now, not at the first write
    if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        for statement in _SCHEMA:
            db.execute(statement)
    db.execute("COMMIT")
    if _pragma(db, "application_id") != _APPLICATION_ID:
        raise _foreign(path)
    if (version := _pragma(db, "user_version")) != _VERSION:
        hint = "Use the newer release, or remove the index: it is rebuilt from the volume"
        raise UnsupportedVersion(f"index {path} has version {version}, not {_VERSION}", hint=hint)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    _verify(db)


def _verify(db: sqlite3.Connection) -> None:
    """Raise unless the tables are those of an index and undamaged as far as SQLite can tell."""
    if [sql for (sql,) in db.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL")] != _TABLES:
        raise _damage("its tables are not those of an index")
    if (problem := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        raise _damage(problem)


def _memory() -> sqlite3.Connection:
    memory = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    memory.text_factory = _text
    return memory


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")  # what is no text any more fails its checksum


def _commits(db: sqlite3.Connection) -> int:
    row = db.execute("SELECT value FROM meta WHERE name = 'commits'").fetchone()
    return int(row[0]) if row and row[0].isdecimal() else 0  # a damaged one is older than anything


def _entry(row: tuple[Any, ...]) -> Entry:
    key, offset, nbytes, generation, digest, damaged = _checked(row)
    return Entry(key, offset, nbytes, generation, digest, bool(damaged))


def _with_crc(row: tuple[Any, ...]) -> tuple[Any, ...]:
    fields = tuple(int(value) if isinstance(value, bool) else value for value in row)
    return (*fields, crc32c(repr(fields).encode()))


def _checked(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """The fields of a row without its checksum, which they must have."""
    if _with_crc(row[:-1]) != row:
        raise _damage(f"the row of {row[0]!r} differs from its checksum")
    return row[:-1]


def _damage(what: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(what)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value


def _foreign(path: Path) -> FormatError:
    hint = "Name another index_path, or move that file away"
    return FormatError(f"{path} is not the index of a block volume", hint=hint)
