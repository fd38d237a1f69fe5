"""Runs one loader, in its own environment.

``python -m bench.peers NAME ROWS FOLDER BATCH SHARD_BYTES [upload | URL ENDPOINT CACHE CACHE_BYTES]`` prints
``ready`` once the rows are there in the loader's own format (with URL they already are). Then it runs an
epoch for each line, ``{"variant": "2 workers", "copy": true, "digest": false}``, and prints what it took.
With `copy`, each batch is copied once into one buffer, as a transfer to a device would; with `digest`, it
says which rows came.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.peers.rows import Rows, Seen
from bench.peers.task import Epochs, Task


def main() -> None:
    """Prepare, then run an epoch for each line of the standard input."""
    name, rows, folder, batch, shard_bytes, *remote = sys.argv[1:]
    module = importlib.import_module(f"bench.peers.{name}")
    task = Task(Rows(Path(rows)), Path(folder), int(batch), int(shard_bytes))
    answers = os.fdopen(os.dup(1), "w", buffering=1)  # loaders print on standard output, also from C
    os.dup2(2, 1)
    if len(remote) > 1:
        url, endpoint, cache, cache_bytes = remote
        there = {"remote": url, "endpoint": endpoint, "cache": Path(cache), "cache_bytes": int(cache_bytes)}
        task = replace(task, uploaded=True, **there)
    else:
        module.prepare(replace(task, uploaded=bool(remote)))
    getattr(module, "load", lambda: importlib.import_module(name))()  # the loader itself, which takes seconds
    print("ready", file=answers)
    opened: dict[str, Epochs] = {}
    for line in sys.stdin:
        request = json.loads(line)
        begun, variant = time.perf_counter(), request["variant"]
        if variant not in opened:
            opened[variant] = module.epochs(replace(task, variant=variant))
        opening = time.perf_counter() - begun
        if getattr(module, "READS_AHEAD", False) and not request["digest"]:
            for _ in opened[variant]():  # else it begins with what it read while others had their turn
                pass
        answer = epoch(opened[variant], task, request["copy"], request["digest"])
        print(json.dumps({**answer, "opening_seconds": opening}), file=answers)
    opened.clear()  # ends workers while the interpreter is whole


def epoch(epochs: Epochs, task: Task, copy: bool, digest: bool) -> dict[str, object]:
    """Run one epoch: rows, seconds by the clock, to the first batch and of all processors, and the digest."""
    seen, rows, first = Seen(), 0, None
    buffer = np.empty((task.batch, *task.rows.shape), task.rows.dtype)
    cpu, begun = cpu_seconds(), time.perf_counter()
    for batch in epochs():
        if first is None:
            first = time.perf_counter() - begun
        rows += len(batch)
        if copy:
            np.copyto(buffer[: len(batch)], np.asarray(batch))
        if digest:
            seen.add(np.asarray(batch))
    return {
        "rows": rows,
        "seconds": time.perf_counter() - begun,
        "first_seconds": first,
        "cpu_seconds": cpu_seconds() - cpu,
        "digest": seen.digest(),
    }


def cpu_seconds() -> float:
    """Of this process and of its children, those that live too."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime + _living(os.getpid())


def _living(parent: int) -> float:
    seconds = 0.0
    for listed in Path(f"/proc/{parent}/task").glob("*/children"):
        for child in listed.read_text().split():
            with suppress(OSError):  # it ended meanwhile
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                ticks = sum(map(int, fields[11:15]))  # its own, and of its children that ended
                seconds += ticks / os.sysconf("SC_CLK_TCK") + _living(int(child))
    return seconds


if __name__ == "__main__":
    main()
