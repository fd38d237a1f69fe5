"""An open block volume: takes, publishes, dooms, buries and retires extents, always in the safe order.

Invariant: that of `tiering.stores.block`, whose contract methods stand on this. `_lock` guards the index, the
free space, the marks and the counts of readers; data are read and written outside of it.
"""

from __future__ import annotations

import contextlib
import errno
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tiering.errors import CapacityExceeded, Corrupt, NotFound, Unavailable, UsageError
from tiering.keys import CONTROL_BYTES, is_control, validate
from tiering.stores.block_format import index_path_of
from tiering.stores.block_index import BlockIndex, Entry, span_of
from tiering.stores.block_layout import (
    DATA_START,
    Mark,
    Superblock,
    Survey,
    intact,
    pack_header,
    read_header,
    survey,
)
from tiering.stores.block_medium import Medium, typed_errors
from tiering.stores.block_space import FreeSpace
from tiering.stores.pages import PAGE_BYTES

_KEY_LOCKS: Final = 64
_KEPT_SHARE: Final = 64  # of the volume
_MAX_WRITES_PER_SESSION: Final = 1 << 32


class BadPagesError(OSError):
    """The medium refused to write; the extent was given up, another may do."""


class Volume:
    """A locked volume with its index; see `tiering.stores.block.BlockStore`."""

    name: str

    def __init__(
        self,
        name: str,
        path: Path,
        *,
        index_path: Path | None = None,
        read_only: bool = False,
        scan: bool = False,
    ) -> None:
        """Open, lock and, where its index is lost or of another time or `scan` says so, scan the volume.

        Raises:
            NotFound: no volume at `path`. Locked: open elsewhere, mounted or held.
            FormatError: not a volume. UnsupportedVersion: of a newer engine. Corrupt: damaged superblocks.
        """
        self.name = name
        self.path = path
        self.read_only = read_only
        self.survey: Survey | None = None
        """What a scan found, where opening made one: the index was lost, damaged or of another time."""

        self._lock = threading.RLock()  # guards the index, the free space and the readers
        self._key_locks = [threading.Lock() for _ in range(_KEY_LOCKS)]
        self._writes = 0
        self._marks = 0
        self._proven: set[int] = set()  # generations whose row agrees with the volume
        with contextlib.ExitStack() as stack, self._typed(None):
            self._medium = stack.enter_context(contextlib.closing(Medium(name, path, read_only=read_only)))
            self.superblock, self._stale = Superblock.read(self._medium)
            index_path = index_path_of(path, index_path, is_device=self._medium.is_device)
            self._index = BlockIndex.snapshot(index_path) if read_only else BlockIndex.open(index_path)
            stack.enter_context(contextlib.closing(self._index))
            self._space = self._load(scan=scan)
            if not read_only:
                self._begin_session()
            stack.pop_all()

    @property
    def rebuilt(self) -> bool:
        """Whether opening had to read the whole volume."""
        return self.survey is not None

    @property
    def direct(self) -> bool:
        """Whether reads and writes go past the page cache."""
        return self._medium.direct

    def close(self) -> None:
        """Wait for reads and writes in flight, then give the volume back. Idempotent."""
        self._medium.stop()
        with self._lock:
            self._index.close()  # before the lock goes: the next opener needs the index for itself
        self._medium.close()

    def _load(self, *, scan: bool) -> FreeSpace:
        superblock = self.superblock
        mark = Mark.read(self._medium, superblock)
        if not scan and superblock.token in self._index.tokens() and self._index.commits >= mark.commits:
            # An index whose extents overlap is not believed, nor one with a row that lacks its checksum.
            with contextlib.suppress(ValueError, sqlite3.DatabaseError):
                return self._free_space()
        self.survey = survey(self._medium, superblock)
        self._index.replace(self.survey.best.values(), self.survey.losers, superblock.token)
        return self._free_space()

    def _free_space(self) -> FreeSpace:
        taken = [(entry.offset, entry.span) for entry in self._index.below("")]
        taken += [(doomed.offset, doomed.span) for doomed in self._index.doomed()]
        return FreeSpace(DATA_START, self.superblock.nbytes, [*taken, *self.superblock.retired])

    def _begin_session(self) -> None:
        """Make every index but this one stale, then settle what a killed session left."""
        following = self.superblock.next_session()
        self._index.set_tokens(self.superblock.token, following.token)  # good on both sides of the next line
        following.write(self._medium, self._stale)
        self._index.set_tokens(following.token)
        self.superblock = following
        for doomed in self._index.doomed():
            if doomed.intended:
                self._settle(doomed.offset)
        for doomed in self._index.doomed():
            with contextlib.suppress(OSError):  # its space stays taken, and the next opening tries again
                self._bury(doomed.offset, doomed.span)

    def _settle(self, offset: int) -> None:
        """Publish a write that was killed when it was whole: its writer may have been told so."""
        entry = read_header(self._medium, self.superblock, offset)
        if entry and intact(self._medium, entry):
            old = self._index.get(entry.key)
            if not old or old.generation < entry.generation:
                self._index.publish(entry, old)

    @contextlib.contextmanager
    def _writing(self, key: str) -> Iterator[None]:
        """One writer a key at a time, so that a newer header of a key is never the one that lost."""
        if self.read_only:
            raise UsageError("opened read-only", tier=self.name, key=key, hint="Open it for writing")
        with self._key_locks[hash(key) % _KEY_LOCKS]:
            if self._medium.broken or self._index.broken:
                hint = "Open it again: that finds out what is on the medium"
                raise Unavailable("an earlier write failed half-way", tier=self.name, key=key, hint=hint)
            yield

    def _place(
        self, key: str, views: Sequence[memoryview], nbytes: int, known: str | None
    ) -> tuple[Entry, Entry | None]:
        """Write an object and publish it; returns it and the one that it replaced, now doomed.

        `known` is the digest of its data, where somebody has hashed them.
        """
        with self._lock:
            generation = self._next_generation()
            offset = self._take(key, nbytes)
        dooming = self._medium.helpers.start(self._doom, offset, span_of(nbytes))
        try:
            digest = self._medium.write_data(offset + PAGE_BYTES, views, known)
            self._medium.flush()
            dooming.result()  # a header that is not doomed yet must not be there
            entry = Entry(key, offset, nbytes, generation, digest)
            self._medium.write(offset, [pack_header(self.superblock.volume, entry)])
            self._flush_marked()
            with self._lock:
                old = self._index.get(key)
                self._index.publish(entry, old)
        except BaseException as error:
            if failure := dooming.exception():
                with self._lock:
                    self._space.give(offset, span_of(nbytes))  # nothing lies there that would count
                raise failure from None
            if _is_bad_pages(error) and not (self._medium.broken or self._index.broken):
                self._give_up(offset, span_of(nbytes))
                raise BadPagesError(*error.args) from error
            self._abandon(key, offset, span_of(nbytes))
            raise
        self._proven.add(generation)
        return entry, old

    def _flush_marked(self) -> None:
        """Make headers durable, and with them how far the index is."""
        with self._lock:
            mark = Mark(self.superblock, self._index.commits)
            self._marks += 1  # before: what fails is not tried for ever
            try:
                mark.write(self._medium, self._marks)
            except OSError as error:
                if not _is_bad_pages(error):
                    raise
                self._marks += 1  # the other page will do
                mark.write(self._medium, self._marks)
        self._medium.flush()

    @property
    def kept_bytes(self) -> int:
        """Room that is kept for control objects (`tiering.keys.is_control`): what is full can be released."""
        share_bytes = (self.superblock.nbytes - DATA_START) // _KEPT_SHARE
        return min(CONTROL_BYTES, share_bytes // PAGE_BYTES * PAGE_BYTES)

    def _take(self, key: str, nbytes: int) -> int:
        """Offset of a free extent for an object of `nbytes`, free no longer."""
        span = span_of(nbytes)
        kept_bytes = 0 if is_control(key) else self.kept_bytes
        offset = self._space.take(span) if self._space.nbytes - kept_bytes >= span else None
        if offset is None:
            free_bytes = max(0, self._space.nbytes - kept_bytes)
            largest_bytes = min(free_bytes, self._space.largest_bytes)
            text = f"{span} bytes do not fit: {free_bytes} are free, {largest_bytes} of them in one run"
            hint = "Release something from this tier or make a larger volume"
            raise CapacityExceeded(text, tier=self.name, key=key, hint=hint)
        return offset

    def _doom(self, offset: int, span: int) -> None:
        with self._lock:
            self._index.intend(offset, span)

    def _next_generation(self) -> int:
        self._writes += 1
        if self._writes >= _MAX_WRITES_PER_SESSION:
            raise Unavailable("generations of this session are used up", tier=self.name, hint="Open it again")
        return self.superblock.session << 32 | self._writes

    def _bury(self, offset: int, span: int) -> None:
        """Zero a doomed header, durably, and free its extent."""
        try:
            self._medium.write(offset, [bytes(PAGE_BYTES)])
        except OSError as error:
            if not _is_bad_pages(error):
                raise
            self._retire(offset, span, [(offset, span)])  # all of it: its data may have readers
            return
        self._flush_marked()
        with self._lock:
            self._index.buried(offset)
            self._space.give(offset, span)

    def _bury_surely(self, old: Entry) -> None:
        """Bury what was replaced or deleted, or allow no more changes: the next opening buries it.

        Were the newer object of its key deleted before that, a scan would find the older one.
        """
        try:
            self._bury(old.offset, old.span)
        except BaseException:
            self._medium.broken = True
            raise

    def _give_up(self, offset: int, span: int) -> None:
        """Take the pages of an unpublished extent that the medium refuses out of use, and free the others."""
        bad = self._medium.bad_runs(offset, span)
        self._retire(offset, span, bad)

    def _retire(self, offset: int, span: int, bad: Sequence[tuple[int, int]]) -> None:
        """Let the doomed extent go, but for its `bad` runs, where no scan looks any more."""
        with self._lock:
            if bad:
                retiring = self.superblock.retire(bad)
                retiring.write(self._medium)
                self.superblock = retiring
            self._medium.flush()
            self._index.buried(offset)
            at = offset
            for start, length in [*bad, (offset + span, 0)]:
                self._space.give(at, start - at)
                at = start + length

    def _abandon(self, key: str, offset: int, span: int) -> None:
        """Undo a write that failed, unless its outcome is unknown: then the next opening decides."""
        with contextlib.suppress(UsageError), self._lock:
            if self._index.broken:
                return
            try:
                current = self._index.get(key)
                if current is None or current.offset != offset:  # interrupted just after the commit, it stays
                    self._bury(offset, span)
            except (OSError, sqlite3.Error):
                self._medium.broken = True  # a header that may count is left: no more changes beside it

    def _get(self, key: str) -> Entry:
        entry = self._index.get(validate(key))
        if not entry:
            raise NotFound("no such object", tier=self.name, key=key)
        return entry

    @contextlib.contextmanager
    def pinned(self, key: str) -> Iterator[Entry]:
        """The index's row of `key`; its extent is not used anew until the end of the ``with``."""
        with self._typed(key):
            entry = self._pin(key)
        try:
            yield entry
        finally:
            self._unpin(entry)

    def _pin(self, key: str) -> Entry:
        with self._lock:
            entry = self._get(key)
            self._space.pin(entry.offset)
            return entry

    def _unpin(self, entry: Entry) -> None:
        with self._lock:
            self._space.unpin(entry.offset)

    def _prove(self, entry: Entry) -> None:
        """Compare the row of an object with the volume before its first use in this session.

        Raises:
            Corrupt: another object, or none that is whole, lies where the index says.
        """
        if entry.generation in self._proven:
            return
        hint = "Write or stage it again from another tier"
        if entry.damaged and not intact(self._medium, entry):  # else it could only not be read at that time
            raise Corrupt("a scan found its data damaged", tier=self.name, key=entry.key, hint=hint)
        header = read_header(self._medium, self.superblock, entry.offset)
        if header != entry and not intact(self._medium, entry):
            text = (
                f"neither the header at byte {entry.offset} of {self.path} nor the data behind it are its own"
            )
            raise Corrupt(text, tier=self.name, key=entry.key, hint=hint)
        self._proven.add(entry.generation)

    def _typed(self, key: str | None) -> contextlib.AbstractContextManager[None]:
        return typed_errors(self.name, key, self.path)


def _is_bad_pages(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EIO
