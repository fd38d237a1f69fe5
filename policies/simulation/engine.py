"""The replay with time: one reader makes its requests in turn, and fetches arrive while it computes.

Invariant: time never goes back, and a fetch begins at the first moment at which the prefetcher allows it:
at a request, or at an arrival. As latency is one and the link serves fetches in the order in which they
began, they arrive in that order, and a queue holds all that is to come.
"""

import math
from collections import deque
from collections.abc import Sequence
from itertools import pairwise, repeat

import numpy as np
import numpy.typing as npt

from policies.bounds import least_fetched_bytes
from policies.checks import whole, whole_ids, whole_list
from policies.eviction import make
from policies.order import Order
from policies.prefetch import Integrated, Lookahead, Prefetcher, Ring, bandwidth_delay_bytes
from policies.simulation.models import CacheModel, TierModel
from policies.simulation.outcome import Outcome

__all__ = ["simulate_order", "simulate_trace"]

Ints = Sequence[int] | npt.NDArray[np.integer]
Seconds = float | Sequence[float] | npt.NDArray[np.floating]


def simulate_order(
    order: Order,
    shard_bytes: int | Ints,
    tier: TierModel,
    cache: CacheModel,
    *,
    epochs: int = 3,
    world_size: int = 1,
    rank: int = 0,
    compute_seconds: Seconds = 0.0,
) -> Outcome:
    """Return what one rank's shards in epochs [0, epochs) cost, each asked for once an epoch.

    shard_bytes, compute_seconds: of each shard, or one number for all; seconds are what the reader takes
    for the shard before it asks for the next one. Deterministic. Raises ValueError as `simulate_trace`
    and `policies.simulation.epochs` do.
    """
    shards = len(order.shard_rows)
    sizes = np.array(whole_list("shard_bytes", shard_bytes, shards), dtype=np.int64)
    seconds = np.array(_seconds("compute_seconds", compute_seconds, shards), dtype=np.float64)
    lanes = order.rank_lanes(rank, world_size)
    numbers = range(whole("epochs", epochs, least=1, example=3))
    ids = np.concatenate([order.shards(epoch, lanes) for epoch in numbers])
    return simulate_trace(ids, sizes[ids], tier, cache, compute_seconds=seconds[ids])


def simulate_trace(
    ids: Ints,
    sizes: int | Ints,
    tier: TierModel,
    cache: CacheModel,
    *,
    compute_seconds: Seconds = 0.0,
    arrival_seconds: Seconds | None = None,
) -> Outcome:
    """Return what the requests `ids`, made in turn, cost from an empty cache on.

    ids: one int a request. sizes: bytes of each request, or one number for all; for "integrated" an item
    has its largest. compute_seconds: what the reader takes for each before it makes the next one.
    arrival_seconds: before which it does not make each request, never falling. Deterministic; time O(log n)
    a request. Raises ValueError for anything else.
    """
    requested = whole_ids("ids", ids)
    items: list[int] = requested.tolist()
    nbytes = whole_list("sizes", sizes, len(items))
    compute = _seconds("compute_seconds", compute_seconds, len(items))
    arrivals = None
    if arrival_seconds is not None:
        arrivals = _seconds("arrival_seconds", arrival_seconds, len(items))
        if any(later < earlier for earlier, later in pairwise(arrivals)):
            raise ValueError("arrival_seconds must never fall; e.g. arrival_seconds=[0.0, 0.5, 0.5]")
    prefetcher = _prefetcher(items, nbytes, tier, cache)
    stalls, first, elapsed = _run(prefetcher, items, compute, arrivals, tier)
    stats = prefetcher.stats
    return Outcome(
        tier=tier,
        cache=cache,
        requests=stats.requests,
        requested_bytes=sum(nbytes),
        fetches=stats.fetches,
        fetched_bytes=stats.fetched_bytes,
        demand_fetches=stats.demand_fetches,
        waits=stats.waits,
        stall_seconds=stats.stall_seconds,
        p99_stall_seconds=_percentile(stalls, len(items), 0.99),
        first_seconds=first,
        elapsed_seconds=elapsed,
        written_bytes=stats.written_bytes,
        wasted_bytes=stats.wasted_bytes,
        peak_bytes=stats.peak_bytes,
        lookahead_bytes=stats.lookahead_bytes,
        cost=tier.cost(stats.fetches, stats.fetched_bytes),
        least_fetched_bytes=least_fetched_bytes(requested, nbytes, cache.capacity_bytes),
    )


def _prefetcher(items: list[int], sizes: list[int], tier: TierModel, cache: CacheModel) -> Prefetcher[int]:
    ahead = cache.lookahead_bytes
    if ahead is None:
        mean_bytes = sum(sizes) // len(sizes) if sizes else 0
        if math.isinf(tier.bandwidth_bytes_per_second):  # then only the cache bounds what helps
            ahead = cache.capacity_bytes
        else:
            ahead = 2 * bandwidth_delay_bytes(
                tier.latency_seconds, tier.bandwidth_bytes_per_second, mean_bytes
            )
    lookahead = Lookahead(ahead, most_bytes=max(ahead, cache.capacity_bytes)) if cache.adaptive else ahead
    if cache.policy == Integrated.name:
        largest: dict[int, int] = {}
        for item, nbytes in zip(items, sizes, strict=True):
            largest[item] = max(nbytes, largest.get(item, 0))
        return Integrated(
            items,
            [largest[item] for item in items],
            cache.capacity_bytes,
            slots=tier.slots,
            lookahead=lookahead,
            demand_slots=cache.demand_slots,
        )
    return Ring(
        items,
        sizes,
        make(cache.policy, cache.capacity_bytes, items),
        slots=tier.slots,
        lookahead=lookahead,
        demand_slots=cache.demand_slots,
    )


def _run(
    prefetcher: Prefetcher[int],
    items: list[int],
    compute: list[float],
    arrivals: list[float] | None,
    tier: TierModel,
) -> tuple[list[float], float, float]:
    """Return the stalls above 0, after how many seconds the first request could be read and all was done."""
    use, start, arrived = prefetcher.use, prefetcher.start, prefetcher.arrived
    latency, second_a_byte = tier.latency_seconds, 1 / tier.bandwidth_bytes_per_second
    coming: deque[tuple[float, int]] = deque()
    stalls: list[float] = []
    now = begun = arrivals[0] if arrivals else 0.0
    link_free = first = 0.0

    def begin(at: float) -> None:
        nonlocal link_free
        for fetch in start(at):
            link_free = max(at + latency, link_free) + fetch.nbytes * second_a_byte
            coming.append((link_free, fetch.item))

    for number, item in enumerate(items):
        if arrivals is not None and arrivals[number] > now:
            now = arrivals[number]
        while coming and coming[0][0] <= now:
            at, come = coming.popleft()
            arrived(come, at)
            if at < now:
                begin(at)
        if not use(item, now):
            asked = now
            begin(now)
            while True:
                now, come = coming.popleft()
                arrived(come, now)
                if use(item, now):
                    break
                begin(now)
            stalls.append(now - asked)
        begin(now)
        if not number:
            first = now - begun
        now += compute[number]
    return stalls, first, now - begun


def _percentile(stalls: list[float], requests: int, share: float) -> float:
    """Return the stall that `share` of all requests do not exceed; those not in `stalls` had none."""
    rank = math.ceil(share * requests) - 1 - (requests - len(stalls))
    return sorted(stalls)[rank] if rank >= 0 and stalls else 0.0


def _seconds(name: str, values: Seconds, count: int) -> list[float]:
    array = np.asarray(values, dtype=np.float64)
    if array.shape not in ((), (count,)):
        raise ValueError(
            f"{name} must be one number or {count}, not of shape {array.shape}; e.g. {name}=0.05"
        )
    if array.size and not (array.min() >= 0 and np.isfinite(array).all()):
        raise ValueError(f"{name} must be at least 0 and finite, not {array.min()}; e.g. {name}=0.05")
    if array.shape == ():
        return list(repeat(float(array), count))
    seconds: list[float] = array.tolist()
    return seconds
