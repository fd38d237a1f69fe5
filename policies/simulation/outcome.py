"""What a simulation found."""

from dataclasses import dataclass

from policies.simulation.models import CacheModel, TierModel

__all__ = ["Outcome"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One reader's requests against one tier through one cache, empty at first.

    requests, requested_bytes: asked for. fetches, fetched_bytes: what went over the link (egress), of
    which demand_fetches began only when the reader waited. waits: requests that had to wait,
    stall_seconds in all and p99_stall_seconds at the 99th percentile of all requests. first_seconds:
    until the first request could be read. elapsed_seconds: until the last one was done. written_bytes:
    into the cache (wear). wasted_bytes: prefetched and evicted before use. peak_bytes: most in the cache
    and in flight to it. lookahead_bytes: at the end. cost: of all fetches. least_fetched_bytes: no policy
    with this capacity fetches fewer.
    """

    tier: TierModel
    cache: CacheModel
    requests: int
    requested_bytes: int
    fetches: int
    fetched_bytes: int
    demand_fetches: int
    waits: int
    stall_seconds: float
    p99_stall_seconds: float
    first_seconds: float
    elapsed_seconds: float
    written_bytes: int
    wasted_bytes: int
    peak_bytes: int
    lookahead_bytes: int
    cost: float
    least_fetched_bytes: int

    @property
    def events(self) -> int:
        """What was simulated: requests made, fetches begun, fetches arrived."""
        return self.requests + 2 * self.fetches

    @property
    def object_miss_ratio(self) -> float:
        """Fetches for each request; 0 where nothing was asked for."""
        return self.fetches / self.requests if self.requests else 0.0

    @property
    def byte_miss_ratio(self) -> float:
        """Bytes fetched for each byte asked for; 0 where nothing was asked for."""
        return self.fetched_bytes / self.requested_bytes if self.requested_bytes else 0.0

    @property
    def bound(self) -> float:
        """The smallest byte miss ratio that any policy with this capacity could reach, or less."""
        return self.least_fetched_bytes / self.requested_bytes if self.requested_bytes else 0.0

    @property
    def distance(self) -> float:
        """How far the byte miss ratio is above the bound."""
        return self.byte_miss_ratio - self.bound
