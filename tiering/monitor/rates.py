"""Rates from running totals: bytes and rows per second, and a history of them for plots.

Invariant: no clock in here. Time is passed in, in seconds, so the same model runs in tests and in production.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from tiering.monitor.stats import Snapshot

Key = TypeVar("Key", bound=Hashable)


class RateModel(Generic[Key]):
    """Turns successive running totals into rates, averaged over the last `span_seconds`.

    The span smooths over heartbeats, which arrive in bursts of their own rhythm.
    """

    def __init__(self, span_seconds: float = 5.0) -> None:
        self._span_seconds = span_seconds
        self._seen: deque[tuple[float, dict[Key, float]]] = deque()

    def observe(self, now_seconds: float, totals: Mapping[Key, float]) -> dict[Key, float]:
        """Return growth per second of every total since the oldest observation in the span.

        A key not seen before counts from zero. Empty at the first observation, and after a clock or a total
        that went backwards: the model then starts afresh.
        """
        current = dict(totals)
        if self._seen:
            last_seconds, last = self._seen[-1]
            shrunk = any(current.get(key, 0) < value for key, value in last.items())
            if now_seconds <= last_seconds or shrunk:
                self._seen.clear()
        self._seen.append((now_seconds, current))
        while len(self._seen) > 2 and self._seen[1][0] <= now_seconds - self._span_seconds:
            self._seen.popleft()
        then_seconds, then = self._seen[0]
        elapsed_seconds = now_seconds - then_seconds
        if elapsed_seconds <= 0:
            return {}
        return {key: (value - then.get(key, 0)) / elapsed_seconds for key, value in current.items()}


@dataclass(frozen=True, slots=True)
class Point:
    """Rates at one moment.

    Attributes:
        seconds: when, on the clock that was passed in.
        bytes_per_second: by (tier, direction).
        hit_ratio: of cache requests within the span, 0 to 1; None when there were none.
        rows_per_second: that all loaders handed out; None when they handed out none.
        stall_share: of the time of loops over loaders, what they waited for bytes, 0 to 1; None without any.
    """

    seconds: float
    bytes_per_second: dict[tuple[str, str], float]
    hit_ratio: float | None
    rows_per_second: float | None = None
    stall_share: float | None = None


class History:
    """The last `length` points of a cluster."""

    def __init__(self, length: int = 300, span_seconds: float = 5.0) -> None:
        self.points: deque[Point] = deque(maxlen=length)
        self._moved: RateModel[tuple[str, str]] = RateModel(span_seconds)
        self._cache: RateModel[str] = RateModel(span_seconds)
        self._loaded: RateModel[str] = RateModel(span_seconds)

    def observe(self, now_seconds: float, total: Snapshot) -> Point:
        """Add and return the point of that moment."""
        moved = self._moved.observe(
            now_seconds,
            {
                (tier, direction): nbytes
                for tier, counts in total["moved"].items()
                for direction, nbytes in (("read", counts["read"]), ("write", counts["write"]))
            },
        )
        cache = self._cache.observe(
            now_seconds, {"hits": total["cache"]["hits"], "misses": total["cache"]["misses"]}
        )
        requests = sum(cache.values())
        loaded = self._loaded.observe(
            now_seconds,
            {name: total["loaded"][name] for name in ("rows", "nanoseconds", "stall_nanoseconds")},
        )
        spent = loaded.get("nanoseconds")
        point = Point(
            now_seconds,
            moved,
            hit_ratio=cache["hits"] / requests if requests else None,
            rows_per_second=loaded.get("rows") or None,
            stall_share=min(1.0, loaded["stall_nanoseconds"] / spent) if spent else None,
        )
        self.points.append(point)
        return point
