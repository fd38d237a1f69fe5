"""Miss-ratio curves of a million Zipf requests: one pass against one replay, a sample against the truth."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from policies import replay
from policies.curves import curve, sampled_curve

REQUESTS, OBJECTS, SIZES, ROUNDS, RATE = 1_000_000, 200_000, 64, 3, 0.02


def run() -> dict[str, Any]:
    """Medians of CPU seconds, taken in turns; the errors of the sample are the largest of its sizes."""
    weights = 1 / np.arange(1, OBJECTS + 1) ** 0.9
    ids = np.random.default_rng(7).choice(OBJECTS, REQUESTS, p=weights / weights.sum())
    capacities = [OBJECTS * step // SIZES for step in range(1, SIZES + 1)]
    few = [OBJECTS // 20, OBJECTS // 4, OBJECTS // 2]
    kinds: dict[str, Callable[[], Any]] = {
        "lru_one_pass": lambda: curve("lru", ids, 1, capacities),
        "lru_one_replay": lambda: replay("lru", ids, 1, OBJECTS // 4),
        "sieve_sample_of_3_sizes": lambda: sampled_curve("sieve", ids, 1, few, rate=RATE),
        "sieve_replays_of_3_sizes": lambda: curve("sieve", ids, 1, few),
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    found = {}
    for _ in range(ROUNDS):
        for kind, work in kinds.items():
            before = time.process_time()
            found[kind] = work()
            seconds[kind].append(time.process_time() - before)
    medians = {kind: statistics.median(times) for kind, times in seconds.items()}
    sample, truth = found["sieve_sample_of_3_sizes"].points, found["sieve_replays_of_3_sizes"].points
    return {
        "requests": REQUESTS,
        "objects": OBJECTS,
        "sizes_in_one_pass": SIZES,
        "cpu_seconds": {kind: round(median, 3) for kind, median in medians.items()},
        "one_pass_in_replays": round(medians["lru_one_pass"] / medians["lru_one_replay"], 2),
        "sample_rate": RATE,
        "sample_in_replays": round(
            medians["sieve_sample_of_3_sizes"] / medians["sieve_replays_of_3_sizes"], 3
        ),
        "sample_error_said": round(max(point.object_error for point in sample), 4),
        "sample_error_found": round(
            max(abs(s.object_miss_ratio - t.object_miss_ratio) for s, t in zip(sample, truth, strict=True)), 4
        ),
    }
