"""The folders of a file tier, walked one name at a time from the root.

Invariant: nothing below the root is reached through a symbolic link, not even through one that takes a
folder's place in the middle of a call: each name is opened relative to the open folder before it and never
followed. The root itself may be a link, for users link their disks. What this cannot keep out: hard links,
which are the file itself; mounts below the root; and whoever opens the path that `FileStore.locate` gives,
for that walks anew.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tiering.keys import TEMP_PREFIX

_FOLDER: Final = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MADE_AGAIN: Final = 100
_SILLY_NAME: Final = re.compile(r"\.nfs[0-9a-f]{16,}")
"""What an NFS client calls a file that was removed while it was open."""


class Tree:
    """Folders and files below `root`, by the segments of their keys. Raises OSError."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextlib.contextmanager
    def folder(self, segments: Sequence[str]) -> Iterator[int]:
        """An open folder, good for reaching what is in it."""
        fd = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for segment in segments:
                fd = _step(fd, segment, os.O_PATH)
            yield fd
        finally:
            os.close(fd)

    def open(self, segments: Sequence[str]) -> int:
        """A regular file, for reading."""
        with self.folder(segments[:-1]) as folder:
            # Without O_NONBLOCK a pipe would keep us waiting.
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                fd = os.open(segments[-1], flags, dir_fd=folder)
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise OSError(errno.EISDIR, "a symbolic link", segments[-1]) from None
                raise
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, fd)
            if stat.S_ISREG(os.fstat(fd).st_mode):
                stack.pop_all()
                return fd
        raise OSError(errno.EISDIR, "not a regular file", segments[-1])

    @contextlib.contextmanager
    def made_folder(self, segments: Sequence[str]) -> Iterator[int]:
        """The same, made where it is missing, each folder synced that got a new entry; it can be synced."""
        fd = self._make(segments)
        try:
            yield fd
        finally:
            os.close(fd)

    def _make(self, segments: Sequence[str]) -> int:
        for _attempt in range(_MADE_AGAIN):
            self._make_root(self.root)
            fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for segment in segments:
                    with contextlib.suppress(FileNotFoundError):
                        fd = _step(fd, segment, os.O_RDONLY)
                        continue
                    with contextlib.suppress(FileExistsError):  # somebody was faster
                        os.mkdir(segment, 0o700, dir_fd=fd)
                    os.fsync(fd)
                    fd = _step(fd, segment, os.O_RDONLY)
            except FileNotFoundError:  # a racing delete removed an emptied folder
                os.close(fd)
            except BaseException:
                os.close(fd)
                raise
            else:
                return fd
        raise OSError(errno.EAGAIN, "the folder is removed again and again", "/".join(segments))

    def _make_root(self, folder: Path) -> None:
        while not folder.is_dir():
            self._make_root(folder.parent)
            with contextlib.suppress(FileNotFoundError):  # a racing delete removed the parent
                try:
                    folder.mkdir(mode=0o700)
                except FileExistsError:
                    if not folder.is_dir():
                        raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(folder)) from None
                parent = os.open(folder.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    sync_folder(parent)
                finally:
                    os.close(parent)

    def set_aside(self, segments: Sequence[str], aside: Sequence[str]) -> bool:
        """Rename what is there, if it is no regular file, to a name that is free; whether it was."""
        with contextlib.ExitStack() as stack:
            try:
                folder = stack.enter_context(self.folder(segments[:-1]))
                mode = os.stat(segments[-1], dir_fd=folder, follow_symlinks=False).st_mode
            except (FileNotFoundError, NotADirectoryError):
                return False
            if stat.S_ISREG(mode):
                return False
            with self.made_folder(aside[:-1]) as target:
                os.rename(segments[-1], aside[-1], src_dir_fd=folder, dst_dir_fd=target)
                os.fsync(target)
            sync_folder(folder)
            return True

    def entries(self, segments: Sequence[str]) -> list[tuple[str, os.stat_result]]:
        """Files and folders in a folder, none for one that is not there; no links, no temporary names."""
        found = []
        try:
            with self.folder(segments) as folder:
                names = _names(folder)
                for name in names:
                    if not is_foreign(name):
                        with contextlib.suppress(FileNotFoundError):  # removed since the folder was read
                            found.append((name, os.stat(name, dir_fd=folder, follow_symlinks=False)))
        except (FileNotFoundError, NotADirectoryError):
            return []  # and what was found in a folder that went away meanwhile is gone, too
        return [(name, stats) for name, stats in found if not stat.S_ISLNK(stats.st_mode)]

    def walk_temps(self, segments: Sequence[str]) -> Iterator[tuple[int, str]]:
        """Each temporary file in a folder and those below it: an open folder and the name there."""
        with self.folder(segments) as folder:
            names = _names(folder)
            for name in names:
                if name.startswith(TEMP_PREFIX):
                    yield folder, name
        for name, stats in self.entries(segments):
            if stat.S_ISDIR(stats.st_mode):
                with contextlib.suppress(FileNotFoundError):  # removed since
                    yield from self.walk_temps([*segments, name])

    def remove_empty(self, segments: Sequence[str]) -> None:
        """Remove a folder and its parents, up to the first that still holds something, below the root."""
        with contextlib.suppress(OSError):
            for depth in range(len(segments), 0, -1):
                with self.folder(segments[: depth - 1]) as parent:
                    os.rmdir(segments[depth - 1], dir_fd=parent)


def is_foreign(name: str) -> bool:
    """Whether a name is no object's: an unfinished write, or what NFS keeps of a removed file."""
    return name.startswith(TEMP_PREFIX) or _SILLY_NAME.fullmatch(name) is not None


def sync_folder(folder: int) -> None:
    """Sync the names in an open folder."""
    with _readable(folder) as fd:
        os.fsync(fd)


def _names(folder: int) -> list[str]:
    with _readable(folder) as fd:
        return os.listdir(fd)  # noqa: PTH208  # a path would be walked anew


@contextlib.contextmanager
def _readable(folder: int) -> Iterator[int]:
    """The same folder, open for more than reaching what is in it."""
    fd = os.open(".", os.O_RDONLY | _FOLDER, dir_fd=folder)
    try:
        yield fd
    finally:
        os.close(fd)


def _step(folder: int, name: str, access: int) -> int:
    """Open the folder `name` in an open one and close that; it stays open where this fails."""
    try:
        fd = os.open(name, access | _FOLDER, dir_fd=folder)
    except NotADirectoryError:
        if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, "a symbolic link", name) from None
        raise
    os.close(folder)
    return fd
