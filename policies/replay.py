"""Replay a trace of requests against an eviction algorithm and count what it would have fetched."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from policies.checks import whole_array, whole_ids
from policies.eviction import Eviction, make

__all__ = ["Replay", "replay"]


@dataclass(frozen=True, slots=True)
class Replay:
    """What a trace cost. requests, misses: counts. bytes, miss_bytes: bytes asked for and bytes fetched."""

    requests: int
    misses: int
    bytes: int
    miss_bytes: int

    @property
    def hits(self) -> int:
        """Requests served from the cache."""
        return self.requests - self.misses

    @property
    def object_miss_ratio(self) -> float:
        """Misses for each request, in [0, 1]; 0 for an empty trace."""
        return self.misses / self.requests if self.requests else 0.0

    @property
    def byte_miss_ratio(self) -> float:
        """Bytes fetched for each byte asked for, in [0, 1]; 0 for an empty trace."""
        return self.miss_bytes / self.bytes if self.bytes else 0.0


def replay(
    name: str,
    ids: Sequence[int] | npt.NDArray[np.integer],
    sizes: int | Sequence[int] | npt.NDArray[np.integer],
    capacity_bytes: int,
) -> Replay:
    """Run the requests `ids` in turn through an empty cache of `capacity_bytes` and return the counts.

    ids: one int per request. sizes: bytes of each request, or one number for all. A hit counts the request's
    own bytes; the item keeps the size it was admitted with. Every request larger than the capacity is a miss.
    Raises ValueError for an unknown name, a capacity or size below 0, or as many sizes as there are not
    requests.
    """
    make(name, capacity_bytes, ())  # a wrong name is told first
    items: list[int] = whole_ids("ids", ids).tolist()
    each = whole_array("sizes", sizes, len(items))
    policy: Eviction[int] = make(name, capacity_bytes, items)
    misses, miss_bytes = policy.run(items, each.tolist())
    return Replay(len(items), misses, int(each.sum()), miss_bytes)
