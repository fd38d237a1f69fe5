"""What a block volume looks like: two superblock pages, then extents of one header page and data each.

Invariant: a page counts as a header only with this volume's UUID, its own offset and a right CRC32C in it.
So a torn page, a page of an earlier volume or a page of an image stored as an object never passes for one.
All integers are little-endian; the last four bytes of both kinds of page are the CRC32C of the others.
"""

from __future__ import annotations

import bisect
import secrets
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Self
from uuid import UUID

from tiering.digest import CRC_BYTES, Hasher, crc32c
from tiering.errors import Corrupt, FormatError, UnsupportedVersion
from tiering.keys import validate
from tiering.stores.block_index import Entry, span_of
from tiering.stores.block_medium import BOUNCE_BYTES, Medium
from tiering.stores.pages import PAGE_BYTES

VERSION: Final = 1
DATA_START: Final = 2 * PAGE_BYTES
MIN_BYTES: Final = 1 << 20
VOLUME_MAGIC: Final = b"CORPUSTIERINGVOL"
_EXTENT_MAGIC: Final = b"CORPUSTIERINGEXT"
_SUPERBLOCK: Final = struct.Struct("<16sI16sQIQ16s")
"""Magic, version, UUID, nbytes, page bytes, session, nonce."""

_HEADER: Final = struct.Struct("<16s16sQQQ32sH")
"""Magic, UUID, offset, generation, nbytes, digest, key bytes; the key follows."""

_SEALED_BYTES: Final = PAGE_BYTES - CRC_BYTES


@dataclass(frozen=True, slots=True)
class Superblock:
    """The first two pages, twice the same: what volume this is, and which session wrote to it last."""

    volume: UUID
    nbytes: int
    session: int
    """Counts openings for writing; the upper half of generations, so they grow even over a lost index."""

    nonce: bytes
    """Tells two copies of one volume apart that went separate ways."""

    @property
    def token(self) -> str:
        """What an index must hold to be the one of this volume as it is now."""
        return f"{self.volume}:{self.session}:{self.nonce.hex()}"

    def next_session(self) -> Superblock:
        """The superblock of an opening for writing."""
        return replace(self, session=self.session + 1, nonce=secrets.token_bytes(16))

    def write(self, medium: Medium) -> None:
        """Both copies, one durable before the other is touched."""
        fields = (VOLUME_MAGIC, VERSION, self.volume.bytes, self.nbytes, PAGE_BYTES, self.session, self.nonce)
        for offset in (0, PAGE_BYTES):
            medium.write(offset, [_seal(_SUPERBLOCK.pack(*fields))])
            medium.flush()

    @classmethod
    def read(cls, medium: Medium) -> Self:
        """The newer good copy.

        Raises:
            FormatError: not a volume. UnsupportedVersion: of a newer engine. Corrupt: damaged or too short.
        """
        page = memoryview(bytearray(DATA_START))
        hint = f"To erase what is there and make a volume: tiering block format {medium.path} --force"
        foreign = FormatError(f"{medium.path} is not a block volume", tier=medium.tier, hint=hint)
        if medium.nbytes < MIN_BYTES:
            raise foreign
        medium.read(0, page)
        if bytes(page[:16]) != VOLUME_MAGIC:  # the second page may be what another format left of us
            raise foreign
        copies = [page[:PAGE_BYTES], page[PAGE_BYTES:]]
        found = [_SUPERBLOCK.unpack_from(c) for c in copies if _sealed(c, VOLUME_MAGIC)]
        version = max(fields[1] for fields in found) if found else _SUPERBLOCK.unpack_from(page)[1]
        if version > VERSION:
            text = f"{medium.path} has format version {version}, newer than {VERSION}"
            raise UnsupportedVersion(text, tier=medium.tier, hint="Use the newer release of this engine")
        if not found:
            hint = "Restore the first 8 KiB, or format it again and refill it from another tier"
            raise Corrupt(f"both superblocks of {medium.path} are damaged", tier=medium.tier, hint=hint)
        _, _, raw_uuid, nbytes, page_bytes, session, nonce = max(found, key=lambda fields: fields[5])
        if page_bytes != PAGE_BYTES or nbytes > medium.nbytes:
            text = f"{medium.path} has {medium.nbytes} bytes, not {nbytes} in pages of {page_bytes}"
            hint = "Restore the whole volume, or format it again and refill it from another tier"
            raise Corrupt(text, tier=medium.tier, hint=hint)
        return cls(UUID(bytes=raw_uuid), nbytes, session, nonce)


def pack_header(volume: UUID, entry: Entry) -> bytes:
    """The header page of `entry`."""
    key = entry.key.encode()
    digest = bytes.fromhex(entry.digest)
    fields = (_EXTENT_MAGIC, volume.bytes, entry.offset, entry.generation, entry.nbytes, digest, len(key))
    return _seal(_HEADER.pack(*fields) + key)


def parse_header(page: memoryview, superblock: Superblock, offset: int) -> Entry | None:
    """The entry whose header `page`, read at `offset`, is; None when it is none of this volume."""
    if not _sealed(page, _EXTENT_MAGIC):
        return None
    _, volume, own_offset, generation, nbytes, digest, key_bytes = _HEADER.unpack_from(page)
    fits = offset + span_of(nbytes) <= superblock.nbytes
    if volume != superblock.volume.bytes or own_offset != offset or not fits:
        return None
    try:
        key = validate(bytes(page[_HEADER.size : _HEADER.size + key_bytes]).decode())
    except ValueError:
        return None
    return Entry(key, offset, nbytes, generation, digest.hex())


def data_digest(medium: Medium, entry: Entry) -> str:
    """BLAKE3 digest of the data that lie in the extent of `entry` now."""
    hasher = Hasher()
    with medium.bounce() as bounce:
        for done in range(0, entry.nbytes, BOUNCE_BYTES):
            view = bounce[: entry.nbytes - done]
            medium.read(entry.data_offset + done, view)
            hasher.update(view)
    return hasher.hexdigest()


def survey(medium: Medium, superblock: Superblock) -> tuple[list[Entry], list[Entry]]:
    """Read the whole volume: the entries that count, and those whose headers must be zeroed.

    Of two headers of one key the newer counts, unless only the older has its data: `write` returns after the
    old header is zero, so where both are there nobody was told of the newer. Data that differ from the digest
    of an only header have rotted, for headers are written after their data are durable: kept, as damaged.
    """
    best: dict[str, Entry] = {}
    losers = []
    for entry in _headers(medium, superblock):
        found = replace(entry, damaged=not _intact(medium, entry))
        other = best.get(entry.key)
        if other and (not other.damaged, other.generation) > (not found.damaged, found.generation):
            losers.append(found)
            continue
        if other:
            losers.append(other)
        best[entry.key] = found
    return list(best.values()), losers


def check_extent(medium: Medium, superblock: Superblock, entry: Entry) -> list[str]:
    """What is wrong with the extent of `entry`."""
    page = memoryview(bytearray(PAGE_BYTES))
    problems = []
    try:
        medium.read(entry.offset, page)
        header = parse_header(page, superblock, entry.offset)
        if header is None:
            problems.append("its header is damaged")
        elif header != replace(entry, damaged=False):
            problems.append(f"its header is that of {header.key!r}, generation {header.generation}")
        if data_digest(medium, entry) != entry.digest:
            problems.append("its data differ from their digest")
    except OSError as error:
        problems.append(f"it cannot be read: {error}")
    return problems


def _headers(medium: Medium, superblock: Superblock) -> Iterator[Entry]:
    """Every header in ascending order. Data of an extent are skipped: they may hold anything."""
    start = DATA_START
    with medium.bounce() as window:
        while start < superblock.nbytes:
            view = window[: superblock.nbytes - start]
            _read_what_goes(medium, start, view)
            done = 0
            while done < view.nbytes:
                entry = parse_header(view[done : done + PAGE_BYTES], superblock, start + done)
                if entry:
                    yield entry
                done += entry.span if entry else PAGE_BYTES
            start += done


def _read_what_goes(medium: Medium, offset: int, view: memoryview) -> None:
    """Read page by page where the medium fails: a bad page holds no header, and the others still count."""
    try:
        medium.read(offset, view)
    except OSError:
        for done in range(0, view.nbytes, PAGE_BYTES):
            page = view[done : done + PAGE_BYTES]
            try:
                medium.read(offset + done, page)
            except OSError:
                page[:] = bytes(PAGE_BYTES)


def _intact(medium: Medium, entry: Entry) -> bool:
    try:
        return data_digest(medium, entry) == entry.digest
    except OSError:
        return False


def _seal(content: bytes) -> bytes:
    page = content.ljust(_SEALED_BYTES, b"\0")
    return page + crc32c(page).to_bytes(CRC_BYTES, "little")


def _sealed(page: memoryview, magic: bytes) -> bool:
    crc = int.from_bytes(page[_SEALED_BYTES:], "little")
    return bytes(page[: len(magic)]) == magic and crc == crc32c(page[:_SEALED_BYTES])


class FreeSpace:
    """Free runs of a volume, in memory. Best fit: the smallest run that is large enough.

    Invariant: runs are disjoint, no two touch, and none has a reader. Not thread-safe.
    """

    def __init__(self, start: int, stop: int, taken: Iterable[tuple[int, int]]) -> None:
        """All of ``[start, stop)`` but the `taken` (offset, length) pairs.

        Raises:
            ValueError: two of them overlap or one lies outside.
        """
        self.nbytes = 0
        self._starts: list[int] = []
        self._lengths: dict[int, int] = {}
        self._by_length: list[tuple[int, int]] = []
        self._readers: Counter[int] = Counter()
        self._waiting: dict[int, int] = {}
        at = start
        for offset, length in sorted(taken):
            if offset < at or length <= 0 or offset + length > stop:
                raise ValueError(f"extent [{offset}, {offset + length}) overlaps or leaves [{at}, {stop})")
            self.give(at, offset - at)
            at = offset + length
        self.give(at, stop - at)

    @property
    def largest_bytes(self) -> int:
        """Length of the longest run."""
        return self._by_length[-1][0] if self._by_length else 0

    def take(self, length: int) -> int | None:
        """Offset of `length` bytes that are free no more; None when no run is long enough."""
        at = bisect.bisect_left(self._by_length, (length, 0))
        if at == len(self._by_length):
            return None
        run_bytes, offset = self._by_length[at]
        self._remove(offset)
        self._add(offset + length, run_bytes - length)
        return offset

    def give(self, offset: int, length: int) -> None:
        """Make ``[offset, offset + length)`` free, once the readers of `offset` have let go."""
        if offset in self._readers:
            self._waiting[offset] = length
            return
        if not length:
            return
        at = bisect.bisect_left(self._starts, offset)
        if at < len(self._starts) and self._starts[at] == offset + length:
            length += self._remove(offset + length)
        if at and (before := self._starts[at - 1]) + self._lengths[before] == offset:
            offset, length = before, length + self._remove(before)
        self._add(offset, length)

    def pin(self, offset: int) -> None:
        """Count a reader of the extent at `offset`."""
        self._readers[offset] += 1

    def unpin(self, offset: int) -> None:
        """Let go of it; the last reader frees what was given back meanwhile."""
        self._readers[offset] -= 1
        if not self._readers[offset]:
            del self._readers[offset]
            self.give(offset, self._waiting.pop(offset, 0))

    def _add(self, offset: int, length: int) -> None:
        if length:
            bisect.insort(self._starts, offset)
            self._lengths[offset] = length
            bisect.insort(self._by_length, (length, offset))
            self.nbytes += length

    def _remove(self, offset: int) -> int:
        length = self._lengths.pop(offset)
        del self._starts[bisect.bisect_left(self._starts, offset)]
        del self._by_length[bisect.bisect_left(self._by_length, (length, offset))]
        self.nbytes -= length
        return length
