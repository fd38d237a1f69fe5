"""What a prefetcher tells: what to fetch, and what has happened so far."""

from dataclasses import dataclass
from typing import Generic, NamedTuple

from policies.eviction.base import Item

__all__ = ["Fetch", "PrefetchStats"]


class Fetch(NamedTuple, Generic[Item]):
    """An item to fetch now.

    victims: what leaves first. demand: the reader waits for it. kept: it goes into the cache; else it goes
    past it, to the reader alone, because there is no room for it.
    """

    item: Item
    nbytes: int
    victims: list[Item]
    demand: bool
    kept: bool


@dataclass(frozen=True, slots=True)
class PrefetchStats:
    """Counts so far.

    requests, requested_bytes: uses. waits: uses that had to wait, stall_seconds in all. fetches,
    fetched_bytes: begun and not failed. demand_fetches: begun when the reader waited already. failures:
    fetches that failed. fetch_seconds: from begin to end of those that ended, in all. wasted_bytes:
    prefetched and evicted before their use. written_bytes: fetched into the cache. used_bytes,
    peak_bytes: in the cache and in flight to it, now and at most. lookahead_bytes: now.
    """

    requests: int
    requested_bytes: int
    waits: int
    stall_seconds: float
    fetches: int
    fetched_bytes: int
    demand_fetches: int
    failures: int
    fetch_seconds: float
    wasted_bytes: int
    written_bytes: int
    used_bytes: int
    peak_bytes: int
    lookahead_bytes: int
