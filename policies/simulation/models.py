"""What a simulation is told of the tier that is read and of the cache before it."""

from dataclasses import dataclass
from typing import Final

from policies.checks import number, one_of, whole
from policies.eviction import NAMES
from policies.prefetch import Integrated

__all__ = ["GB", "POLICIES", "CacheModel", "TierModel"]

POLICIES: Final = (*NAMES, Integrated.name)
"""Names for `CacheModel.policy`."""

GB: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class TierModel:
    """A tier: a fetch of n bytes waits for a slot, then `latency_seconds`, then for its bytes on one link.

    The fetches in flight share `bandwidth_bytes_per_second` (may be infinite), one after the other, in
    the order in which they began. slots: fetches in flight at most. request_price: money for a fetch.
    egress_price_per_gb: money for 10**9 bytes, in the same currency. Raises ValueError for anything below
    0, a bandwidth of 0 or no slot.
    """

    latency_seconds: float
    bandwidth_bytes_per_second: float
    slots: int = 8
    request_price: float = 0.0
    egress_price_per_gb: float = 0.0

    def __post_init__(self) -> None:
        number("latency_seconds", self.latency_seconds, example=0.03)
        number("request_price", self.request_price, example=4e-7)
        number("egress_price_per_gb", self.egress_price_per_gb, example=0.09)
        if not self.bandwidth_bytes_per_second > 0:
            raise ValueError(
                "bandwidth_bytes_per_second must be above 0, not "
                f"{self.bandwidth_bytes_per_second}; e.g. bandwidth_bytes_per_second=1e9"
            )
        whole("slots", self.slots, least=1, example=8)

    def cost(self, requests: int, nbytes: int) -> float:
        """Return the price of so many requests for so many bytes together."""
        return requests * self.request_price + nbytes / GB * self.egress_price_per_gb


@dataclass(frozen=True, slots=True)
class CacheModel:
    """A cache of `capacity_bytes` for what is kept, fetched ahead and in flight.

    policy: a name in `POLICIES`; "integrated" decides prefetch and eviction together
    (`policies.prefetch.Integrated`), the others have a ring beside them (`policies.prefetch.Ring`).
    lookahead_bytes: how much of the order from the next request on is fetched ahead; 0 is demand alone,
    all that can be done where the future is not known; None is twice the bandwidth-delay product.
    adaptive: let the lookahead adapt. demand_slots: slots kept for what the reader waits for; None is an
    eighth. Raises ValueError for anything else.
    """

    capacity_bytes: int
    policy: str = "pin"
    lookahead_bytes: int | None = None
    adaptive: bool = False
    demand_slots: int | None = None

    def __post_init__(self) -> None:
        whole("capacity_bytes", self.capacity_bytes, least=0, example=500_000_000_000)
        one_of("policy", self.policy, POLICIES, example="pin")
        if self.lookahead_bytes is not None:
            whole("lookahead_bytes", self.lookahead_bytes, least=0, example=134_217_728)
        if self.demand_slots is not None:
            whole("demand_slots", self.demand_slots, least=0, example=1)
