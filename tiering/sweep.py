"""Simulates one trace with many caches, or many policies: in this process, or on Dask.

Invariant: results stand in the order of what was asked for and do not depend on where or in which order they
were computed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from dask.delayed import delayed
from distributed import Client

from policies.curves import Curve, curve, sampled_curve
from policies.simulation import CacheModel, Outcome, TierModel, simulate_trace
from policies.trace import Trace
from tiering.errors import Unavailable
from tiering.graph import LOST, choose_client, local_cluster, run_tasks

MANY_REQUESTS: Final = 5_000_000
"""Of all simulations together: beyond, worker processes start sooner than one process would be done."""

T = TypeVar("T")
Result = TypeVar("Result")


def sweep(
    trace: Trace,
    tier: TierModel,
    caches: Sequence[CacheModel],
    *,
    seconds_a_byte: float = 0.0,
    client: Client | None = None,
) -> list[Outcome]:
    """Simulate the trace once for each cache.

    Args:
        trace: the requests of one reader.
        tier: what it reads from.
        caches: what lies before it.
        seconds_a_byte: how long the reader computes on each byte before it asks for more.
        client: by default the current one; without any, a large sweep gets processes of its own.

    Raises:
        ValueError: a cache or tier that cannot be simulated. Unavailable: the Dask cluster is gone.
    """
    return _each(_simulate, trace, [(tier, cache, seconds_a_byte) for cache in caches], client)


def curves(
    trace: Trace,
    policies: Sequence[str],
    capacities_bytes: Sequence[int],
    *,
    sample: float | None = None,
    client: Client | None = None,
) -> list[Curve]:
    """The miss-ratio curve of each policy: exact, or from the share `sample` of the objects.

    Raises:
        ValueError: of `policies.curves`. Unavailable: the Dask cluster is gone.
    """
    return _each(_curve, trace, [(policy, capacities_bytes, sample) for policy in policies], client)


def _simulate(trace: Trace, tier: TierModel, cache: CacheModel, seconds_a_byte: float) -> Outcome:
    return simulate_trace(
        trace.ids,
        trace.sizes,
        tier,
        cache,
        compute_seconds=trace.sizes * seconds_a_byte,
        arrival_seconds=trace.times - trace.times[0],
    )


def _curve(trace: Trace, policy: str, capacities_bytes: Sequence[int], sample: float | None) -> Curve:
    if sample is None:
        return curve(policy, trace.ids, trace.sizes, capacities_bytes)
    return sampled_curve(policy, trace.ids, trace.sizes, capacities_bytes, rate=sample)


def _each(
    function: Callable[..., Result], trace: Trace, calls: Sequence[tuple[Any, ...]], client: Client | None
) -> list[Result]:
    """function(trace, *call) for each call."""
    with _workers(client, len(trace) * len(calls)) as chosen:
        if chosen is None:
            return [function(trace, *call) for call in calls]
        try:
            # Once, not with each task. Not by its hash: the same trace, just let go, may be on its way out.
            shared = chosen.scatter(trace, hash=False)
        except (*LOST, TimeoutError) as error:
            raise Unavailable(f"the Dask cluster takes no data: {error}", hint="Has it workers?") from error
        tasks = (delayed(_numbered)(n, function, shared, call) for n, call in enumerate(calls))
        found: dict[int, Result] = dict(run_tasks(tasks, chosen))
    return [found[number] for number in range(len(calls))]


def _numbered(
    number: int, function: Callable[..., Result], trace: Trace, call: tuple[Any, ...]
) -> tuple[int, Result]:
    return number, function(trace, *call)


@contextmanager
def _workers(client: Client | None, requests: int) -> Iterator[Client | None]:
    """The client to run on, or None for this thread: replays are pure Python, and threads would not help."""
    with choose_client(client, 0, ()) as chosen:
        if chosen is not None or requests <= MANY_REQUESTS or (os.cpu_count() or 1) < 2:
            yield chosen
            return
    with local_cluster(processes=True) as own:
        yield own
