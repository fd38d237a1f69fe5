"""Placing 10,000 unlike items on 6 tiers: CPU seconds, and the gap from the bound of the relaxed program.

Beside it, in the same run: the relaxed program alone, the least that any such method must solve; and, for 300
items, branch and bound of the whole, which `place` leaves to small problems.
"""

from __future__ import annotations

import time
from statistics import median

import numpy as np

from policies.placement import Item, Placement, Run, TierSpec, place
from policies.placement.program import program, relax, rooms
from policies.placement.table import tabulate

ITEMS, FEWER_ITEMS, ROUNDS, SECONDS_PER_DAY = 10_000, 300, 3, 86_400


def run() -> dict[str, object]:
    """Figures for one copy of each item, and for one to three copies."""
    return {
        "tiers": 6,
        **{f"one_to_{most}_copies": {**many(most), **against_whole(most)} for most in (1, 3)},
    }


def many(copies: int) -> dict[str, object]:
    """Place and relax in turn; medians of CPU seconds."""
    items, tiers, runs = problem(ITEMS, copies)
    placing, relaxing = [], []
    for _ in range(ROUNDS):
        placement, seconds = timed(items, tiers, runs)
        placing.append(seconds)
        begun = time.process_time()
        table = tabulate(items, tiers, runs, 1.0, 0.0)
        relax(program(table, rooms(table, *table.room())))
        relaxing.append(time.process_time() - begun)
    return {
        "items": ITEMS,
        "place_cpu_seconds": round(median(placing), 2),
        "relaxed_alone_cpu_seconds": round(median(relaxing), 2),
        "ratio": round(median(placing) / median(relaxing), 2),
        "method": placement.method,
        "proven_gap": float(f"{placement.gap:.2g}"),
    }


def against_whole(copies: int) -> dict[str, object]:
    """Fewer items by rounding, and by branch and bound of the whole program."""
    items, tiers, runs = problem(FEWER_ITEMS, copies)
    rounded, seconds = timed(items, tiers, runs, exact_cells=0)
    whole, whole_seconds = timed(items, tiers, runs, exact_cells=10 * FEWER_ITEMS)
    return {
        "fewer_items": FEWER_ITEMS,
        "rounded_over_whole_cost": round(rounded.cost.total / whole.cost.total, 6),
        "rounded_over_whole_cpu": round(seconds / whole_seconds, 3),
        "rounded_gap": float(f"{rounded.gap:.2g}"),
        "whole_gap": float(f"{whole.gap:.2g}"),
    }


def timed(
    items: list[Item], tiers: list[TierSpec], runs: list[Run], *, exact_cells: int = 600
) -> tuple[Placement, float]:
    """A placement, and the CPU seconds it took."""
    begun = time.process_time()
    placement = place(items, tiers, runs, exact_cells=exact_cells)
    return placement, time.process_time() - begun


def problem(count: int, copies: int) -> tuple[list[Item], list[TierSpec], list[Run]]:
    """Log-normal sizes to 20 GB, all in a lake; three runs at once, which only NVMe could serve alone."""
    rng = np.random.default_rng(7)
    sizes = np.minimum(rng.lognormal(0, 1.2, count) * 1e9, 2e10).astype(np.int64) + 1
    total = int(sizes.sum())
    items = [
        Item(f"item-{n:05}", int(size), ("lake",), min_copies=1 + n % copies, gets=1 + int(size) // 8_388_608)
        for n, size in enumerate(sizes)
    ]
    wanted = total / SECONDS_PER_DAY
    tiers = [
        TierSpec("cold", None, 0.1 * wanted, 0.004, 0.03, 0.01, 0.02),
        TierSpec("disk", total // 3, wanted, 0.05),
        TierSpec("lake", None, wanted / 2, 0.023, 0.09, 0.0004, 0.005),
        TierSpec("memory", total // 50, None, 2.0),
        TierSpec("nfs", total // 2, wanted, 0.08, 0.001),
        TierSpec("nvme", total // 7, 6 * wanted, 0.3),
    ]
    read = [np.flatnonzero(rng.random(count) < 0.3) for _ in range(3)]
    runs = [
        Run(f"run-{epochs}", tuple(items[at].name for at in some), SECONDS_PER_DAY, epochs)
        for epochs, some in zip((1, 3, 9), read, strict=True)
    ]
    return items, tiers, runs
