"""Block tier: a raw device or a preallocated image, without a file system between it and the bytes.

Invariant: what the index says and what a scan of the volume says differ at most by operations that have not
returned, and either answer is old or new, whole. The order that keeps it so:

- write: doom the new extent in the index and, at the same time, data, flush; then header, flush; one commit
  that publishes the new extent and dooms the old one. A kill before that commit leaves a doomed header; the
  next opening publishes it where it is whole, as a scan would, else zeroes it. The old header goes before
  `write` returns, so that a scan never prefers it later.
- delete: one commit that dooms the extent, then its header is zeroed and flushed, then `delete` returns. The
  other way round a kill between the two would leave an object in the index that a scan knows nothing of.
- space is free again only when its header is durably zero, a commit has said so, and its readers have let go.
- an index is believed when it is of this session and has all commits that the volume's mark tells of; a row
  is believed when its checksum is right and the header on the volume says the same, or the data their digest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar, Final

from tiering.digest import Buffer, check_digest_form
from tiering.errors import Conflict, UsageError
from tiering.keys import validate, validate_prefix
from tiering.stores import file_systems
from tiering.stores.base import Extent, ObjectInfo, Store, check_range
from tiering.stores.block_check import Problem, check_extents
from tiering.stores.block_format import VolumeInfo, enlarge, format_volume, volume_info
from tiering.stores.block_index import Entry
from tiering.stores.block_layout import intact, pack_header
from tiering.stores.block_volume import BadPagesError, Volume
from tiering.stores.pages import new_buffer

__all__ = ["BlockStore", "Problem", "VolumeInfo", "format_volume"]

_ATTEMPTS: Final = 3
"""How many extents a write tries while the medium refuses them."""


class BlockStore(Volume, Store):
    """Objects in 4 KiB-aligned extents of `path`, which `format_volume` has prepared.

    One store of one process may have a volume open for writing; any number may have it open `read_only`.
    """

    kind: ClassVar[str] = "block"

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        with self._typed(key):
            entry = self._pin(key)
            try:
                self._read_entry(entry, offset, buffer)
            finally:
                self._unpin(entry)

    def read(self, key: str) -> Buffer:
        with self._typed(key), self.pinned(key) as entry:  # one pin: an overwrite must not mix two objects
            buffer = new_buffer(entry.nbytes)
            self._read_entry(entry, 0, memoryview(buffer))
            return buffer

    def write(
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        validate(key)
        known = None if digest is None else check_digest_form(digest, "the digest given")
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        nbytes = sum(view.nbytes for view in views)
        with self._typed(key), self._writing(key):
            with self._lock:
                if if_absent and self._index.get(key):
                    raise Conflict("object exists already", tier=self.name, key=key)
            for attempt in range(1, _ATTEMPTS + 1):
                with contextlib.suppress(*[BadPagesError] if attempt < _ATTEMPTS else []):
                    entry, old = self._place(key, views, nbytes, known)
                    break
            if old:
                self._bury_surely(old)
        return _info(entry)

    def delete(self, key: str) -> None:
        validate(key)
        with self._typed(key), self._writing(key):
            with self._lock:
                entry = self._index.get(key)
                if not entry:
                    return
                self._index.withdraw(entry)
            self._bury_surely(entry)

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
        """Where the bytes of `key` lie, in whole pages of 4 KiB.

        Good until anybody overwrites or deletes `key`, or closes the store: the next write may take the room.
        A reader that cannot rule that out reads inside of `hold`.
        """
        with self.pinned(key) as entry:
            return self._extent(entry)

    @contextlib.contextmanager
    def hold(self, key: str) -> Iterator[Extent]:
        """Like `locate`, and the bytes stay until the end of the ``with``, whatever becomes of `key`.

        Space of a key that was deleted meanwhile becomes free at that end.
        """
        with self.pinned(key) as entry:
            yield self._extent(entry)

    def is_volatile(self) -> bool:
        return file_systems.is_memory(self.path) and not self.path.is_block_device()

    def free_bytes(self) -> int:
        """Sum of the free runs without what is kept; one object needs a run of its own size and 4 KiB."""
        return max(0, self.info().free_bytes - self.kept_bytes)

    def info(self) -> VolumeInfo:
        """What this volume is and how full it is."""
        with self._typed(None), self._lock:
            return volume_info(self._medium, self.superblock, self._space, self._index.count())

    def check(self, *, deep: bool = True, repair: bool = False) -> Sequence[Problem]:
        """Compare the header of every extent with the index and, if `deep`, its data with their digest.

        With `repair`, a damaged header is written anew where the data still have their digest; without,
        nothing is changed. A damaged superblock is repaired by opening for writing.
        """
        if repair and self.read_only:
            raise UsageError("opened read-only", tier=self.name, hint="Open it for writing to repair it")
        with self._typed(None):
            return check_extents(self, self._medium, self._stale, deep=deep, repair=repair)

    def rewrite_header(self, key: str) -> bool:
        """Write the header of `key` anew from the index; False when the data lack their digest."""
        with self._typed(key), self._writing(key), self.pinned(key) as entry:
            if not intact(self._medium, entry):
                return False
            self._medium.write(
                entry.offset, [pack_header(self.superblock.volume, replace(entry, damaged=False))]
            )
            self._medium.flush()
            return True

    def grow(self, nbytes: int | None = None, *, force: bool = False) -> VolumeInfo:
        """Make the volume `nbytes` large, or as large as its device has become. Objects stay where they are.

        A kill or power cut at any instant leaves the old size or the new one. With `force`, what lies behind
        the volume is erased.

        Raises:
            UsageError: smaller than it is, or larger than the device. Conflict: something lies behind it.
            CapacityExceeded: no room for the image.
        """
        with self._typed(None), self._writing(""), self._lock:
            old_bytes = self.superblock.nbytes
            self.superblock = enlarge(self._medium, self.superblock, nbytes, force=force)
            self._space.give(old_bytes, self.superblock.nbytes - old_bytes)
            return self.info()

    def _read_entry(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        self._prove(entry)
        check_range(self.name, entry.key, offset, buffer.nbytes, entry.nbytes)
        self._medium.read(entry.data_offset + offset, buffer)

    def _extent(self, entry: Entry) -> Extent:
        self._prove(entry)
        return Extent(self.path, entry.data_offset, entry.nbytes)


def _info(entry: Entry) -> ObjectInfo:
    return ObjectInfo(entry.key, entry.nbytes, str(entry.generation))
