"""What a power cut may leave of a folder: records all changes of a job, then builds the disk as it was then.

`kill -9` keeps the page cache and so proves nothing about durability; here, what was not synced is lost. A
file keeps the bytes of its last sync. A folder keeps the changes of its names up to its last sync, in order,
and of the later ones none, all, or as many as a seed says.
"""

from __future__ import annotations

import fcntl
import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Change = dict[str, "File | Folder | None"]
"""New meaning of some names of one folder, at once; None takes a name away."""

RECORDED = ("open", "dup", "close", "write", "pwrite", "fsync", "fdatasync")
RECORDED += ("link", "rename", "unlink", "mkdir", "rmdir")
PAGE_BYTES = 4096
POLICIES = ("nothing more", "all names", "some names")


@dataclass(eq=False)
class File:
    volatile: bytearray = field(default_factory=bytearray)
    durable: bytes = b""


@dataclass(eq=False)
class Folder:
    changes: list[Change] = field(default_factory=list)
    synced: int = 0

    def names(self, changes: int) -> dict[str, File | Folder]:
        """Its entries after so many changes."""
        found: dict[str, File | Folder | None] = {}
        for change in self.changes[:changes]:
            found.update(change)
        return {name: node for name, node in found.items() if node is not None}

    @property
    def now(self) -> dict[str, File | Folder]:
        return self.names(len(self.changes))


class Recorder:
    """Replaces functions of `os`; `events` are the changes below `root`, each a function of a fresh model."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.events: list[Callable[[Model], None]] = []
        self.start = snapshot(root)
        self.direct_bytes = 0
        """What went past the page cache, which is no more durable than the rest before a sync."""
        self._paths: dict[int, str] = {}
        self._lock = threading.RLock()

    def install(self) -> None:
        for name in RECORDED:
            setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with self._lock:
                result = real(*args, **options)
                getattr(self, f"_{name}")(result, *args, **options)
                return result

        return call

    def _log(self, event: Callable[[Model], None]) -> None:
        self.events.append(event)

    def _below(self, path: Any, folder: int | None = None) -> str | None:
        """The key of a path, which may start at an open folder."""
        path = os.fspath(path)
        if folder is not None:
            base = self._paths.get(folder)
            return None if base is None else os.path.normpath(f"{base}/{path}")
        if path == str(self.root):
            return "."
        return os.path.relpath(path, self.root) if str(path).startswith(f"{self.root}/") else None

    def _open(self, fd: int, path: Any, flags: int, *_: Any, dir_fd: int | None = None) -> None:
        key = self._below(path, dir_fd)
        if key is None:
            return
        self._paths[fd] = key
        if flags & os.O_CREAT:
            node = File()
            self._log(lambda model: model.change(key, model.new(node)))

    def _dup(self, fd: int, of: int) -> None:
        if of in self._paths:
            self._paths[fd] = self._paths[of]

    def _close(self, _: None, fd: int) -> None:
        self._paths.pop(fd, None)

    def _write(self, count: int, fd: int, data: Any) -> None:
        if (key := self._paths.get(fd)) is not None:
            piece = bytes(memoryview(data)[:count])
            self._log(lambda model: model.put(key, piece, None))

    def _pwrite(self, count: int, fd: int, data: Any, offset: int) -> None:
        if (key := self._paths.get(fd)) is not None:
            piece = bytes(memoryview(data)[:count])
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
                self.direct_bytes += count
            self._log(lambda model: model.put(key, piece, offset))

    def _fsync(self, _: None, fd: int) -> None:
        if (key := self._paths.get(fd)) is not None:
            self._log(lambda model: model.sync(key))

    _fdatasync = _fsync

    def _link(
        self, _: None, old: Any, new: Any, *, src_dir_fd: int, dst_dir_fd: int, follow_symlinks: bool
    ) -> None:
        assert not follow_symlinks
        source, target = self._below(old, src_dir_fd), self._below(new, dst_dir_fd)
        assert source
        assert target
        self._log(lambda model: model.change(target, model.node(source)))

    def _rename(self, _: None, old: Any, new: Any, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        source, target = self._below(old, src_dir_fd), self._below(new, dst_dir_fd)
        assert source
        assert target
        self._log(lambda model: model.rename(source, target))

    def _unlink(self, _: None, path: Any, *__: Any, dir_fd: int | None = None) -> None:
        if key := self._below(path, dir_fd):
            self._log(lambda model: model.change(key, None))

    def _mkdir(self, _: None, path: Any, *__: Any, dir_fd: int | None = None) -> None:
        if key := self._below(path, dir_fd):
            node = Folder()
            self._log(lambda model: model.change(key, model.new(node)))

    _rmdir = _unlink


class Model:
    """The disk after some events."""

    def __init__(self, start: Folder, events: list[Callable[[Model], None]]) -> None:
        self._copies: dict[int, File | Folder] = {}
        self.root = self._copy(start)
        for event in events:
            event(self)

    def new(self, node: File | Folder) -> File | Folder:
        """This model's own copy of a node that an event makes."""
        return self._copies.setdefault(id(node), type(node)())

    def node(self, key: str) -> File | Folder:
        found: File | Folder = self.root
        for name in key.split("/") if key != "." else ():
            assert isinstance(found, Folder)
            found = found.now[name]
        return found

    def change(self, key: str, node: File | Folder | None) -> None:
        self._folder_of(key).changes.append({key.rpartition("/")[2]: node})

    def rename(self, old: str, new: str) -> None:
        assert old.rpartition("/")[0] == new.rpartition("/")[0], "only within a folder is a rename modelled"
        names: Change = {old.rpartition("/")[2]: None, new.rpartition("/")[2]: self.node(old)}
        self._folder_of(new).changes.append(names)

    def put(self, key: str, piece: bytes, offset: int | None) -> None:
        """Write a piece, at the end where no offset is given; a gap before it is zeros."""
        file = self.node(key)
        assert isinstance(file, File)
        begin = len(file.volatile) if offset is None else offset
        file.volatile.extend(bytes(max(0, begin - len(file.volatile))))
        file.volatile[begin : begin + len(piece)] = piece

    def sync(self, key: str) -> None:
        node = self.node(key)
        if isinstance(node, Folder):
            node.synced = len(node.changes)
        else:
            node.durable = bytes(node.volatile)

    def build(self, place: Path, policy: str, dice: random.Random, folder: Folder | None = None) -> None:
        """Write what is left after a power cut."""
        folder = folder or self.root
        place.mkdir()
        kept = {
            "nothing more": folder.synced,
            "all names": len(folder.changes),
            "some names": dice.randint(folder.synced, len(folder.changes)),
        }[policy]
        for name, node in folder.names(kept).items():
            if isinstance(node, Folder):
                self.build(place / name, policy, dice, node)
            else:
                (place / name).write_bytes(node.durable)

    def _folder_of(self, key: str) -> Folder:
        folder = self.node(key.rpartition("/")[0] or ".")
        assert isinstance(folder, Folder)
        return folder

    def _copy(self, folder: Folder) -> Folder:
        copied = Folder(synced=1)
        copied.changes.append(
            {
                name: self._copy(node) if isinstance(node, Folder) else File(node.volatile[:], node.durable)
                for name, node in folder.now.items()
            }
        )
        return copied


def snapshot(root: Path) -> Folder:
    """What lies below `root`, all of it durable."""
    entries: Change = {}
    for entry in root.iterdir():
        if entry.is_dir():
            entries[entry.name] = snapshot(entry)
        else:
            data = entry.read_bytes()
            entries[entry.name] = File(bytearray(data), data)
    return Folder([entries], 1)
