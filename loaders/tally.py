"""Tells the counters of the process, and so the dashboard, what a loop over a loader gets."""

from __future__ import annotations

from tiering.monitor.stats import COUNTERS


class Tally:
    """Counts what came since the batch before, from the running totals of one loop."""

    def __init__(self) -> None:
        self._seconds = self._stall_seconds = 0.0

    def add(self, rows: int, seconds: float, stall_seconds: float) -> None:
        """A batch of so many rows was handed out, so long after the loop began, stalls included."""
        spent, stalled = seconds - self._seconds, stall_seconds - self._stall_seconds
        self._seconds, self._stall_seconds = seconds, stall_seconds
        COUNTERS.add_loaded(rows, int(spent * 1e9), int(stalled * 1e9))
