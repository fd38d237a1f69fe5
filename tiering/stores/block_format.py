"""Formatting: makes a block volume of a device or an image, and erases nothing that it was not told to.

Invariant: what is mounted, in use or not empty is left as it was, the last unless forced; a failure leaves no
file that was not there before. An image is written in full, so that no later write has to allocate.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from uuid import uuid4

from tiering.errors import Conflict, NotFound, UsageError
from tiering.stores.block_index import BlockIndex, sync_folder
from tiering.stores.block_layout import DATA_START, MIN_BYTES, VOLUME_MAGIC, Superblock
from tiering.stores.block_medium import Medium, typed_errors
from tiering.stores.block_space import FreeSpace
from tiering.stores.pages import PAGE_BYTES, PIECE_BYTES

_ZEROS: Final = bytes(PIECE_BYTES)
_SIGNATURE_BYTES: Final = 1 << 20
_SIGNATURES: Final = (
    (0, VOLUME_MAGIC, "a block volume of this engine"),
    (0, b"XFSB", "an XFS file system"),
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (1080, b"\x53\xef", "an ext file system"),
    (65600, b"_BHRfS_M", "a Btrfs file system"),
    (536, b"LVM2", "an LVM volume"),
    (512, b"EFI PART", "a GPT partition table"),
    (510, b"\x55\xaa", "an MBR partition table or boot sector"),
)


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """What a block volume is and how full it is. All sizes in bytes, header pages included."""

    path: Path
    uuid: str
    nbytes: int
    used_bytes: int
    free_bytes: int
    objects: int
    largest_free_bytes: int
    free_extents: int
    """Into how many runs the free bytes are cut."""

    fragmentation: float
    """Share of the free bytes that lies outside of the longest run, 0 to 1."""

    retired_bytes: int
    """Out of use for good: the medium refused to write there."""

    sector_bytes: int | None
    """Logical sector size of a device; None for an image."""

    direct: bool
    """Whether reads and writes go past the page cache."""


def format_volume(
    path: Path, nbytes: int | None, *, index_path: Path | None = None, force: bool = False
) -> VolumeInfo:
    """Make a block volume, and its empty index, of a device or of an image that is made or overwritten.

    Args:
        path: a block device, or an image file.
        nbytes: size, rounded down to 4 KiB; None for all of a device or of an image that is there.
        index_path: where the index lies; default ``<path>.index`` for an image, required for a device.
        force: erase whatever the device or file holds. One that is mounted or in use is refused even so.

    Raises:
        Conflict: it holds something. Locked: mounted or in use. CapacityExceeded: no room for the image.
        UsageError: a wrong size, or no index path for a device.
    """
    is_device = path.is_block_device()
    index_path = index_path_of(path, index_path, is_device=is_device)
    made = [file for file in (path, index_path) if not file.exists()]
    if path in made and path.is_relative_to("/dev") and not path.is_relative_to("/dev/shm"):  # noqa: S108
        raise NotFound(f"there is no device {path}", hint="List devices with: lsblk")
    if path in made and nbytes is None:
        raise UsageError(f"{path} does not exist, and no size is given", hint="Give one, such as 10GiB")
    if nbytes is not None:
        _usable_bytes(path, nbytes)
    with typed_errors(None, None, path):
        if path in made:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with contextlib.closing(Medium(None, path)) as medium, contextlib.ExitStack() as undo:
            # Only now that the volume is locked: another who makes it at the same moment keeps its files.
            for file in made:
                undo.callback(file.unlink, missing_ok=True)
            info = _format(medium, nbytes, index_path, force=force)
            undo.pop_all()
            return info


def enlarge(medium: Medium, superblock: Superblock, nbytes: int | None, *, force: bool) -> Superblock:
    """Make the volume `nbytes` large, None for all of a device; returns its new superblock, which is durable.

    The room comes first and the superblock last: whenever the power fails, it has one size or the other.

    Raises:
        UsageError: smaller than it is, or larger than the device. Conflict: the new room holds something.
        CapacityExceeded: no room for the image; it is as it was.
    """
    path, old_bytes = medium.path, superblock.nbytes
    available_bytes = medium.measure()
    size = _usable_bytes(path, available_bytes if nbytes is None else nbytes)
    if size < old_bytes:
        hint = "Move its objects to a smaller volume instead"
        raise UsageError(f"{path} has {old_bytes} bytes and cannot shrink to {size}", hint=hint)
    if medium.is_device and size > available_bytes:
        raise UsageError(
            f"{path} has {available_bytes} bytes, not {size}", hint="Give a smaller size or none"
        )
    if size == old_bytes:
        return superblock
    if not force and (content := _content(path, old_bytes, size if medium.is_device else available_bytes)):
        raise Conflict(f"behind the volume {path} holds {content}", hint="Give --force to erase it")
    if medium.is_device:
        _wipe_ends(path, old_bytes, size)
    else:
        try:
            medium.resize(size)
            _zero(medium, old_bytes, size)
            medium.flush()
        except OSError:
            medium.resize(available_bytes)
            raise
    larger = replace(superblock, nbytes=size)
    larger.write(medium)
    return larger


def volume_info(medium: Medium, superblock: Superblock, space: FreeSpace, objects: int) -> VolumeInfo:
    """What a caller is told of a volume."""
    return VolumeInfo(
        path=medium.path,
        uuid=str(superblock.volume),
        nbytes=superblock.nbytes,
        used_bytes=superblock.nbytes - space.nbytes,
        free_bytes=space.nbytes,
        objects=objects,
        largest_free_bytes=space.largest_bytes,
        free_extents=space.runs,
        fragmentation=round(space.fragmentation, 4),
        retired_bytes=sum(length for _, length in superblock.retired),
        sector_bytes=medium.sector_bytes,
        direct=medium.direct,
    )


def index_path_of(path: Path, index_path: Path | None, *, is_device: bool) -> Path:
    """Where the index of the volume at `path` lies."""
    if index_path is None and is_device:
        hint = "Give index_path, a file on a local file system that outlives a reboot"
        raise UsageError(f"device {path} has no place beside it for an index", hint=hint)
    found = index_path or path.with_name(f"{path.name}.index")
    if found.resolve() == path.resolve():
        raise UsageError(f"{path} cannot be its own index", hint=f"Example: {path.name}.index")
    return found


def _format(medium: Medium, nbytes: int | None, index_path: Path, *, force: bool) -> VolumeInfo:
    path = medium.path
    size = _usable_bytes(path, medium.nbytes if nbytes is None else nbytes)
    if medium.is_device and size > medium.nbytes:
        raise UsageError(f"{path} has {medium.nbytes} bytes, not {size}", hint="Give a smaller size or none")
    if not force and (content := _content(path, 0, medium.nbytes)):
        hint = "Choose another, or give --force to erase it"
        raise Conflict(f"{path} holds {content}", hint=hint)
    with contextlib.closing(BlockIndex.open(index_path)) as index:
        if medium.is_device:
            _wipe_ends(path, 0, medium.nbytes)
        else:
            medium.resize(size)
            _zero(medium, 0, size)
        superblock = Superblock(uuid4(), size, 0, secrets.token_bytes(16))
        superblock.write(medium)
        if not medium.is_device:
            sync_folder(path.parent)
        index.replace([], [], superblock.token)
    return volume_info(medium, superblock, FreeSpace(DATA_START, size, []), 0)


def _usable_bytes(path: Path, nbytes: int) -> int:
    if nbytes < MIN_BYTES:
        raise UsageError(f"{nbytes} bytes are too few for a volume at {path}", hint="Give 1MiB or more")
    return nbytes // PAGE_BYTES * PAGE_BYTES


def _zero(medium: Medium, start: int, stop: int) -> None:
    for offset in range(start, stop, PIECE_BYTES):
        medium.write(offset, [memoryview(_ZEROS)[: stop - offset]])


def _ends(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Where signatures lie, as (offset, length); the end of a device may lie within a page."""
    head_stop = min(stop, start + _SIGNATURE_BYTES)
    yield start, head_stop - start
    tail_start = max(head_stop, stop - _SIGNATURE_BYTES)
    yield tail_start, stop - tail_start


def _data(fd: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Where a file has data, as (offset, length) of pieces: holes are zeros."""
    while start < stop:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # nothing but a hole
        end = min(stop, os.lseek(fd, start, os.SEEK_HOLE))
        for offset in range(start, end, PIECE_BYTES):
            yield offset, min(PIECE_BYTES, end - offset)
        start = end


def _content(path: Path, start: int, stop: int) -> str | None:
    """What ``[start, stop)`` holds, or None: of a device as far as its ends tell, of a file all of it."""
    with path.open("rb") as file:
        pieces = _ends(start, stop) if path.is_block_device() else _data(file.fileno(), start, stop)
        for offset, length in pieces:
            data = os.pread(file.fileno(), length, offset)
            for at, magic, what in _SIGNATURES if offset == 0 else ():
                if data[at : at + len(magic)] == magic:
                    return what
            if rest := data.lstrip(b"\0"):
                return f"something: byte {offset + len(data) - len(rest)} is not zero"
    return None


def _wipe_ends(path: Path, start: int, stop: int) -> None:
    with path.open("r+b", buffering=0) as file:
        for offset, length in _ends(start, stop):
            os.pwrite(file.fileno(), bytes(length), offset)
        os.fsync(file.fileno())
