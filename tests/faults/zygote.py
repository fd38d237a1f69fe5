"""A process that imports the engine once and forks a child for every job; it can kill the child in mid-work.

Forking is safe here, and checked before each fork: this process has one thread and has not imported obstore,
whose runtime does not survive a fork. Run as a module it is that process; `Zygote` is the other end.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ONE_THREAD = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
DEADLINE_SECONDS = 60.0


@dataclass(frozen=True)
class Outcome:
    """How a child ended: `value` is what its job returned, None where it was killed."""

    value: Any
    killed: bool
    seconds: float
    error: str | None


class Zygote:
    """Runs jobs of the modules that `jobs` names, by their names, each in its own process."""

    def __init__(self) -> None:
        path = os.pathsep.join(filter(None, sys.path))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"],
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, job: str, *arguments: Any, kill_after_seconds: float | None = None) -> Outcome:
        """Run one job; with `kill_after_seconds` its process gets SIGKILL so long after its fork."""
        self.begin(job, *arguments, kill_after_seconds=kill_after_seconds)
        return self.finish()

    def begin(self, job: str, *arguments: Any, kill_after_seconds: float | None = None) -> None:
        """Start one job, which `finish` waits for; one at a time."""
        assert self._process.stdin
        print(json.dumps([job, arguments, kill_after_seconds]), file=self._process.stdin, flush=True)

    def finish(self) -> Outcome:
        """How the job that was begun has ended."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the zygote is gone"
        return Outcome(**json.loads(line))

    def value(self, job: str, *arguments: Any) -> Any:
        """What the job returns; an error of it fails the test."""
        outcome = self.run(job, *arguments)
        assert outcome.error is None, outcome.error
        assert not outcome.killed
        return outcome.value

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=DEADLINE_SECONDS)  # the end of its input ends it
        assert self._process.returncode == 0


def serve() -> None:
    """Answer jobs on standard input until it ends."""
    from tests.faults import jobs

    jobs.load()

    gc.disable()  # children share the pages of what was imported; a collection would copy them all
    for line in sys.stdin:
        job, arguments, kill_after_seconds = json.loads(line)
        assert len(list(Path("/proc/self/task").iterdir())) == 1, "forking with threads"
        assert "obstore" not in sys.modules, "forking with obstore"
        outcome = _fork(jobs.find(job), arguments, kill_after_seconds)
        sys.stdout.write(f"{json.dumps(outcome)}\n")
        sys.stdout.flush()


def _fork(job: Any, arguments: list[Any], kill_after_seconds: float | None) -> dict[str, Any]:
    started = time.monotonic()
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        os.close(read_end)
        _work(job, arguments, write_end)
    os.close(write_end)
    limit = DEADLINE_SECONDS if kill_after_seconds is None else kill_after_seconds
    try:
        with os.fdopen(read_end, "rb") as answer:
            poll = select.poll()
            handle = os.pidfd_open(child)
            poll.register(handle, select.POLLIN)
            ended = poll.poll(limit * 1000)
            os.close(handle)
            if not ended:
                os.kill(child, signal.SIGKILL)
            text = answer.read()  # ends with the child and all it forked
    finally:
        _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    told = json.loads(text) if text and not killed else {}
    error = told.get("error")
    if not killed and status:
        error = error or f"wait status {status}"
    if killed and kill_after_seconds is None and not ended:
        error = f"did not end in {limit} s"
    seconds = time.monotonic() - started
    return {"value": told.get("value"), "killed": killed, "seconds": seconds, "error": error}


def _work(job: Any, arguments: list[Any], write_end: int) -> None:
    """Do the job and leave without any of the interpreter's ceremonies."""
    try:
        told: dict[str, Any] = {"value": job(*arguments)}
    except BaseException:  # noqa: BLE001  # a child must not go on as the zygote
        told = {"error": traceback.format_exc()}
    with os.fdopen(write_end, "w") as answer:
        json.dump(told, answer)
    os._exit(0)


if __name__ == "__main__":
    serve()
