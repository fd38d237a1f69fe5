"""Shows how far work has got: a bar on a terminal and, where there is a cluster, its dashboard."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from distributed import Client
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from tiering.graph import LOST
from tiering.monitor import plugin
from tiering.monitor.stats import COUNTERS


class Tracker:
    """Counts bytes of one piece of work and tells whoever watches."""

    def __init__(self, name: str, total_bytes: int, client: Client | None, bar: Progress | None) -> None:
        self._name, self._total, self._client, self._bar = name, total_bytes, client, bar
        self._done = 0
        self._task = bar.add_task(name, total=total_bytes) if bar else None
        self.advance(0)

    def advance(self, nbytes: int) -> None:
        """Add bytes that are done."""
        self._done += nbytes
        COUNTERS.set_move(self._name, self._done, self._total)
        if self._client is not None and self._client.status == "running":
            with contextlib.suppress(*LOST):  # the work itself will say that the cluster is gone
                plugin.publish_move(self._client, self._name, self._done, self._total)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done)


@contextmanager
def track(name: str, total_bytes: int, client: Client | None, show: bool | None) -> Iterator[Tracker]:
    """A tracker for the block; `show` None means: a bar when standard error is a terminal."""
    if not (sys.stderr.isatty() if show is None else show):
        yield Tracker(name, total_bytes, client, None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        yield Tracker(name, total_bytes, client, bar)
