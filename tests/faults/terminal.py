"""Runs a command as a terminal does: in a session of its own, whose Ctrl-C reaches all its processes.

Standard input and error are a pseudo-terminal, standard output is a pipe. Whoever waits, waits for output or
for the end of a process, never for time to pass; every wait has a deadline.
"""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

DEADLINE_SECONDS = 180.0
_TAKE_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # else the end of this process kills who tidies up
signal.signal(signal.SIGINT, signal.SIG_DFL)  # also where the tests run in the background of a shell
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
_CTRL_C = b"\x03"

STARTED = "python process started"
_SAYS_SO = f"import sys; print({STARTED!r}, file=sys.stderr, flush=True)\n"
MAIN = "from tiering.cli.main import main; main()"


class Terminal:
    """A running command. `output` and `errors` hold what it wrote so far."""

    def __init__(
        self, command: Sequence[str | Path], folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._master, slave = pty.openpty()
        path = os.pathsep.join(filter(None, sys.path))
        variables = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "TERM": "dumb"}
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", _TAKE_TERMINAL, *map(str, command)],
            cwd=folder,
            env={**variables, **(environment or {})},
            stdin=slave,
            stdout=subprocess.PIPE,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        assert self.process.stdout
        self._output_fd = self.process.stdout.fileno()
        self._texts = {self._output_fd: b"", self._master: b""}
        self._open = set(self._texts)
        self._deadline = time.monotonic() + DEADLINE_SECONDS

    @property
    def output(self) -> str:
        return self._texts[self._output_fd].decode()

    @property
    def errors(self) -> str:
        return self._texts[self._master].decode().replace("\r\n", "\n")

    def wait_for(self, text: str, times: int = 1) -> None:
        """Read until `text` was written so often, on standard output or error."""
        while self.output.count(text) + self.errors.count(text) < times:
            assert self._read(), f"ended without {text!r}: {self}"

    def read_for(self, seconds: float, until: str) -> bool:
        """Read for some time at most; whether `until` was written."""
        stop = time.monotonic() + seconds
        while until not in self.output:
            if time.monotonic() >= stop or not self._read(stop):
                return False
        return True

    def press_ctrl_c(self) -> None:
        os.write(self._master, _CTRL_C)

    def end(self) -> int:
        """Read until all processes that could write have ended; gives the exit code of the command."""
        while self._read():
            pass
        code = self.process.wait(timeout=max(0.1, self._deadline - time.monotonic()))
        await_group(self.process.pid, self._deadline)
        return code

    def _read(self, stop: float | None = None) -> bool:
        """Read once, until `stop` at the latest; False when there will be nothing more."""
        now = time.monotonic()
        assert now < self._deadline, f"deadline passed: {self}"
        left = min(self._deadline, stop or self._deadline) - now
        for fd in select.select(self._open, [], [], max(0, left))[0]:
            try:
                piece = os.read(fd, 1 << 16)
            except OSError:  # how a terminal without processes says that it ended
                piece = b""
            self._texts[fd] += piece
            if not piece:
                self._open.discard(fd)
        return bool(self._open)

    def __str__(self) -> str:
        return f"exit code {self.process.poll()}\n--- output\n{self.output}\n--- errors\n{self.errors}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(DEADLINE_SECONDS)
        await_group(self.process.pid, time.monotonic() + DEADLINE_SECONDS)
        assert self.process.stdout
        self.process.stdout.close()
        os.close(self._master)


def group(number: int) -> list[int]:
    """Processes of a group that have not ended; those that only wait to be reaped have."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                state, _parent, owner = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(owner) == number and state not in "ZX":
                    found.append(int(entry.name))
    return found


def await_group(number: int, deadline: float) -> None:
    """Wait for the end of all processes of a group."""
    while members := group(number):
        for member in members:
            with contextlib.suppress(ProcessLookupError):
                handle = os.pidfd_open(member)
                try:
                    ended = select.select([handle], [], [], max(0, deadline - time.monotonic()))[0]
                finally:
                    os.close(handle)
                assert ended, f"process {member} is left: {Path(f'/proc/{member}/cmdline').read_bytes()!r}"


def announcing(folder: Path) -> dict[str, str]:
    """An environment in which every Python process says on standard error that it starts."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_SAYS_SO)
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}
