"""Which lookaheads and capacities are worth considering: those where less stall costs more egress."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product

from policies.simulation.engine import Ints, Seconds, simulate_trace
from policies.simulation.models import CacheModel, TierModel
from policies.simulation.outcome import Outcome

__all__ = ["front", "pareto"]


def front(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return those that no other beats in both stall_seconds and fetched_bytes, by falling egress.

    Of outcomes that are equal in both, the one with the least capacity, then the least lookahead, is kept.
    """
    ranked = sorted(
        outcomes,
        key=lambda outcome: (
            outcome.stall_seconds,
            outcome.fetched_bytes,
            outcome.cache.capacity_bytes,
            outcome.lookahead_bytes,
        ),
    )
    kept: list[Outcome] = []
    for outcome in ranked:
        if not kept or outcome.fetched_bytes < kept[-1].fetched_bytes:
            kept.append(outcome)
    return kept


def pareto(
    ids: Ints,
    sizes: int | Ints,
    tier: TierModel,
    cache: CacheModel,
    *,
    capacities_bytes: Sequence[int],
    lookaheads_bytes: Sequence[int | None],
    policies: Sequence[str] | None = None,
    compute_seconds: Seconds = 0.0,
    arrival_seconds: Seconds | None = None,
) -> list[Outcome]:
    """Simulate every capacity with every lookahead, and every policy, and return the `front` of the
    outcomes.

    cache: what all have in common; policies: None means its own. The rest as for `simulate_trace`; each
    outcome tells its parameters in `cache`. Raises ValueError as `simulate_trace` does.
    """
    return front(
        simulate_trace(
            ids,
            sizes,
            tier,
            replace(cache, capacity_bytes=capacity_bytes, lookahead_bytes=lookahead_bytes, policy=policy),
            compute_seconds=compute_seconds,
            arrival_seconds=arrival_seconds,
        )
        for capacity_bytes, lookahead_bytes, policy in product(
            capacities_bytes, lookaheads_bytes, policies or [cache.policy]
        )
    )
