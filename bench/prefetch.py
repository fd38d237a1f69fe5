"""What lookahead buys and costs, and how fast the simulator is, in processor time of one core.

Lookahead: permutation epochs, room for half of the items, latency of 32 steps, 32 slots; stall and
fetches for each step, beside the figures of an independent model of the same (a lookahead there counts
the item being read, ours begins after it). Speed: events (requests made, fetches begun, fetches arrived)
a second of the whole simulation, bound included, medians of interleaved rounds; the peer in the same
rounds is `replay`, which has no time.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from statistics import median
from typing import Final, TypeVar

from policies import replay
from policies.simulation import CacheModel, Outcome, TierModel, simulate_trace

ITEMS: Final = 1000
LATENCY_STEPS: Final = 32
SPEED_EPOCHS: Final = 100
ROUNDS: Final = 5
GOAL_EVENTS_PER_SECOND: Final = 300_000
EXPECTED: Final = {"1 BDP": (0.025, 0.583), "2 BDP": (0.005, 0.583), "unbounded": (0.005, 0.817)}
AHEAD: Final = {"1 BDP": LATENCY_STEPS - 1, "2 BDP": 2 * LATENCY_STEPS - 1, "unbounded": 1 << 40}

Found = TypeVar("Found")


def run() -> dict[str, object]:
    """The figures of all three parts."""
    return {"lookahead": lookahead(), "adaptive": adaptive(), "speed": speed()}


def epochs(count: int) -> list[int]:
    """So many permutations of the items, one after the other."""
    dice = random.Random(7)
    return [item for _ in range(count) for item in dice.sample(range(ITEMS), ITEMS)]


def simulated(ids: list[int], policy: str, ahead: int, *, slots: int = 32, adapting: bool = False) -> Outcome:
    """One simulation: a step is a second, an item a byte."""
    tier = TierModel(float(LATENCY_STEPS), math.inf, slots=slots)
    cache = CacheModel(ITEMS // 2, policy, ahead, adapting, demand_slots=0)
    return simulate_trace(ids, 1, tier, cache, compute_seconds=1.0)


def lookahead() -> dict[str, object]:
    """Stall and fetches for each step, and what they should be."""
    found = {}
    for name, ahead in AHEAD.items():
        outcome = simulated(ids := epochs(6), "integrated", ahead)
        found[name] = {
            "stall": round(outcome.stall_seconds / len(ids), 4),
            "fetches": round(outcome.object_miss_ratio, 4),
            "expected": EXPECTED[name],
        }
    return found


def adaptive() -> dict[str, object]:
    """A lookahead that begins at a quarter of the bandwidth-delay product, fixed and adapting."""
    found = {}
    for name, adapting in (("fixed", False), ("adaptive", True)):
        outcome = simulated(ids := epochs(20), "integrated", LATENCY_STEPS // 4, adapting=adapting)
        found[name] = {
            "stall": round(outcome.stall_seconds / len(ids), 4),
            "fetches": round(outcome.object_miss_ratio, 4),
            "lookahead_at_the_end": outcome.lookahead_bytes,
        }
    return found


def speed() -> dict[str, object]:
    """Thousands of events a second for a few policies, and requests a second of the replay without time."""
    ids = epochs(SPEED_EPOCHS)
    policies = ("pin", "lru", "sieve", "wtinylfu", "belady", "integrated")
    seconds: dict[str, list[float]] = {}
    events: dict[str, int] = {}
    for _ in range(ROUNDS):
        for policy in policies:
            outcome = timed(
                seconds.setdefault(policy, []), lambda p=policy: simulated(ids, p, 2 * LATENCY_STEPS)
            )
            events[policy] = outcome.events
        timed(seconds.setdefault("replay of lru", []), lambda: replay("lru", ids, 1, ITEMS // 2))
    rates = {policy: events[policy] / median(seconds[policy]) for policy in policies}
    return {
        "requests": len(ids),
        "events_per_second": {policy: round(rate) for policy, rate in rates.items()},
        "ratio_to_goal": round(min(rates.values()) / GOAL_EVENTS_PER_SECOND, 2),
        "replay_of_lru_requests_per_second": round(len(ids) / median(seconds["replay of lru"])),
    }


def timed(seconds: list[float], work: Callable[[], Found]) -> Found:
    """Do the work and note its processor time."""
    begun = time.process_time()
    found = work()
    seconds.append(time.process_time() - begun)
    return found
