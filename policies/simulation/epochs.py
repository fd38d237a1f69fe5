"""Run an order's shards against an eviction policy: hits, bytes and money, before a byte is moved.

Hits are counted per shard: a rank asks for a shard once an epoch, when the first window needs it, and holds
it until its last row is used. What such a rank holds while it reads (the prefetch ring) is not part of
`capacity_bytes`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from policies.bounds import bound
from policies.checks import number, whole, whole_list
from policies.eviction import Eviction, make
from policies.order import Order
from policies.simulation.models import GB

__all__ = ["EpochCount", "Simulation", "simulate"]


@dataclass(frozen=True, slots=True)
class EpochCount:
    """One epoch of one rank.

    requests, hits: shards. bytes_requested, bytes_fetched: bytes of all requests and of the misses.
    bound: the largest hit ratio any policy could reach. cost: price of the bytes fetched, None without a
    price.
    """

    epoch: int
    requests: int
    hits: int
    bytes_requested: int
    bytes_fetched: int
    bound: float
    cost: float | None

    @property
    def hit_ratio(self) -> float:
        """Bytes not fetched for each byte asked for, in [0, 1]; 0 where nothing was asked for."""
        return 1 - self.bytes_fetched / self.bytes_requested if self.bytes_requested else 0.0


@dataclass(frozen=True, slots=True)
class Simulation:
    """The epochs of one rank, from an empty cache on."""

    policy: str
    capacity_bytes: int
    epochs: tuple[EpochCount, ...]

    @property
    def bytes_fetched(self) -> int:
        """Bytes fetched in all epochs."""
        return sum(epoch.bytes_fetched for epoch in self.epochs)

    @property
    def cost(self) -> float | None:
        """Price of all bytes fetched, None without a price."""
        costs = [epoch.cost for epoch in self.epochs if epoch.cost is not None]
        return sum(costs) if costs else None


def simulate(
    order: Order,
    shard_bytes: int | Sequence[int] | npt.NDArray[np.integer],
    capacity_bytes: int,
    *,
    policy: str = "pin",
    epochs: int = 3,
    world_size: int = 1,
    rank: int = 0,
    egress_price_per_gb: float | None = None,
) -> Simulation:
    """Return what one rank's cache of `capacity_bytes`, empty at first, does over epochs [0, epochs).

    shard_bytes: bytes of each shard, or one number for all. policy: a name in `policies.eviction.NAMES`.
    egress_price_per_gb: money for 10**9 bytes fetched, in any currency. Deterministic.
    Raises ValueError for an unknown policy, sizes below 0, a number of sizes that is not the number of
    shards, a world_size that does not divide the order's lanes, a rank outside [0, world_size), or a price
    below 0.
    """
    if egress_price_per_gb is not None:
        number("egress_price_per_gb", egress_price_per_gb, example=0.09)
    sizes = whole_list("shard_bytes", shard_bytes, len(order.shard_rows))
    lanes = order.rank_lanes(rank, world_size)
    foretold = [order.shards(n, lanes).tolist() for n in range(whole("epochs", epochs, least=1, example=3))]
    cache: Eviction[int] = make(policy, capacity_bytes, [shard for shards in foretold for shard in shards])
    counts = []
    for epoch, shards in enumerate(foretold):
        requested = fetched = hits = 0
        for shard in shards:
            nbytes = sizes[shard]
            requested += nbytes
            if cache.hit(shard):
                hits += 1
            else:
                fetched += nbytes
                cache.admit(shard, nbytes)
        counts.append(
            EpochCount(
                epoch=epoch,
                requests=len(shards),
                hits=hits,
                bytes_requested=requested,
                bytes_fetched=fetched,
                bound=bound(capacity_bytes, requested, epoch),
                cost=None if egress_price_per_gb is None else fetched / GB * egress_price_per_gb,
            )
        )
    return Simulation(policy, cache.capacity_bytes, tuple(counts))
