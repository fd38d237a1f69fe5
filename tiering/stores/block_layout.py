"""What a block volume looks like: two superblocks, two marks, then extents of one header page and data each.

Invariant: a page counts as a header only with this volume's UUID, its own offset and a right CRC32C in it.
So a torn page, a page of an earlier volume or a page of an image stored as an object never passes for one.
docs/block.md draws it. All integers are little-endian; the last four bytes of each such page are the CRC32C
of the others.
"""

from __future__ import annotations

import errno
import secrets
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Self
from uuid import UUID

from tiering.digest import CRC_BYTES, Hasher, crc32c
from tiering.errors import Corrupt, FormatError, UnsupportedVersion
from tiering.keys import validate
from tiering.stores.block_index import Entry, span_of
from tiering.stores.block_medium import Medium
from tiering.stores.pages import PAGE_BYTES, PIECE_BYTES, borrowed

VERSION: Final = 1
SUPERBLOCKS: Final = (0, PAGE_BYTES)
MARKS: Final = (2 * PAGE_BYTES, 3 * PAGE_BYTES)
DATA_START: Final = 4 * PAGE_BYTES
MIN_BYTES: Final = 1 << 20
VOLUME_MAGIC: Final = b"CORPUSTIERINGVOL"
_EXTENT_MAGIC: Final = b"CORPUSTIERINGEXT"
_MARK_MAGIC: Final = b"CORPUSTIERINGMRK"
_SUPERBLOCK: Final = struct.Struct("<16sI16sQIQ16sH")
"""Magic, version, UUID, nbytes, page bytes, session, nonce, retired runs; the runs follow."""

_RUN: Final = struct.Struct("<QQ")
"""Offset and length of a run that is out of use for good."""

_MAX_RETIRED: Final = 200
_MARK: Final = struct.Struct("<16s16s16sQ")
"""Magic, UUID, nonce of the session, commits."""

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

    retired: tuple[tuple[int, int], ...] = ()
    """Offset and length of runs that the medium refused to write: never used again, never looked at."""

    @property
    def token(self) -> str:
        """What an index must hold to be the one of this volume as it is now."""
        return f"{self.volume}:{self.session}:{self.nonce.hex()}"

    def next_session(self) -> Superblock:
        """The superblock of an opening for writing."""
        return replace(self, session=self.session + 1, nonce=secrets.token_bytes(16))

    def retire(self, runs: Sequence[tuple[int, int]]) -> Superblock:
        """The superblock with `runs` out of use.

        Raises:
            OSError: the medium has had too many.
        """
        retired = tuple(sorted({*self.retired, *runs}))
        if len(retired) > _MAX_RETIRED:
            raise OSError(errno.EIO, f"more than {_MAX_RETIRED} runs are bad; replace the device")
        return replace(self, retired=retired)

    def is_retired(self, offset: int) -> bool:
        """Whether the page at `offset` is out of use."""
        return any(start <= offset < start + length for start, length in self.retired)

    def write(self, medium: Medium, stale: Sequence[int] = ()) -> None:
        """Both copies, one durable before the other is touched, the `stale` one first."""
        fields = (VOLUME_MAGIC, VERSION, self.volume.bytes, self.nbytes, PAGE_BYTES, self.session, self.nonce)
        runs = b"".join(_RUN.pack(*run) for run in self.retired)
        page = _seal(_SUPERBLOCK.pack(*fields, len(self.retired)) + runs)
        for offset in sorted(SUPERBLOCKS, key=lambda offset: offset not in stale):
            medium.write(offset, [page])
            medium.flush()

    @classmethod
    def read(cls, medium: Medium) -> tuple[Self, list[int]]:
        """The newer good copy, and the offsets of those that are not like it.

        Raises:
            FormatError: not a volume. UnsupportedVersion: of a newer engine. Corrupt: damaged or too short.
        """
        hint = f"To erase what is there and make a volume: tiering block format {medium.path} --force"
        foreign = FormatError(f"{medium.path} is not a block volume", tier=medium.tier, hint=hint)
        if medium.nbytes < MIN_BYTES:
            raise foreign
        pages = {offset: read_page(medium, offset) for offset in SUPERBLOCKS}
        if all(page is None for page in pages.values()):
            raise OSError(errno.EIO, "neither superblock can be read")
        whole = {at: page for at, page in pages.items() if page and _sealed(page, VOLUME_MAGIC)}
        if not _is_ours(*pages.values()):
            raise foreign
        versions = [_SUPERBLOCK.unpack_from(page)[1] for page in (whole or pages).values() if page]
        # A newer layout may keep its checksum elsewhere, but then both copies say so.
        if (version := max(versions) if whole else min(versions)) > VERSION:
            text = f"{medium.path} has format version {version}, newer than {VERSION}"
            raise UnsupportedVersion(text, tier=medium.tier, hint="Use the newer release of this engine")
        if not whole:
            hint = "Restore the first 8 KiB, or format it again and refill it from another tier"
            raise Corrupt(f"both superblocks of {medium.path} are damaged", tier=medium.tier, hint=hint)
        copies = {at: cls._parse(page) for at, page in whole.items()}
        newest = max(copies.values(), key=lambda copy: (copy.session, copy.nbytes, len(copy.retired)))
        page_bytes = _SUPERBLOCK.unpack_from(next(iter(whole.values())))[4]
        if page_bytes != PAGE_BYTES or newest.nbytes > medium.nbytes:
            text = f"{medium.path} has {medium.nbytes} bytes, not {newest.nbytes} in pages of {page_bytes}"
            hint = "Restore the whole volume, or format it again and refill it from another tier"
            raise Corrupt(text, tier=medium.tier, hint=hint)
        return newest, [at for at in SUPERBLOCKS if copies.get(at) != newest]

    @classmethod
    def _parse(cls, page: memoryview) -> Self:
        _, _, raw_uuid, nbytes, _, session, nonce, count = _SUPERBLOCK.unpack_from(page)
        runs = page[_SUPERBLOCK.size : _SUPERBLOCK.size + count * _RUN.size]
        return cls(UUID(bytes=raw_uuid), nbytes, session, nonce, tuple(_RUN.iter_unpack(runs)))


@dataclass(frozen=True, slots=True)
class Mark:
    """How many commits of the index were durable: an index with fewer was put back from an earlier time.

    Written in turns to two pages, together with every header, so it never costs a flush of its own.
    """

    superblock: Superblock
    commits: int

    def write(self, medium: Medium, turn: int) -> None:
        """To one of the two pages; durable with the next flush."""
        fields = (_MARK_MAGIC, self.superblock.volume.bytes, self.superblock.nonce, self.commits)
        medium.write(MARKS[turn % len(MARKS)], [_seal(_MARK.pack(*fields))])

    @classmethod
    def read(cls, medium: Medium, superblock: Superblock) -> Self:
        """The newest of the session of `superblock`, whose index has 0 commits or more."""
        found = [0]
        for page in (read_page(medium, offset) for offset in MARKS):
            if page and _sealed(page, _MARK_MAGIC):
                _, volume, nonce, commits = _MARK.unpack_from(page)
                if volume == superblock.volume.bytes and nonce == superblock.nonce:
                    found.append(commits)
        return cls(superblock, max(found))


def _is_ours(first: memoryview | None, second: memoryview | None) -> bool:
    """Whether the first page is a superblock, damaged or not; the second may be what another format left."""
    if first and bytes(first[:16]) == VOLUME_MAGIC:
        return True
    if not second or not _sealed(second, VOLUME_MAGIC):
        return False
    uuid = slice(20, 36)
    return first is None or first[uuid] == second[uuid]  # the magic itself has rotted


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
    with borrowed(PIECE_BYTES) as bounce:
        for done in range(0, entry.nbytes, PIECE_BYTES):
            view = bounce[: entry.nbytes - done]
            medium.read(entry.data_offset + done, view)
            hasher.update(view)
    return hasher.hexdigest()


@dataclass(slots=True)
class Survey:
    """What a scan of the whole volume found."""

    best: dict[str, Entry] = field(default_factory=dict)
    """The entries that count, by key."""

    losers: list[Entry] = field(default_factory=list)
    """Those whose headers must be zeroed."""

    unreadable: list[int] = field(default_factory=list)
    """Offsets of pages outside of all extents that could not be read: a header may have been there."""


def survey(medium: Medium, superblock: Superblock) -> Survey:
    """Read the whole volume.

    Of two headers of one key the newer counts, unless only the older has its data: `write` returns after the
    old header is zero, so where both are there nobody was told of the newer. Data that differ from the digest
    of an only header have rotted, for headers are written after their data are durable: kept, as damaged.
    """
    found = Survey()
    for header in _headers(medium, superblock, found.unreadable):
        entry = replace(header, damaged=not intact(medium, header))
        other = found.best.get(entry.key)
        if other and (not other.damaged, other.generation) > (not entry.damaged, entry.generation):
            found.losers.append(entry)
            continue
        if other:
            found.losers.append(other)
        found.best[entry.key] = entry
    return found


def read_header(medium: Medium, superblock: Superblock, offset: int) -> Entry | None:
    """The entry whose header lies at `offset`; None when it cannot be read or is none."""
    page = read_page(medium, offset)
    return parse_header(page, superblock, offset) if page else None


def read_page(medium: Medium, offset: int) -> memoryview | None:
    """The page at `offset`, None where the medium fails."""
    page = memoryview(bytearray(PAGE_BYTES))
    try:
        medium.read(offset, page)
    except OSError:
        return None
    return page


def intact(medium: Medium, entry: Entry) -> bool:
    """Whether the data in the extent of `entry` can be read and have its digest."""
    try:
        return data_digest(medium, entry) == entry.digest
    except OSError:
        return False


def _headers(medium: Medium, superblock: Superblock, unreadable: list[int]) -> Iterator[Entry]:
    """Every header in ascending order. Data of an extent are skipped: they may hold anything."""
    start = DATA_START
    with borrowed(PIECE_BYTES) as window:
        while start < superblock.nbytes:
            view = window[: superblock.nbytes - start]
            bad = _read_what_goes(medium, start, view)
            done = 0
            while done < view.nbytes:
                offset = start + done
                entry = parse_header(view[done : done + PAGE_BYTES], superblock, offset)
                if entry and superblock.is_retired(offset):
                    entry = None
                if offset in bad and not superblock.is_retired(offset):
                    unreadable.append(offset)
                if entry:
                    yield entry
                done += entry.span if entry else PAGE_BYTES
            start += done


def _read_what_goes(medium: Medium, offset: int, view: memoryview) -> set[int]:
    """Read page by page where the medium fails, bad ones as zeros; returns the offsets of those."""
    bad = set()
    try:
        medium.read(offset, view)
    except OSError:
        for done in range(0, view.nbytes, PAGE_BYTES):
            page = read_page(medium, offset + done)
            view[done : done + PAGE_BYTES] = page or bytes(PAGE_BYTES)
            if page is None:
                bad.add(offset + done)
    return bad


def _seal(content: bytes) -> bytes:
    page = content.ljust(_SEALED_BYTES, b"\0")
    return page + crc32c(page).to_bytes(CRC_BYTES, "little")


def _sealed(page: memoryview, magic: bytes) -> bool:
    crc = int.from_bytes(page[_SEALED_BYTES:], "little")
    return bytes(page[: len(magic)]) == magic and crc == crc32c(page[:_SEALED_BYTES])
