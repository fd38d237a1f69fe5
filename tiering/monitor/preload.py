"""Scheduler preload: `dask scheduler --preload tiering.monitor.preload` serves the page from the start.

Invariant: only importing it as a preload, before the dashboard starts, lists the page for JupyterLab; the
rest is what `tiering.monitor.plugin.install` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distributed.dashboard.scheduler import applications

from tiering.monitor.dashboard import INDIVIDUAL, individual_document
from tiering.monitor.plugin import TieringSchedulerPlugin

if TYPE_CHECKING:
    from distributed import Scheduler

applications.setdefault(INDIVIDUAL, individual_document)


async def dask_setup(scheduler: Scheduler) -> None:
    """Register the scheduler plugin; Dask calls this when the scheduler has started."""
    await scheduler.register_scheduler_plugin(TieringSchedulerPlugin(), idempotent=True)
