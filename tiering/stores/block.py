"""Block tier: a raw device or a preallocated image, without a file system between it and the bytes.

Invariant: what the index says and what a scan of the volume says differ at most by operations that have not
returned, and either answer is old or new, whole. The order that keeps it so:

- write: doom the new extent in the index; data, flush; header, flush; one commit that publishes the new
  extent and dooms the old one. A kill before that commit leaves a doomed header, which the next opening
  zeroes; a scan may already find it, whole, for its data were durable first. The old header goes before
  `write` returns, so that a scan never prefers it later.
- delete: one commit that dooms the extent, then its header is zeroed and flushed, then `delete` returns. The
  other way round a kill between the two would leave an object in the index that a scan knows nothing of.
- space is free again only when its header is durably zero, a commit has said so, and its readers have let go.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from tiering.digest import Buffer
from tiering.errors import CapacityExceeded, Conflict, Corrupt, NotFound, Unavailable, UsageError
from tiering.keys import validate, validate_prefix
from tiering.stores.base import Extent, ObjectInfo, Store, check_range
from tiering.stores.block_format import VolumeInfo, format_volume, index_path_of, volume_info
from tiering.stores.block_index import BlockIndex, Entry, span_of
from tiering.stores.block_layout import DATA_START, FreeSpace, Superblock, check_extent, pack_header, survey
from tiering.stores.block_medium import Medium, typed_errors
from tiering.stores.pages import PAGE_BYTES, uninitialised_bytes

__all__ = ["BlockStore", "Problem", "VolumeInfo", "format_volume"]

_KEY_LOCKS: Final = 64
_MAX_WRITES_PER_SESSION: Final = 1 << 32


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that `BlockStore.check` found."""

    key: str
    offset: int
    """Of the extent's header page in the volume, in bytes."""

    what: str


class BlockStore(Store):
    """Objects in 4 KiB-aligned extents of `path`, which `format_volume` has prepared.

    One store of one process may have a volume open for writing; any number may have it open `read_only`.
    """

    kind: ClassVar[str] = "block"

    def __init__(
        self, name: str, path: Path, *, index_path: Path | None = None, read_only: bool = False
    ) -> None:
        """Open, lock and, where its index is lost or of another time, scan the volume.

        Raises:
            NotFound: no volume at `path`. Locked: open elsewhere, mounted or held.
            FormatError: not a volume. UnsupportedVersion: of a newer engine. Corrupt: damaged superblocks.
        """
        self.name = name
        self.path = path
        self.read_only = read_only
        self.rebuilt = False
        """Whether opening had to read the whole volume, because no index of it was there."""
        self._lock = threading.RLock()  # guards the index, the free space and the readers
        self._key_locks = [threading.Lock() for _ in range(_KEY_LOCKS)]
        self._writes = 0
        with contextlib.ExitStack() as stack, self._typed(None):
            self._medium = stack.enter_context(contextlib.closing(Medium(name, path, read_only=read_only)))
            self._superblock = Superblock.read(self._medium)
            index_path = index_path_of(path, index_path, is_device=self._medium.is_device)
            self._index = BlockIndex.snapshot(index_path) if read_only else BlockIndex.open(index_path)
            stack.enter_context(contextlib.closing(self._index))
            self._space = self._load()
            if not read_only:
                self._begin_session()
            stack.pop_all()

    @property
    def direct(self) -> bool:
        """Whether reads and writes go past the page cache."""
        return self._medium.direct

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        with self._typed(key), self._pinned(key) as entry:
            self._read_entry(entry, offset, buffer)

    def read(self, key: str) -> bytearray:
        with self._typed(key), self._pinned(key) as entry:  # one pin: an overwrite must not mix two objects
            buffer = uninitialised_bytes(entry.nbytes)
            self._read_entry(entry, 0, memoryview(buffer))
            return buffer

    def write(self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False) -> ObjectInfo:
        validate(key)
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        nbytes = sum(view.nbytes for view in views)
        with self._typed(key), self._writing(key):
            with self._lock:
                if if_absent and self._index.get(key):
                    raise Conflict("object exists already", tier=self.name, key=key)
                generation = self._next_generation()
                offset = self._take(key, nbytes)
            try:
                digest = self._medium.write(offset + PAGE_BYTES, views)
                self._medium.flush()
                entry = Entry(key, offset, nbytes, generation, digest)
                self._medium.write(offset, [pack_header(self._superblock.volume, entry)])
                self._medium.flush()
                with self._lock:
                    old = self._index.get(key)
                    self._index.publish(entry, old)
            except BaseException:
                self._abandon(key, offset, span_of(nbytes))
                raise
            if old:
                self._bury(old.offset, old.span)
        return _info(entry)

    def delete(self, key: str) -> None:
        validate(key)
        with self._typed(key), self._writing(key):
            with self._lock:
                entry = self._index.get(key)
                if not entry:
                    return
                self._index.withdraw(entry)
            self._bury(entry.offset, entry.span)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        validate_prefix(prefix)
        with self._typed(None), self._lock:
            entries = self._index.below(prefix)
        yield from map(_info, entries)

    def children(self, prefix: str = "") -> Sequence[str]:
        depth = prefix.count("/") + 1 if prefix else 0
        return sorted({info.key.split("/")[depth] for info in self.list(prefix)})

    def stat(self, key: str) -> ObjectInfo:
        with self._typed(key), self._lock:
            return _info(self._get(key))

    def locate(self, key: str) -> Extent:
        """Where the bytes of `key` lie, good until it is overwritten or deleted; `hold` keeps them longer."""
        with self._typed(key), self._lock:
            return self._extent(self._get(key))

    @contextlib.contextmanager
    def hold(self, key: str) -> Iterator[Extent]:
        """Like `locate`, and the bytes stay until the end of the ``with``, whatever becomes of `key`."""
        with self._pinned(key) as entry:
            yield self._extent(entry)

    def free_bytes(self) -> int:
        """Sum of the free runs; one object needs a run of its own size and 4 KiB."""
        return self.info().free_bytes

    def info(self) -> VolumeInfo:
        """What this volume is and how full it is."""
        with self._typed(None), self._lock:
            return volume_info(self._medium, self._superblock, self._space, self._index.count())

    def check(self) -> Sequence[Problem]:
        """Read every extent and compare header and data with the index. Changes nothing."""
        problems = []
        for info in self.list():
            with contextlib.suppress(NotFound), self._pinned(info.key) as entry:
                found = check_extent(self._medium, self._superblock, entry)
                if found and self.stat(entry.key) == _info(entry):  # else replaced while it was read
                    problems += [Problem(entry.key, entry.offset, what) for what in found]
        return problems

    def close(self) -> None:
        """Wait for reads and writes in flight, then give the volume back. Idempotent."""
        self._medium.stop()
        with self._lock:
            self._index.close()  # before the lock goes: the next opener needs the index for itself
        self._medium.close()

    def _load(self) -> FreeSpace:
        superblock = self._superblock
        if superblock.token in self._index.tokens():
            with contextlib.suppress(ValueError):  # an index whose extents overlap is not believed
                return self._free_space()
        entries, losers = survey(self._medium, superblock)
        self._index.replace(entries, losers, superblock.token)
        self.rebuilt = True
        return self._free_space()

    def _free_space(self) -> FreeSpace:
        taken = [(entry.offset, entry.span) for entry in self._index.below("")] + self._index.doomed()
        return FreeSpace(DATA_START, self._superblock.nbytes, taken)

    def _begin_session(self) -> None:
        """Make every index but this one stale, then zero what a killed session left."""
        following = self._superblock.next_session()
        self._index.set_tokens(self._superblock.token, following.token)  # good on both sides of the next line
        following.write(self._medium)
        self._index.set_tokens(following.token)
        self._superblock = following
        for offset, span in self._index.doomed():
            with contextlib.suppress(OSError):  # its space stays taken, and the next opening tries again
                self._bury(offset, span)

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

    def _take(self, key: str, nbytes: int) -> int:
        """Offset of a doomed extent for an object of `nbytes`."""
        span = span_of(nbytes)
        offset = self._space.take(span)
        if offset is None:
            free_bytes, largest_bytes = self._space.nbytes, self._space.largest_bytes
            text = f"{span} bytes do not fit: {free_bytes} are free, {largest_bytes} of them in one run"
            hint = "Release something from this tier or make a larger volume"
            raise CapacityExceeded(text, tier=self.name, key=key, hint=hint)
        try:
            self._index.intend(offset, span)
        except BaseException:
            self._space.give(offset, span)  # nothing lies there yet
            raise
        return offset

    def _next_generation(self) -> int:
        self._writes += 1
        if self._writes >= _MAX_WRITES_PER_SESSION:
            raise Unavailable("generations of this session are used up", tier=self.name, hint="Open it again")
        return self._superblock.session << 32 | self._writes

    def _bury(self, offset: int, span: int) -> None:
        """Zero a doomed header, durably, and free its extent."""
        self._medium.write(offset, [bytes(PAGE_BYTES)])
        self._medium.flush()
        with self._lock:
            self._index.buried(offset)
            self._space.give(offset, span)

    def _abandon(self, key: str, offset: int, span: int) -> None:
        """Undo a write that failed, unless its outcome is unknown: then the next opening decides."""
        with contextlib.suppress(OSError, UsageError, sqlite3.Error), self._lock:
            if self._index.broken:
                return
            current = self._index.get(key)
            if current is None or current.offset != offset:  # interrupted just after the commit, it stays
                self._bury(offset, span)

    def _get(self, key: str) -> Entry:
        entry = self._index.get(validate(key))
        if not entry:
            raise NotFound("no such object", tier=self.name, key=key)
        return entry

    @contextlib.contextmanager
    def _pinned(self, key: str) -> Iterator[Entry]:
        with self._typed(key), self._lock:
            entry = self._get(key)
            self._space.pin(entry.offset)
        try:
            yield entry
        finally:
            with self._lock:
                self._space.unpin(entry.offset)

    def _read_entry(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        self._refuse_damaged(entry)
        check_range(self.name, entry.key, offset, buffer.nbytes, entry.nbytes)
        self._medium.read(entry.data_offset + offset, buffer)

    def _extent(self, entry: Entry) -> Extent:
        self._refuse_damaged(entry)
        return Extent(self.path, entry.data_offset, entry.nbytes)

    def _refuse_damaged(self, entry: Entry) -> None:
        if entry.damaged:
            hint = "Write or stage it again from another tier"
            raise Corrupt("a scan found its data damaged", tier=self.name, key=entry.key, hint=hint)

    def _typed(self, key: str | None) -> contextlib.AbstractContextManager[None]:
        return typed_errors(self.name, key, self.path)


def _info(entry: Entry) -> ObjectInfo:
    return ObjectInfo(entry.key, entry.nbytes, str(entry.generation))
