"""File tier: a folder on a local or shared POSIX file system.

Invariant: a name without the temp prefix is a whole object whose bytes were synced before it got that name,
and when `write` returns its directory entry was, too. A killed writer leaves at most a temp file, which
nobody lists or reads.

Large objects go past the page cache where that is faster (`tiering.stores.direct`); no symbolic link is
followed below the root (`file_tree`); what dead writers left is swept, and nothing of the living
(`file_temp`).

Failures: a write claims its room before its first byte. One that fails before its name is given leaves
nothing, and is never carried on with: after a failed sync the kernel may have dropped the bytes and tells
of it only once, so it takes a whole new write. If the name was given and then the sync of the folder fails,
the object may be there or not, whole.

NFS: a `link` or `rename` whose reply was lost is recognised by the inode; a file handle that went stale is
opened again, a few times; a server that reports lack of room on close is heard. Not supported: mounts whose
attribute cache outlives what readers on other machines are told by other ways (`noac` or `actimeo=0` mend
that), mounts with `soft` and short time-outs (calls fail that succeed later), and file systems without hard
links or atomic rename.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shlex
import stat
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Final, NoReturn, TypeVar

from tiering.digest import Buffer
from tiering.errors import (
    CapacityExceeded,
    Conflict,
    Corrupt,
    NotFound,
    TieringError,
    Unavailable,
    UsageError,
)
from tiering.keys import TEMP_PREFIX, path_of, validate, validate_prefix
from tiering.stores import direct, file_systems, file_temp
from tiering.stores.base import Extent, ObjectInfo, Reader, Store, Strays, check_range, total_bytes
from tiering.stores.file_kept import KeptFile, KeptFiles, identity_of
from tiering.stores.file_tree import Tree, is_foreign, sync_folder
from tiering.stores.pages import new_buffer
from tiering.stores.scatter import Scatter

_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_FOUND: Final = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_NO_FILES: Final = (errno.EMFILE, errno.ENFILE)
_STALE_TRIES: Final = 4
_TEMP_TRIES: Final = 100
_LIBC: Final = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


class FileStore(Store):
    """Objects as files below `root`; the first write makes it. A root that is not there holds nothing.

    Folders are made for this user alone (0700), and so are files (0600).
    """

    kind: ClassVar[str] = "file"

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.root = root
        self._tree = Tree(root)
        self._kept = KeptFiles()

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        def fill(fd: int) -> None:
            check_range(self.name, key, offset, buffer.nbytes, os.fstat(fd).st_size)
            self._fill(fd, key, offset, buffer)

        self._with_file(key, fill)

    def reader(self, key: str) -> Reader:
        segments = _segments(key)
        file = KeptFile(lambda: self._tree.open(segments), self._kept)

        def read(offset: int, buffer: memoryview | Scatter) -> Hashable | None:
            # Large ones may go direct, which is a state of the open file.
            if isinstance(buffer, memoryview) and buffer.nbytes >= direct.READ_BYTES:
                self.read_into(key, offset, buffer)
                return None
            done, stats = self._retried(key, lambda: file.read_into(offset, buffer))
            if done < buffer.nbytes:
                check_range(self.name, key, offset, buffer.nbytes, min(stats.st_size, offset + done))
            return identity_of(stats)

        return read

    def read(self, key: str) -> Buffer:
        def fill(fd: int) -> Buffer:  # opened once: length and bytes are of one object
            data = new_buffer(os.fstat(fd).st_size)
            self._fill(fd, key, 0, memoryview(data))
            return data

        return self._with_file(key, fill)

    def write(
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        segments = _segments(key)
        if is_foreign(segments[-1]):
            raise UsageError("NFS calls removed files so", tier=self.name, key=key, hint="Use another name")

        def write() -> ObjectInfo:
            try:
                return self._write(segments, key, buffers, if_absent=if_absent)
            except (NotADirectoryError, IsADirectoryError) as error:
                what = "an object" if error.errno == errno.ENOTDIR else "a folder"
                hint = "A name is either an object's or a folder's"
                raise UsageError(f"{what} is in the way", tier=self.name, key=key, hint=hint) from error

        return self._retried(key, write)

    def delete(self, key: str) -> None:
        *parents, name = _segments(key)

        def remove() -> bool:
            try:
                with self._tree.folder(parents) as folder:
                    self._refuse_link(folder, name, key)
                    os.unlink(name, dir_fd=folder)
                    sync_folder(folder)
            except OSError as error:
                if error.errno not in _NOT_FOUND:
                    raise
                return False
            return True

        if self._retried(key, remove):
            self._tree.remove_empty(parents)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        validate_prefix(prefix)
        yield from self._walk(prefix.split("/") if prefix else [])

    def children(self, prefix: str = "") -> Sequence[str]:
        validate_prefix(prefix)
        folder = prefix.split("/") if prefix else []
        found = self._entries(folder)
        return sorted(
            name for name, stats in found if not stat.S_ISDIR(stats.st_mode) or self._holds([*folder, name])
        )

    def stat(self, key: str) -> ObjectInfo:
        return self._with_file(key, lambda fd: _info(key, os.fstat(fd)))

    def locate(self, key: str) -> Extent:
        return Extent(path_of(self.root, key), 0, self.stat(key).nbytes)

    def is_volatile(self) -> bool:
        return self._retried(None, lambda: file_systems.is_memory(self.root))

    def free_bytes(self) -> int | None:
        return self._retried(None, lambda: file_systems.free_bytes(self.root))

    def set_aside(self, key: str, aside: str) -> bool:
        return self._retried(key, lambda: self._tree.set_aside(_segments(key), _segments(aside)))

    def sweep(self, prefix: str = "") -> int:
        validate_prefix(prefix)

        def sweep() -> int:
            try:
                temps = self._tree.walk_temps(prefix.split("/") if prefix else [])
                return sum(file_temp.sweep(folder, name) for folder, name in temps)
            except (FileNotFoundError, NotADirectoryError):
                return 0

        return self._retried(None, sweep)

    def strays(self) -> Strays:
        def look() -> Strays:
            try:
                found = [file_temp.stray_bytes(folder, name) for folder, name in self._tree.walk_temps([])]
            except (FileNotFoundError, NotADirectoryError):
                return Strays()
            sizes = [nbytes for nbytes in found if nbytes is not None]
            command = f"find {shlex.quote(str(self.root))} -name '{TEMP_PREFIX}*' -mtime +0 -delete"
            return Strays(len(sizes), sum(sizes), command if sizes else "")

        return self._retried(None, look)

    def _with_file(self, key: str, work: Callable[[int], T]) -> T:
        segments = _segments(key)

        def opened() -> T:
            fd = self._tree.open(segments)
            try:
                return work(fd)
            finally:
                os.close(fd)

        return self._retried(key, opened)

    def _retried(self, key: str | None, work: Callable[[], T]) -> T:
        """What `work` returns; done again while a file handle was stale, its other errors as typed ones."""
        for tries_left in reversed(range(_STALE_TRIES)):
            try:
                return work()
            except TieringError:
                raise
            except OSError as error:
                if error.errno != errno.ESTALE or not tries_left:
                    self._fail(error, key)
        raise AssertionError("the last try returns or raises")

    def _fill(self, fd: int, key: str, offset: int, buffer: memoryview) -> None:
        if direct.read_into(fd, offset, buffer) < buffer.nbytes:
            raise Corrupt("file became shorter while it was read", tier=self.name, key=key)

    def _write(
        self, segments: Sequence[str], key: str, buffers: Sequence[Buffer], *, if_absent: bool
    ) -> ObjectInfo:
        *parents, name = segments
        for _attempt in range(_TEMP_TRIES):
            with self._tree.made_folder(parents) as folder:
                if self._refuse_link(folder, name, key) and if_absent:
                    raise Conflict("object exists already", tier=self.name, key=key)
                believed = file_systems.locks_are_believed(folder)
                temp = file_temp.new_name(believed=believed)
                try:
                    fd = file_temp.create(folder, temp, believed=believed)
                    if fd is None:  # swept, or its emptied folder was removed, before it could be held
                        continue
                    try:  # held until it has its name: `sweep` takes what nobody holds
                        info = self._write_temp(fd, key, buffers)
                        self._publish(fd, folder, temp, name, key, if_absent=if_absent)
                    finally:
                        with contextlib.suppress(OSError):  # all was synced, and closed once without an error
                            os.close(fd)
                finally:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(temp, dir_fd=folder)
                return info
        raise OSError(errno.EAGAIN, "a temporary file is removed again and again", temp)

    def _write_temp(self, fd: int, key: str, buffers: Sequence[Buffer]) -> ObjectInfo:
        nbytes = total_bytes(buffers)
        data = os.dup(fd)  # its close tells of what a server refuses late, while the other keeps the lock
        try:
            if nbytes:
                _preallocate(data, nbytes)
            direct.write_durably(data, buffers, nbytes)
            stats = os.fstat(data)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error says more
                os.close(data)
            raise
        os.close(data)
        if stats.st_size != nbytes:
            raise OSError(errno.EIO, f"{stats.st_size} bytes written of {nbytes}")
        return _info(key, stats)

    def _publish(self, fd: int, folder: int, temp: str, name: str, key: str, *, if_absent: bool) -> None:
        try:
            if if_absent:
                os.link(temp, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            else:
                os.rename(temp, name, src_dir_fd=folder, dst_dir_fd=folder)
        except (FileExistsError, FileNotFoundError) as error:
            # An NFS client sends a call again whose answer was lost, and is told of its own success.
            if not _is_file(fd, folder, name):
                if isinstance(error, FileExistsError):
                    raise Conflict("object exists already", tier=self.name, key=key) from None
                raise
        except IsADirectoryError:
            raise
        except OSError as error:
            self._fail(error, key)  # not again: a stale handle here says nothing of the name
        try:
            os.fsync(folder)
        except OSError as error:
            self._fail(error, key)

    def _refuse_link(self, folder: int, name: str, key: str) -> bool:
        """Whether `name` is there; raises where it is a symbolic link."""
        try:
            mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return False
        if stat.S_ISLNK(mode):
            raise OSError(errno.ELOOP, "a symbolic link", name)
        return True

    def _walk(self, folder: Sequence[str]) -> Iterator[ObjectInfo]:
        # A folder sorts as its name with a slash: that is where its keys stand among its siblings.
        found = [
            (f"{name}/" if stat.S_ISDIR(stats.st_mode) else name, name, stats)
            for name, stats in self._entries(folder)
        ]
        for order, name, stats in sorted(found, key=lambda one: one[0].encode(errors="surrogateescape")):
            if order.endswith("/"):
                yield from self._walk([*folder, name])
                continue
            with contextlib.suppress(UsageError):  # a foreign file whose name is no key
                yield _info("/".join([*folder, name]), stats)

    def _holds(self, folder: Sequence[str]) -> bool:
        """Whether there is an object somewhere below: empty folders are not names."""
        found = self._entries(folder)
        return any(not stat.S_ISDIR(stats.st_mode) for _, stats in found) or any(
            self._holds([*folder, name]) for name, stats in found if stat.S_ISDIR(stats.st_mode)
        )

    def _entries(self, folder: Sequence[str]) -> Sequence[tuple[str, os.stat_result]]:
        return self._retried(None, lambda: self._tree.entries(folder))

    def _fail(self, error: OSError, key: str | None) -> NoReturn:
        """Raise the typed error for an error of the operating system."""
        text = f"{error.strerror or error} at {error.filename or self.root}"
        if error.errno in _NOT_FOUND:
            if error.errno != errno.EISDIR:
                raise NotFound("no such object", tier=self.name, key=key) from error
            hint = "'tiering verify --repair' puts it aside and the object in its place"
            problem = f"no such object, but {error.strerror}"
            raise NotFound(problem, tier=self.name, key=key, hint=hint) from error
        if error.errno == errno.ELOOP:
            hint = (
                "Nothing below the folder of a tier may be one: put the files there, or open the tier there"
            )
            raise UsageError(
                f"{error.filename} is a symbolic link", tier=self.name, key=key, hint=hint
            ) from error
        if error.errno in _NO_SPACE:
            hint = "Make room on this file system, or release something from this tier"
            raise CapacityExceeded(text, tier=self.name, key=key, hint=hint) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint = "Give this user the right to it, or choose another folder"
            raise UsageError(text, tier=self.name, key=key, hint=hint) from error
        hint = "Look at the disk and its mount"
        if error.errno in _NO_FILES:
            hint = "Let this process open more files (ulimit -n)"
        raise Unavailable(text, tier=self.name, key=key, hint=hint) from error


def _segments(key: str) -> Sequence[str]:
    return validate(key).split("/")


def _info(key: str, stats: os.stat_result) -> ObjectInfo:
    # A rename never changes an inode's bytes, so inode and time identify them.
    return ObjectInfo(validate(key), stats.st_size, f"{stats.st_ino:x}-{stats.st_mtime_ns:x}", stats.st_mtime)


def _is_file(fd: int, folder: int, name: str) -> bool:
    """Whether `name` is the open file."""
    try:
        there = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))


def _preallocate(fd: int, nbytes: int) -> None:
    """Claim the room; `os.posix_fallocate` would write to every page where there is no such call.

    What can never fit is refused before: a claim that fails half way fills the disk for everybody meanwhile.
    """
    stats = os.fstatvfs(fd)
    if stats.f_blocks and nbytes > stats.f_bfree * stats.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    while _LIBC.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(nbytes)):
        number = ctypes.get_errno()
        if number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):  # a file system without preallocation
            return
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
