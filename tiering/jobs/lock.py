"""One run of a job file at a time, on one machine.

Invariant: the lock is the kernel's, on the job file itself: it ends with its process and leaves nothing.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tiering.errors import Locked, NotFound, UsageError


@contextmanager
def job_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a job file while the block runs.

    Raises:
        Locked: another process runs it. NotFound: there is no such file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"no file {str(path)!r}", hint="Give the path of a job file") from None
    except OSError as error:
        text = f"{str(path)!r} cannot be opened: {error.strerror or error}"
        raise UsageError(text, hint="Give the path of a job file") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            hint = "Wait until it has ended"
            raise Locked(f"another process runs the jobs of {str(path)!r}", hint=hint) from None
        yield
    finally:
        os.close(fd)
