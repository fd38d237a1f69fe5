"""What the access logs of node caches say: when each shard was read last, and how often.

Invariant: of what no log names nothing is claimed but that it was not read since the logs began.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tiering.errors import FormatError
from tiering.traces import read_log


@dataclass(frozen=True, slots=True)
class Reads:
    """Reads by the digest of the shard: seconds since 1970 of the last one, and how many.

    since_seconds: from when on all logs are there; before, some node may have read what no line tells.
    """

    since_seconds: float
    last_seconds: dict[str, float]
    counts: dict[str, int]

    def last(self, digests: Iterable[str]) -> float:
        """When one of the shards was read last, or the logs began, whichever is later."""
        known = (self.last_seconds.get(digest, 0.0) for digest in digests)
        return max(self.since_seconds, max(known, default=0.0))

    def count(self, digests: Iterable[str]) -> int:
        """How often the most read of the shards was asked for: about once an epoch and node."""
        return max((self.counts.get(digest, 0) for digest in digests), default=0)


def read_logs(paths: Sequence[Path]) -> Reads | None:
    """What the logs say together; None where none are named.

    Raises:
        NotFound: a log is not there. FormatError: it is no access log, or has no line yet.
    """
    if not paths:
        return None
    since = 0.0
    last: dict[str, float] = {}
    counts: dict[str, int] = {}
    for path in paths:
        begun: float | None = None
        for time, digest, _ in read_log(path):
            begun = time if begun is None else min(begun, time)
            last[digest] = max(time, last.get(digest, time))
            counts[digest] = counts.get(digest, 0) + 1
        if begun is None:
            raise FormatError(
                f"access log {str(path)!r} has no line yet: nobody can tell what was read",
                hint="Let training run with NodeCache(access_log=...) first",
            )
        since = max(since, begun)
    return Reads(since, last, counts)
