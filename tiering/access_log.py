"""The access log of a node cache: one line of JSON for each shard that training asked for.

Invariant: a line is written whole, by one append, whatever processes write at the same time; the log and its
predecessor stay within the limit, but for lines being written; an error is told once and stops the log, never
training. It names shards by digest: no key, tier, url or credential.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from pathlib import Path
from typing import Final

from tiering.sizes import parse_size

log = logging.getLogger("tiering.access_log")

LIMIT: Final = "128MiB"
"""Of the log and its predecessor together: about 900,000 requests."""


class AccessLog:
    """Appends to a file that the processes of a node share; nothing is kept open, for each line is one of a
    whole shard.

    Args:
        path: the file, on a local disk; made with its folder when it is not there. At half the limit it
            becomes ``<path>.1``, in place of the one before.
        limit: bytes of both files, or ``"128MiB"``.

    Raises:
        ConfigError: `limit` is no size.
    """

    def __init__(self, path: str | os.PathLike[str], limit: str | int = LIMIT) -> None:
        self.path = Path(path).expanduser().absolute()
        self.limit_bytes = parse_size(limit, "limit")
        self._sick = False

    @classmethod
    def of(cls, named: AccessLog | str | os.PathLike[str] | None) -> AccessLog | None:
        """The log itself, one in the file of that path, or none."""
        return named if named is None or isinstance(named, AccessLog) else cls(named)

    def add(self, digest: str, nbytes: int, *, hit: bool) -> None:
        """Write that a shard was asked for, now, and whether the cache had it."""
        if self._sick:
            return
        record = {"time": round(time.time(), 6), "digest": digest, "bytes": nbytes, "hit": hit}
        try:
            self._append(json.dumps(record).encode() + b"\n")
        except (OSError, ValueError) as error:  # ValueError: of a path with a NUL byte
            self._sick = True
            log.warning("no more requests are written to %s: %s", self.path, error)

    def _append(self, line: bytes) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for may_retire in (True, False):
            fd = self._open()
            try:
                full = os.fstat(fd).st_size + len(line) > self.limit_bytes // 2
                if may_retire and full and self._retire(fd):
                    continue
                if os.write(fd, line) != len(line):
                    raise OSError("the disk took a part of a line")
                return
            finally:
                os.close(fd)

    def _open(self) -> int:
        # Not to wait is for who named a pipe that nobody reads.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(self.path, flags, 0o600)

    def _retire(self, fd: int) -> bool:
        """Put the full file aside, once for all processes; whether it was, by whomever."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until it is closed
        except BlockingIOError:
            return False
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), self.path.stat()):
                self.path.replace(previous_log(self.path))
        return True


def previous_log(path: Path) -> Path:
    """Where the lines before those in `path` are."""
    return path.with_name(f"{path.name}.1")
