"""The sample order beside the planners of MosaicML Streaming: set-up, row indices a second, shuffle quality.

Set-up is from the shard sizes to the first batch, in a process of its own: CPU seconds, and what the process
grew by. Streaming plans an epoch as an array of all rows, so at 10^9 rows it is not asked.

Quality is measured on 2^20 rows in shards of 4,096 and blocks of 128, read as 8 lanes in lockstep. All but
`none`, `full` and the true shuffle mix rows within pools of 2^15 rows a lane: 8 shards, or the peers'
`block_size` on 8 canonical nodes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, Final

import numpy as np

from bench import _streaming
from policies import Order

Rows = np.ndarray[Any, Any]
PEERS: Final = ("py1e", "py1br")
ROUNDS: Final = 3
ROWS, SHARD_ROWS, BLOCK_ROWS, LANES, BATCH = 1 << 20, 4096, 128, 8, 256
POOL_ROWS: Final = 8 * SHARD_ROWS
_SETUP = """
import json, resource, sys, time
import numpy as np
from bench import _streaming
from policies import Order
kind, shards, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
rows = 900 + np.arange(shards) * 7919 % 201
np.random.default_rng(7).integers(0, 9, 9)
plan = _streaming.planner(folder, kind) if kind.startswith("py") else None
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begun = time.process_time()
if plan:
    plan(rows, 8, 7, 0)[:256]
else:
    order = Order(rows, mode=kind)
    for lane in range(8):
        order.rows(0, lane, 0, 32)
seconds = time.process_time() - begun
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(json.dumps([int(rows.sum()), seconds, grown]))
"""


def run() -> dict[str, object]:
    """All figures."""
    with tempfile.TemporaryDirectory() as folder:
        _streaming.install(folder)
        return {**speed(folder), "quality": quality(folder)}


def speed(folder: str) -> dict[str, object]:
    """Set-up and row indices a second, beside Streaming's planners, which are installed in `folder`."""
    large = {kind: setup(kind, 1_000_000, folder) for kind in ("window", "full")}
    small = {kind: setup(kind, 10_000, folder) for kind in ("window", "full", *PEERS)}
    window = small["window"]["cpu_seconds"]
    return {
        "streaming": _streaming.VERSION,
        "setup_of_1e9_rows_in_1e6_shards": large,
        "setup_of_1e7_rows_in_1e4_shards": small,
        "ratio_setup_to_window": {peer: round(small[peer]["cpu_seconds"] / window) for peer in PEERS},
        "million_row_indices_per_second": speeds(folder),
    }


def setup(kind: str, shards: int, folder: str) -> dict[str, float]:
    """Set-up with first batch of one kind, median of some processes."""
    figures = []
    for _ in range(ROUNDS):
        command = [sys.executable, "-c", _SETUP, kind, str(shards), folder]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        figures.append(json.loads(done.stdout))
    rows, seconds, grown = (median(column) for column in zip(*figures, strict=True))
    return {"rows": rows, "cpu_seconds": round(seconds, 4), "mebibytes": round(grown, 1)}


def speeds(folder: str) -> dict[str, float]:
    """Row indices a CPU second, batches of 8,192, set-up apart; the peers plan 2^22 rows. Medians."""
    large, small = np.full(2000, 65_536), 900 + np.arange(1_000_000) * 7919 % 201
    orders = {
        "none": Order(large, mode="none"),
        "window, shards of 65,536 rows": Order(large),
        "window, 10^6 shards of 1,000 rows": Order(small),
        "full, 10^9 rows": Order(small, mode="full"),
    }
    works: dict[str, Callable[[int], int]] = {name: partial(walk, order) for name, order in orders.items()}
    for name in PEERS:
        works[f"{name}, shards of 65,536 rows"] = partial(plan_all, _streaming.planner(folder, name))
    rates: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(ROUNDS):
        for order in orders.values():
            order.rows(turn, 0, 0, 1)  # the epoch's set-up, which has figures of its own
        for name, work in works.items():
            begun = time.process_time()
            rows = work(turn)
            rates[name].append(rows / (time.process_time() - begun) / 1e6)
    return {name: round(median(found), 1) for name, found in rates.items()}


def walk(order: Order, epoch: int) -> int:
    """Read 2^22 positions of a lane from its start."""
    for start in range(0, 1 << 22, 8192):
        order.rows(epoch, 0, start, start + 8192)
    return 1 << 22


def plan_all(plan: _streaming.Planner, epoch: int) -> int:
    """Plan an epoch of 2^22 rows."""
    return len(plan(np.full(64, 65_536), 8, 7, epoch))


def quality(folder: str) -> list[dict[str, object]]:
    """The statistics of each kind of order."""
    sizes = np.full(ROWS // SHARD_ROWS, SHARD_ROWS)
    options: dict[str, dict[str, Any]] = {
        "none": {"mode": "none"},
        "window": {},
        "window, affinity lane": {"affinity": "lane"},
        "window, 64 blocks a lane": {"window_blocks": 64},
        "full": {"mode": "full"},
    }
    kinds: dict[str, Callable[[int], Rows]] = {
        name: partial(lockstep, Order(sizes, BLOCK_ROWS, lanes=LANES, **chosen))
        for name, chosen in options.items()
    }
    kinds |= {name: partial(planned, _streaming.planner(folder, name), sizes) for name in PEERS}
    kinds["true shuffle"] = lambda epoch: np.random.default_rng([7, epoch]).permutation(ROWS)
    return [{"kind": kind, **statistics(make(0), make(1))} for kind, make in kinds.items()]


def planned(plan: _streaming.Planner, sizes: Rows, epoch: int) -> Rows:
    """The rows of a peer's epoch in the order of their steps, canonical nodes in lockstep."""
    return plan(sizes, LANES, 7, epoch, POOL_ROWS).reshape(LANES, -1).T.reshape(-1)


def lockstep(order: Order, epoch: int) -> Rows:
    """The rows of an epoch in the order of their steps, lane by lane in each."""
    lanes = [order.rows(epoch, lane, 0, order.lane_rows(epoch, lane)) for lane in range(order.lanes)]
    return np.stack(lanes, axis=1).reshape(-1)


def statistics(rows: Rows, later: Rows) -> dict[str, float]:
    """Of an epoch, and of it with the next. Distances are shares of the corpus or of the epoch.

    rank_correlation: Spearman's, of stored place and time. next_row_distance: median distance in storage of
    consecutive rows; next_row_in_block: share of them from one block. shards_in_batch: mean number in 256
    rows. duplicate_distance, _1_percent: median and 1% quantile of the time between rows stored side by side,
    where near-duplicates mostly lie; duplicates_in_batch: share of them in one batch. repeat_correlation:
    Spearman's, of the times of a row in two epochs. repeat_distance_1_percent: 1% quantile of the time until
    a row comes again.
    """
    time_of, later_of = np.argsort(rows), np.argsort(later)
    beside = np.abs(np.diff(time_of)) / ROWS
    shards = np.sort(rows.reshape(-1, BATCH) // SHARD_ROWS, axis=1)
    return {
        "rank_correlation": correlation(rows, np.arange(ROWS)),
        "next_row_distance": round(float(np.median(np.abs(np.diff(rows)))) / ROWS, 4),
        "next_row_in_block": round(float(np.mean(np.diff(rows // BLOCK_ROWS) == 0)), 5),
        "shards_in_batch": round(float((np.diff(shards, axis=1) > 0).sum(axis=1).mean()) + 1, 1),
        "duplicate_distance": round(float(np.median(beside)), 4),
        "duplicate_distance_1_percent": round(float(np.quantile(beside, 0.01)), 5),
        "duplicates_in_batch": round(float(np.mean(np.diff(time_of // BATCH) == 0)), 5),
        "repeat_correlation": correlation(time_of, later_of),
        "repeat_distance_1_percent": round(float(np.quantile((later_of + ROWS - time_of) / ROWS, 0.01)), 3),
    }


def correlation(one: Rows, other: Rows) -> float:
    """Of two permutations, whose values are their ranks."""
    return round(float(np.corrcoef(one, other)[0, 1]), 4)
