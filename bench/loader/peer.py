"""Loaders of `bench.peers`, each in a process of its own, as entrants of a comparison.

Invariant: one that fails or gives other rows than it was given is named among the skipped, with the reason,
and never stops the others.
"""

from __future__ import annotations

import importlib
import json
import os
import selectors
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from bench.peers import NAMES

ROOT: Final = Path(__file__).parent.parent.parent
DEADLINE_SECONDS: Final = 180.0
QUIET: Final = {"LITDATA_DISABLE_VERSION_CHECK": "1"}  # it would ask a registry
ENDING_SECONDS: Final = 10.0
SHARD_BYTES: Final = 64 << 20


class PeerError(RuntimeError):
    """A peer died, hung or gave wrong rows."""


class Peer:
    """A loader in a process group of its own, ended by `close`."""

    def __init__(
        self,
        name: str,
        python: str,
        rows: Path,
        folder: Path,
        batch: int,
        shard_bytes: int = SHARD_BYTES,
        *remote: object,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self._folder = name, folder
        folder.mkdir(parents=True, exist_ok=True)
        words = [python, "-m", "bench.peers", name, rows, folder, batch, shard_bytes, *remote]
        self._said = folder.with_suffix(".log").open("w+b")
        self.process = subprocess.Popen(
            list(map(str, words)),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**os.environ, **QUIET, **(env or {})},
            start_new_session=True,
        )

    def ready(self) -> None:
        """Wait until its rows are there."""
        if self._answer() != "ready":
            raise self._error("did not begin")

    def epoch(
        self, variant: str, *, copy: bool = False, digest: bool = False, seconds: float = DEADLINE_SECONDS
    ) -> dict[str, Any]:
        """What `bench.peers.__main__` says of one epoch."""
        self.ask(variant, copy=copy, digest=digest)
        found: dict[str, Any] = json.loads(self._answer(seconds))
        return found

    def ask(self, variant: str, *, copy: bool = False, digest: bool = False) -> None:
        """Begin an epoch."""
        request = json.dumps({"variant": variant, "copy": copy, "digest": digest})
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # its end is told when it is waited for
            self.process.stdin.write(f"{request}\n".encode())
            self.process.stdin.flush()

    def answered(self, seconds: float) -> dict[str, Any] | None:
        """The answer to `ask`, or None when there is none yet after so long."""
        if not self._readable(seconds):
            return None
        found: dict[str, Any] = json.loads(self._answer())
        return found

    def close(self) -> None:
        """End it with its workers, and remove what it stored."""
        assert self.process.stdin is not None
        shared = self._shared_memory()
        with suppress(BrokenPipeError):
            self.process.stdin.close()  # one that can ends by itself, and cleans up
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(ENDING_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for file in shared:
            file.unlink(missing_ok=True)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._said.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _shared_memory(self) -> set[Path]:
        """Files of shared memory that it has mapped, which nobody removes when it is killed."""
        with suppress(OSError):  # it ended
            lines = Path(f"/proc/{self.process.pid}/maps").read_text().splitlines()
            words = [line.split(maxsplit=5)[-1] for line in lines]
            return {Path(word) for word in words if word.startswith("/dev/shm/") and "(deleted)" not in word}
        return set()

    def _answer(self, seconds: float = DEADLINE_SECONDS) -> str:
        if not self._readable(seconds):
            raise self._error(f"said nothing in {seconds:.0f} s")
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._error("ended")
        return line.decode().strip()

    def _readable(self, seconds: float) -> bool:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            return bool(selector.select(seconds))

    def _error(self, what: str) -> PeerError:
        self._said.seek(0)
        words = self._said.read().decode(errors="replace").strip().splitlines()[-3:]
        return PeerError(f"{self.name} {what}: {' '.join(words)[-300:]}")


@contextmanager
def started(
    rows: Path, folder: Path, batch: int, names: Sequence[str] = NAMES
) -> Iterator[tuple[list[Peer], list[str]]]:
    """Those peers that an environment variable names a Python for, and what is said of the others."""
    peers, skipped = [], []
    try:
        for name in names:
            variable = f"BENCH_{name.upper()}"
            if python := os.environ.get(variable):
                peers.append(Peer(name, python, rows, folder / name, batch))
            else:
                skipped.append(f"{name}: {variable} names no python that has it")
        ready = []
        for peer in peers:
            try:
                peer.ready()
                ready.append(peer)
            except PeerError as error:
                skipped.append(str(error))
        yield ready, skipped
    finally:
        for peer in peers:
            peer.close()


def quality(name: str) -> str:
    """What the shuffle of a peer mixes."""
    said: str = importlib.import_module(f"bench.peers.{name}").QUALITY
    return said


def remote_variants(name: str) -> tuple[str, ...]:
    """The ways a peer is run on an object store."""
    found: tuple[str, ...] = importlib.import_module(f"bench.peers.{name}").REMOTE_VARIANTS
    return found


def variants(name: str) -> tuple[str, ...]:
    """The ways a peer is run; the fastest counts."""
    found: tuple[str, ...] = importlib.import_module(f"bench.peers.{name}").VARIANTS
    return found
