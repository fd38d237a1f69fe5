"""A progress bar around a loader: ``for batch in progress(loader): ...``.

Invariant: batches are those of the loader, and without a terminal nothing is written.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

from dask.utils import format_bytes
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from loaders.loader import Loader
from loaders.stats import LoaderStats

_REFRESH_SECONDS: Final = 0.2


def progress(loader: Loader, *, show: bool | None = None, console: Console | None = None) -> Iterator[Any]:
    """The batches of one epoch, with a bar that says how fast they come and from where.

    Args:
        loader: the loader.
        show: whether to draw; by default when standard error is a terminal.
        console: where to; by default standard error.
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield from loader
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = console or Console(stderr=True)
    with Progress(*columns, TextColumn("{task.fields[told]}"), console=console) as bar:
        task = bar.add_task("", total=len(loader), told="")
        drawn = -math.inf
        for batch in loader:
            stats, now = loader.stats, time.monotonic()
            passed = stats.passed_batches + stats.batches
            if now - drawn > _REFRESH_SECONDS or passed == len(loader):
                drawn = now
                told = summary(stats)
                bar.update(task, description=f"epoch {stats.epoch}", completed=passed, told=told)
            yield batch


def summary(stats: LoaderStats) -> str:
    """One line: rows a second, bytes from each tier, hit ratio, share of the time that was waited."""
    read = [f"{name} {format_bytes(nbytes)}" for name, nbytes in sorted(stats.bytes_read.items())]
    return ", ".join(
        [
            f"{stats.rows_per_second:,.0f} rows/s",
            *read,
            f"hits {stats.hit_ratio:.0%}",
            f"stalls {stats.stall_share:.0%}",
        ]
    )
