"""Processes that transform batches, for transforms that hold the interpreter's lock.

Invariant: no process outlives the pool, and none the process that made it, however it ends. A process that
dies is an error, never a wait without end.

Batches go by shared memory: 1 MiB there and back takes 0.45 ms, by pipe 1.6 ms (two cores, spawn).
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from multiprocessing.spawn import get_preparation_data
from typing import Any, Final

from loaders import transform_worker
from loaders.transform_worker import Slab, Transform
from tiering.errors import Unavailable, UsageError

_END_SECONDS: Final = 5.0
_SLABS: Final = 4
_OF_MAIN: Final = ("init_main_from_name", "init_main_from_path")


class WorkerTraceback(Exception):
    """The cause of an error that was raised in a process: its traceback there, as text."""


class ProcessPool:
    """Processes, each of which has at most two batches at a time: batch n goes to process ``n % count``.

    Args:
        transform: picklable.
        per_row: whether it is called for each row.
        count: how many processes.

    Raises:
        UsageError: the transform cannot be pickled.
    """

    def __init__(self, transform: Transform, per_row: bool, count: int) -> None:
        start = pickle.dumps((_preparation(pickled := pickled_transform(transform)), pickled, per_row))
        self._owner = os.getpid()
        self._workers: list[_Worker] = []
        self._put = self._got = 0
        try:
            for _ in range(count):
                self._workers.append(_Worker(start))
        except BaseException:
            self.close()
            raise

    def submit(self, batch: Any) -> int:
        """Have a batch transformed; returns its number.

        Raises:
            Unavailable: its process has died.
        """
        number, self._put = self._put, self._put + 1
        self._workers[number % len(self._workers)].put(number // len(self._workers), batch)
        return number

    def is_done(self, number: int) -> bool:
        """Whether a batch can be had without waiting."""
        return self._workers[number % len(self._workers)].channel.poll()

    def result(self, number: int) -> Any:
        """What became of a batch, in the order in which they were submitted.

        Raises:
            Unavailable: its process has died. Or whatever the transform raised.
        """
        return self._workers[number % len(self._workers)].get(number // len(self._workers))

    def close(self) -> None:
        """End the processes. Idempotent; in a forked child it only lets go of them."""
        for worker in self._workers:
            worker.close(ours=self._owner == os.getpid())
        self._workers = []


class _Worker:
    """One process."""

    def __init__(self, start: bytes) -> None:
        ours, theirs = socket.socketpair()
        self.channel = Connection(ours.detach())
        self._slabs: list[Slab] = []
        with theirs:
            try:
                self._slabs += (Slab(os.memfd_create("batch")) for _ in range(_SLABS))
                fds = [theirs.fileno(), *(slab.fd for slab in self._slabs)]
                words = [theirs.fileno(), os.getpid(), *fds[1:]]
                self._process = subprocess.Popen(
                    [sys.executable, "-P", transform_worker.__file__, *map(str, words)],
                    pass_fds=fds,
                    stdin=subprocess.DEVNULL,
                )
            except BaseException:
                self._let_go()
                raise
        try:
            self._send(start)
        except BaseException:
            self.close(ours=True)
            raise

    def put(self, turn: int, batch: Any) -> None:
        """Send the batch of that turn."""
        self._send(b"%d" % self._slabs[turn % 2 * 2].put(batch))

    def get(self, turn: int) -> Any:
        """Receive what became of it."""
        try:
            good, index_bytes = map(int, self.channel.recv_bytes().split())
        except (EOFError, ConnectionError) as error:
            raise self._died() from error
        result = self._slabs[turn % 2 * 2 + 1].get(index_bytes, copy=True)
        if good:
            return result
        text, pickled = result
        # S301: from our own process.
        raised = RuntimeError(text.splitlines()[-1]) if pickled is None else pickle.loads(pickled)  # noqa: S301
        raise raised from WorkerTraceback(f"\n{text}")

    def close(self, *, ours: bool) -> None:
        """End it, if it is ours."""
        self.channel.close()
        if ours:
            self._process.terminate()
            try:
                self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        else:
            self._process.returncode = 0  # for Popen, which would look for a child of this process
        for slab in self._slabs:
            os.close(slab.fd)
        self._slabs = []

    def _send(self, message: bytes) -> None:
        try:
            self.channel.send_bytes(message)
        except ConnectionError as error:
            raise self._died() from error

    def _died(self) -> Unavailable:
        try:
            code: int | None = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        return Unavailable(
            f"process {self._process.pid}, which transforms batches, {how}",
            hint="Was memory short? Begin the loop again: it goes on where load_state_dict says",
        )

    def _let_go(self) -> None:
        self.channel.close()
        for slab in self._slabs:
            os.close(slab.fd)


def pickled_transform(transform: Transform) -> bytes:
    """A transform as it goes to processes.

    Raises:
        UsageError: it cannot be pickled.
    """
    try:
        return pickle.dumps(transform)
    except Exception as error:
        raise UsageError(
            f"transform = {transform!r:.80} cannot be sent to processes: {error}",
            hint="Define it at the top of a module, or use worker='thread'",
        ) from error


def _preparation(pickled: bytes) -> dict[str, Any]:
    """What a process needs to know; the main module only where the transform is from there."""
    left_out = {"authkey"} if b"__main__" in pickled else {"authkey", *_OF_MAIN}
    data = get_preparation_data("tiering-transform")
    return {name: value for name, value in data.items() if name not in left_out}
