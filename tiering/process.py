"""Who a process is, so that another can tell whether it still lives. Linux only.

Invariant: an identity is never reused: boot, pid namespace, pid and start time together name one process.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from tiering.errors import Unavailable

_THREADS_FIELD: Final = 17  # of /proc/PID/stat, counted after the command's closing bracket
_START_TIME_FIELD: Final = 19
_HIDDEN: Final = -1  # a process that /proc does not show to this user (mount option hidepid)


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process for all time."""

    machine: str
    """Boot and pid namespace: only there do the other two mean anything."""
    pid: int
    started: int

    def text(self) -> str:
        """A form for storing."""
        return f"{self.machine}/{self.pid}/{self.started}"

    @classmethod
    def parse(cls, text: str) -> ProcessId:
        """The opposite of `text`; raises ValueError."""
        machine, pid, started = text.rsplit("/", 2)
        return cls(machine, int(pid), int(started))

    def is_dead(self) -> bool:
        """Whether the process is known to have ended. False also where that cannot be known from here."""
        return self.machine == _machine() and _start_time(self.pid) not in (self.started, _HIDDEN)

    def is_alive(self) -> bool:
        """Whether the process is known to run. False also where that cannot be known from here."""
        return self.machine == _machine() and _start_time(self.pid) == self.started


def current() -> ProcessId:
    """This process.

    Raises:
        Unavailable: ``/proc`` cannot be read.
    """
    pid = os.getpid()
    started = _start_time(pid)
    if started is None or started == _HIDDEN:
        hint = "Mount it, or let this process open more files (ulimit -n)"
        raise Unavailable(f"/proc/{pid}/stat cannot be read", hint=hint)
    return ProcessId(_machine(), pid, started)


@lru_cache(maxsize=1)
def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino:x}"
    except OSError as error:
        raise Unavailable(f"/proc cannot be read: {error}", hint="Mount it") from error


def _start_time(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return _HIDDEN if _exists(pid) else None
    ended = fields[0] in b"ZX" and int(fields[_THREADS_FIELD]) <= 1  # else a thread is stuck in the kernel
    return None if ended else int(fields[_START_TIME_FIELD])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    except OverflowError:
        return False
    return True
