"""The medium below a block tier: one raw device or image file, locked, read and written in 4 KiB pages.

Invariant: while a `Medium` is open for writing no other opener of the same path is; every byte goes past the
page cache where the medium allows it; and after a failed flush nothing counts as durable any more, for the
kernel reports a lost write only once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
import stat
import struct
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NoReturn

from tiering.digest import Buffer
from tiering.errors import CapacityExceeded, Corrupt, Locked, NotFound, TieringError, Unavailable, UsageError
from tiering.stores.block_stream import placed, write_hashed
from tiering.stores.helpers import Helpers
from tiering.stores.pages import (
    PAGE_BYTES,
    PIECE_BYTES,
    address_of,
    aligned_buffer,
    borrowed,
    copy,
    round_up,
)

_PROBE_BYTES: Final = 1 << 20
_BLKSSZGET: Final = 0x1268  # linux/fs.h: logical sector size of a block device


class Medium:
    """An open, locked device or image. Many threads may read and write disjoint pages of it."""

    def __init__(self, tier: str | None, path: Path, *, read_only: bool = False) -> None:
        """Open and lock `path`.

        Raises:
            NotFound: nothing is there. UsageError: neither a file nor a block device, no right to it, or a
                device with sectors of more than 4 KiB.
            Locked: mounted, attached to a loop device, or open in another store.
        """
        self.tier = tier
        self.path = path
        self.broken = False
        """A flush failed: what was written since the last good one may be lost."""
        self._lock = threading.Lock()
        self._state = threading.Condition(self._lock)
        self._flushing = threading.Lock()
        self._in_use = 0
        self._backing: int | None = None
        self._stopped = False
        self.helpers = Helpers("block")
        with typed_errors(tier, None, path):
            self.is_device = _is_device(path, tier)
            if not self.is_device:
                _refuse_attached(path, tier)
            flags = os.O_RDONLY if read_only else os.O_RDWR | (os.O_EXCL if self.is_device else 0)
            self._fd, self.direct = _open(path, flags | os.O_CLOEXEC)
            try:
                _lock(self._fd, path, tier, shared=read_only)
                self._backing = _lock_backing(path, tier, shared=read_only) if self.is_device else None
                self.nbytes = os.lseek(self._fd, 0, os.SEEK_END)  # fstat says 0 for a device
                self.sector_bytes = _usable_sector(self._fd, path, tier) if self.is_device else None
            except BaseException:
                if self._backing is not None:
                    os.close(self._backing)
                os.close(self._fd)
                raise

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `offset` on; neither needs to be aligned.

        Raises:
            OSError: the medium failed. Corrupt: it ends before the range does.
        """
        done = buffer.nbytes
        if self.direct and done:
            aligned = offset % PAGE_BYTES == 0 and address_of(buffer) % PAGE_BYTES == 0
            done = done // PAGE_BYTES * PAGE_BYTES if aligned else 0
        with self._using() as fd:
            self._fill(fd, offset, buffer[:done])
            if done == buffer.nbytes:
                return
            with borrowed(PIECE_BYTES) as bounce:
                while done < buffer.nbytes:
                    skip = (offset + done) % PAGE_BYTES
                    take = min(buffer.nbytes - done, PIECE_BYTES - skip)
                    self._fill(fd, offset + done - skip, bounce[: round_up(skip + take)])
                    copy(buffer[done : done + take], bounce[skip : skip + take])
                    done += take

    def write(self, offset: int, buffers: Iterable[Buffer]) -> None:
        """Write pages, the last padded with zeros; durable only after `flush`."""
        self.write_data(offset, buffers, known="")

    def write_data(self, offset: int, buffers: Iterable[Buffer], known: str | None) -> str:
        """Like `write_hashed`; durable only after `flush`."""
        with self._using() as fd:
            return write_hashed(self.helpers, fd, offset, buffers, known)

    def bad_runs(self, offset: int, nbytes: int) -> list[tuple[int, int]]:
        """Zero ``[offset, offset + nbytes)`` and return the (offset, length) runs of pages that refuse it."""
        try:
            self.write(offset, [bytes(nbytes)])
        except OSError as error:
            if error.errno != errno.EIO:
                raise
        else:
            return []
        if nbytes <= PAGE_BYTES:
            return [(offset, nbytes)]
        step = _PROBE_BYTES if nbytes > _PROBE_BYTES else PAGE_BYTES
        pieces = [(at, min(step, offset + nbytes - at)) for at in range(offset, offset + nbytes, step)]
        return [run for piece in pieces for run in self.bad_runs(*piece)]

    def resize(self, nbytes: int) -> None:
        """Cut or allocate an image to `nbytes`; a full disk is told before anything is overwritten."""
        with self._using() as fd:
            os.ftruncate(fd, min(nbytes, self.nbytes))
            try:
                os.posix_fallocate(fd, 0, nbytes)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system without preallocation
                    raise
        self.nbytes = nbytes

    def measure(self) -> int:
        """Look again how large the medium is: devices grow."""
        with self._using() as fd:
            self.nbytes = os.lseek(fd, 0, os.SEEK_END)
        return self.nbytes

    def flush(self) -> None:
        """Wait until every write that returned before this call is durable."""
        # One at a time: a second caller in flight could see success for a loss that was told to the first.
        with self._using() as fd, self._flushing:
            if self.broken:
                raise OSError(errno.EIO, "an earlier flush failed", str(self.path))
            try:
                os.fdatasync(fd)
            except OSError:
                self.broken = True
                raise

    def stop(self) -> None:
        """Refuse new reads and writes and wait for those in flight; the lock is kept."""
        with self._state:
            self._stopped = True
            self._state.wait_for(lambda: self._in_use == 0)

    def close(self) -> None:
        """Give the lock back. Idempotent."""
        self.stop()
        self.helpers.close()
        with self._state:
            if self._fd >= 0:
                fcntl.flock(self._fd, fcntl.LOCK_UN)  # a forked child may keep the description open
                os.close(self._fd)
                self._fd = -1
            if self._backing is not None:
                fcntl.flock(self._backing, fcntl.LOCK_UN)
                os.close(self._backing)
                self._backing = None

    def _using(self) -> _Use:
        return _Use(self)

    def _begin_use(self) -> int:
        # Without the count, close() in one thread would let another read a file that reuses the number.
        with self._lock:
            if self._stopped:
                raise UsageError("the store is closed", tier=self.tier, hint="Open it again")
            self._in_use += 1
        return self._fd

    def _end_use(self) -> None:
        with self._lock:
            self._in_use -= 1
            if self._stopped:
                self._state.notify_all()

    def _fill(self, fd: int, offset: int, view: memoryview) -> None:
        done = 0
        while done < view.nbytes:
            try:
                got = os.preadv(fd, [view[done:]], offset + done)
            except OSError as error:
                raise placed(error, "reading", offset + done, view.nbytes - done) from error
            if got == 0 or (self.direct and got % PAGE_BYTES):
                raise Corrupt(f"{self.path} ends at byte {offset + done + got}", tier=self.tier)
            done += got


class _Use:
    """Gives the descriptor, which stays open during the ``with``."""

    # A class, as is the next: a generator's many calls cost a read of 1 MiB a tenth of its time.
    __slots__ = ("_medium",)

    def __init__(self, medium: Medium) -> None:
        self._medium = medium

    def __enter__(self) -> int:
        return self._medium._begin_use()

    def __exit__(self, *_: object) -> None:
        self._medium._end_use()


class typed_errors:  # noqa: N801 - used as a function is
    """Raises errors of the operating system and of SQLite as the engine's own."""

    __slots__ = ("_key", "_path", "_tier")

    def __init__(self, tier: str | None, key: str | None, path: Path) -> None:
        self._tier, self._key, self._path = tier, key, path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, TieringError):
            error.tier, error.key = error.tier or self._tier, error.key or self._key
        elif isinstance(error, OSError):
            _fail(error, self._tier, self._key, self._path)
        elif isinstance(error, sqlite3.Error):
            _fail_index(error, self._tier, self._key, self._path)


def _fail_index(error: sqlite3.Error, tier: str | None, key: str | None, path: Path) -> NoReturn:
    text = f"index of {path}: {error}"
    if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
        hint = "Make room on the file system that holds the index"
        raise CapacityExceeded(text, tier=tier, key=key, hint=hint) from error
    hint = "Open the store again; without its index it is rebuilt from the volume"
    raise Unavailable(text, tier=tier, key=key, hint=hint) from error


def _fail(error: OSError, tier: str | None, key: str | None, path: Path) -> NoReturn:
    text = f"{error.strerror or error} at {error.filename or path}"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        if not (folder := Path(error.filename or path).parent).is_dir():
            raise NotFound(f"no folder {folder}", tier=tier, key=key, hint="Make it first") from error
        hint = f"Make it with: tiering block format {path} --size 10GiB"
        raise NotFound(f"no block volume at {path}", tier=tier, key=key, hint=hint) from error
    if error.errno in (errno.EBUSY, errno.ETXTBSY):
        hint = "Unmount it, or stop what uses it (lsblk, swapon, dmsetup ls), or choose another device"
        raise Locked(f"{path} is mounted, or open in another store", tier=tier, key=key, hint=hint) from error
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        hint = "Make room on this file system, or use a smaller volume"
        raise CapacityExceeded(text, tier=tier, key=key, hint=hint) from error
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = "Give this user the right to it (for a device: group disk), or open it read-only"
        raise UsageError(text, tier=tier, key=key, hint=hint) from error
    hint = "Look at the kernel log for this device; open the store again once it is well"
    raise Unavailable(text, tier=tier, key=key, hint=hint) from error


def sector_bytes(fd: int) -> int:
    """Logical sector size of an open block device."""
    size: int = struct.unpack("i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))[0]
    return size


def _usable_sector(fd: int, path: Path, tier: str | None) -> int:
    """Sector size of a device that takes single pages."""
    if (size := sector_bytes(fd)) > PAGE_BYTES:
        text = f"{path} has sectors of {size} bytes; a page of a volume has {PAGE_BYTES}"
        raise UsageError(text, tier=tier, hint="Make a file system on that device and use a file tier")
    return size


def _is_device(path: Path, tier: str | None) -> bool:
    mode = path.stat().st_mode
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return stat.S_ISBLK(mode)
    hint = "Name a block device, or an image made by: tiering block format PATH --size 10GiB"
    raise UsageError(f"{path} is neither a regular file nor a block device", tier=tier, hint=hint)


def _open(path: Path, flags: int) -> tuple[int, bool]:
    """A descriptor, and whether it goes past the page cache."""
    try:
        fd = os.open(path, flags | os.O_DIRECT)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return os.open(path, flags), False  # a file system without O_DIRECT
        raise
    try:
        os.preadv(fd, [aligned_buffer(PAGE_BYTES)], 0)
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EINVAL:
            return os.open(path, flags), False  # one that says so only when it is used
        if error.errno == errno.EIO:
            return os.open(path, flags | os.O_DIRECT), True  # a bad first page; the second may do
        raise
    return fd, True


def _lock(fd: int, path: Path, tier: str | None, *, shared: bool) -> None:
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        hint = "Stop that process, share its store, or open both read-only; the lock ends with its holder"
        raise Locked(f"{path} is open in {_holder(fd)}", tier=tier, hint=hint) from None


def _holder(fd: int) -> str:
    ours = f":{os.fstat(fd).st_ino}"
    with contextlib.suppress(OSError):
        for fields in map(str.split, Path("/proc/locks").read_text().splitlines()):
            if fields[1] == "FLOCK" and fields[5].endswith(ours):
                return "this process" if fields[4] == str(os.getpid()) else f"process {fields[4]}"
    return "another process"


def _lock_backing(path: Path, tier: str | None, *, shared: bool) -> int | None:
    """A descriptor of the file behind a loop device, locked: who has opened that as an image keeps us out.

    None where the device is another, or its file not to be seen from here.
    """
    number = path.stat().st_rdev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    is_part = (device / "partition").exists()
    disk = device.parent if is_part else device
    try:
        is_part = is_part or (disk / "loop/offset").read_text().strip() != "0"
        fd = os.open(_backing_file(disk), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        _lock(fd, path, tier, shared=shared or is_part)  # other parts may be other volumes
    except BaseException:
        os.close(fd)
        raise
    return fd


def _refuse_attached(path: Path, tier: str | None) -> None:
    """An image that a loop device writes to is held, though no lock on the file says so."""
    ours = path.stat()
    for device in Path("/sys/block").glob("loop*"):
        try:
            theirs = Path(_backing_file(device)).stat()
        except OSError:  # it is detached just now, or of a file that we may not see
            continue
        if os.path.samestat(ours, theirs):
            hint = f"Use the device, or detach it: losetup -d /dev/{device.name}"
            raise Locked(f"{path} is attached to /dev/{device.name}", tier=tier, hint=hint)


def _backing_file(device: Path) -> str:
    return (device / "loop/backing_file").read_text().rstrip("\n")
