"""What a bound on the hits of a trace costs beside replaying the clairvoyant, and how near it comes.

Traces are Zipf with items of one size, where Belady is the optimum. CPU seconds of one process, medians of
interleaved rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np

from policies import replay
from policies.bounds import most_hits

REQUESTS, ITEMS, SHARE, ROUNDS = 1_000_000, 50_000, 0.1, 3


def run() -> dict[str, object]:
    """Seconds for a million requests, their ratio to a replay, and the bound over the optimum."""
    ids = np.random.default_rng(7).zipf(1.1, REQUESTS) % ITEMS
    room = int(SHARE * ITEMS)
    ways: dict[str, Callable[[], int]] = {
        "belady": lambda: replay("belady", ids, 1, room).hits,
        "bound_without_rounds": lambda: most_hits(ids, 1, room, rounds=0),
        "bound_16_rounds": lambda: most_hits(ids, 1, room, rounds=16),
    }
    hits: dict[str, int] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            begun = time.process_time()
            hits[name] = way()
            seconds[name].append(time.process_time() - begun)
    return {
        "requests": REQUESTS,
        **{f"{name}_seconds": round(median(times), 2) for name, times in seconds.items()},
        "ratio_without_rounds": round(median(seconds["belady"]) / median(seconds["bound_without_rounds"]), 2),
        "ratio_16_rounds": round(median(seconds["belady"]) / median(seconds["bound_16_rounds"]), 2),
        "over_optimum_without_rounds": round(hits["bound_without_rounds"] / hits["belady"] - 1, 4),
        "over_optimum_16_rounds": round(hits["bound_16_rounds"] / hits["belady"] - 1, 4),
    }
