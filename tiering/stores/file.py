"""File tier: a folder on a local or shared POSIX file system.

Invariant: a name without the temp prefix is a whole object whose bytes and directory entry were synced
before it got that name. A killed writer leaves at most a temp file, which nobody lists or reads.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NoReturn

from tiering.digest import Buffer
from tiering.errors import CapacityExceeded, Conflict, Corrupt, NotFound, Unavailable, UsageError
from tiering.keys import TEMP_PREFIX, path_of, validate, validate_prefix
from tiering.stores.base import Extent, ObjectInfo, Store, check_range, total_bytes

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_FOUND = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


class FileStore(Store):
    """Objects as files below `root`; the first write makes it. A root that is not there holds nothing."""

    kind: ClassVar[str] = "file"

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.root = root

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        fd = self._open(key)
        try:
            check_range(self.name, key, offset, buffer.nbytes, os.fstat(fd).st_size)
            self._fill(fd, key, offset, buffer)
        finally:
            os.close(fd)

    def read(self, key: str) -> bytearray:
        fd = self._open(key)  # once, so that the length and the bytes are of one object
        try:
            data = bytearray(os.fstat(fd).st_size)
            self._fill(fd, key, 0, memoryview(data))
            return data
        finally:
            os.close(fd)

    def write(self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False) -> ObjectInfo:
        path = path_of(self.root, key)
        if if_absent and os.path.exists(path):  # noqa: PTH110  # raises nothing
            raise Conflict("object exists already", tier=self.name, key=key)
        temp = path.parent / f"{TEMP_PREFIX}{secrets.token_hex(8)}"
        try:
            self._make_folder(path.parent)
            try:
                fd = self._create_temp(temp)
                try:  # locked until it has its name: `sweep` takes what nobody holds
                    info = self._write_temp(fd, key, buffers)
                    self._publish(temp, path, key, if_absent=if_absent)
                finally:
                    os.close(fd)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    temp.unlink()
        except Conflict:
            raise
        except OSError as error:
            self._fail(error, key)
        return info

    def delete(self, key: str) -> None:
        path = path_of(self.root, key)
        try:
            path.unlink()
        except OSError as error:
            if error.errno not in _NOT_FOUND:
                self._fail(error, key)
            return
        _sync_folder(path.parent)
        folder = path.parent
        with contextlib.suppress(OSError):  # stops at the first folder that still holds something
            while folder != self.root:
                folder.rmdir()
                folder = folder.parent

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        validate_prefix(prefix)
        start = path_of(self.root, prefix) if prefix else self.root
        yield from self._walk(start, f"{prefix}/" if prefix else "")

    def children(self, prefix: str = "") -> Sequence[str]:
        validate_prefix(prefix)
        start = path_of(self.root, prefix) if prefix else self.root
        return sorted(entry.name for entry in self._scan(start) if _holds_object(entry))

    def stat(self, key: str) -> ObjectInfo:
        fd = self._open(key)
        try:
            return _info(key, os.fstat(fd))
        finally:
            os.close(fd)

    def locate(self, key: str) -> Extent:
        return Extent(path_of(self.root, key), 0, self.stat(key).nbytes)

    def free_bytes(self) -> int | None:
        there = next(folder for folder in (self.root, *self.root.parents) if folder.is_dir())
        stats = os.statvfs(there)
        return stats.f_bavail * stats.f_frsize

    def sweep(self, prefix: str = "") -> int:
        validate_prefix(prefix)
        start = path_of(self.root, prefix) if prefix else self.root
        swept = 0
        for folder, _folders, names in os.walk(start):
            for name in names:
                if name.startswith(TEMP_PREFIX):
                    swept += _sweep_temp(Path(folder, name))
        return swept

    def _open(self, key: str) -> int:
        path = path_of(self.root, key)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would keep us waiting
        except OSError as error:
            self._fail(error, key)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise NotFound("no such object", tier=self.name, key=key)
        return fd

    def _fill(self, fd: int, key: str, offset: int, buffer: memoryview) -> None:
        done = 0
        try:
            while done < buffer.nbytes:
                done += os.preadv(fd, [buffer[done:]], offset + done) or self._cut(key)
        except Corrupt:
            raise
        except OSError as error:
            self._fail(error, key)

    def _cut(self, key: str) -> NoReturn:
        raise Corrupt("file became shorter while it was read", tier=self.name, key=key)

    def _make_folder(self, folder: Path) -> None:
        """Make `folder` and sync each parent that got a new entry."""
        while not folder.is_dir():
            self._make_folder(folder.parent)
            with contextlib.suppress(FileNotFoundError):  # a racing delete removed the emptied parent
                folder.mkdir(mode=0o700, exist_ok=True)
                _sync_folder(folder.parent)

    def _write_temp(self, fd: int, key: str, buffers: Sequence[Buffer]) -> ObjectInfo:
        nbytes = total_bytes(buffers)
        if nbytes:
            _preallocate(fd, nbytes)
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            while view.nbytes:
                view = view[os.write(fd, view) :]
        stats = os.fstat(fd)
        if stats.st_size != nbytes:
            raise OSError(errno.EIO, f"{stats.st_size} bytes written of {nbytes}")
        os.fdatasync(fd)
        return _info(key, stats)

    def _create_temp(self, temp: Path) -> int:
        """Create and lock `temp`; while the lock is held, `sweep` knows that its writer lives."""
        for _attempt in range(100):
            try:
                fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:  # an emptied folder was removed by a racing delete
                self._make_folder(temp.parent)
                continue
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                return fd
            os.close(fd)  # swept between creation and lock
        raise OSError(errno.EAGAIN, "cannot keep a temporary file", str(temp))

    def _publish(self, temp: Path, path: Path, key: str, *, if_absent: bool) -> None:
        if if_absent:
            try:
                os.link(temp, path)  # unlike rename, fails when the name exists
            except FileExistsError:
                raise Conflict("object exists already", tier=self.name, key=key) from None
        else:
            temp.rename(path)
        _sync_folder(path.parent)

    def _walk(self, folder: Path, prefix: str) -> Iterator[ObjectInfo]:
        # A folder sorts as its name with a slash: that is where its keys stand among its siblings.
        entries = [
            (f"{e.name}/" if e.is_dir(follow_symlinks=False) else e.name, e) for e in self._scan(folder)
        ]
        for name, entry in sorted(entries, key=lambda pair: pair[0].encode()):
            if name.endswith("/"):
                yield from self._walk(Path(entry.path), f"{prefix}{name}")
                continue
            # Deleted since the folder was read, or a foreign file whose name is no key.
            with contextlib.suppress(FileNotFoundError, UsageError):
                yield _info(f"{prefix}{name}", entry.stat(follow_symlinks=False))

    def _scan(self, folder: Path) -> Sequence[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                return [
                    entry
                    for entry in entries
                    if not entry.name.startswith(TEMP_PREFIX) and not entry.is_symlink()
                ]
        except OSError as error:
            if error.errno in _NOT_FOUND:
                return []
            self._fail(error, None)

    def _fail(self, error: OSError, key: str | None) -> NoReturn:
        """Raise the typed error for an error of the operating system."""
        text = f"{error.strerror or error} at {error.filename or self.root}"
        if error.errno in _NOT_FOUND:
            raise NotFound("no such object", tier=self.name, key=key) from error
        if error.errno in _NO_SPACE:
            hint = "Make room on this file system, or release something from this tier"
            raise CapacityExceeded(text, tier=self.name, key=key, hint=hint) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint = "Give this user the right to it, or choose another folder"
            raise UsageError(text, tier=self.name, key=key, hint=hint) from error
        raise Unavailable(text, tier=self.name, key=key, hint="Look at the disk and its mount") from error


def _info(key: str, stats: os.stat_result) -> ObjectInfo:
    # A rename never changes an inode's bytes, so inode and time identify them.
    return ObjectInfo(validate(key), stats.st_size, f"{stats.st_ino:x}-{stats.st_mtime_ns:x}", stats.st_mtime)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _holds_object(entry: os.DirEntry[str]) -> bool:
    """Whether `entry` is an object or a folder with one somewhere below: empty folders are not names."""
    if not _is_folder(entry):
        return True
    for _folder, _folders, files in os.walk(entry.path):
        if any(not name.startswith(TEMP_PREFIX) for name in files):
            return True
    return False


def _sweep_temp(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:  # published, or removed by its writer
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except OSError:  # locked: its writer lives
        return False
    finally:
        os.close(fd)
    return True


def _preallocate(fd: int, nbytes: int) -> None:
    try:
        os.posix_fallocate(fd, 0, nbytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system without preallocation
            raise


def _sync_folder(folder: Path) -> None:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:  # removed by a racing delete, and its entry with it
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
