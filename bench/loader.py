"""Host loader, warm, window shuffle, 4 KiB rows, batch 256, one process, against a gather from RAM.

The bound is ``np.take(ram, rows, out=, mode="clip")`` of random rows; they alternate, medians of the rounds.
"""

from __future__ import annotations

import tempfile
import time
from statistics import median

import numpy as np

from loaders import Loader
from tiering import ingest, open_tier

ROWS, TOKENS, BATCH, ROUNDS = 65_536, 2_049, 256, 7


def run() -> dict[str, object]:
    """Rows a second of both, and their ratio."""
    data = np.random.default_rng(7).integers(0, 257, (ROWS, TOKENS), dtype=np.uint16)
    with tempfile.TemporaryDirectory() as folder:
        corpus = ingest({"tokens": data}, open_tier(folder, "disk"), "bench")
        loaders = {lanes: Loader(corpus, BATCH, lanes=lanes) for lanes in (8, 64)}
        for loader in loaders.values():
            epoch(loader)
        takes, loads = [], {lanes: [] for lanes in loaders}
        for _ in range(ROUNDS):
            takes.append(gather(data))
            for lanes, loader in loaders.items():
                loads[lanes].append(epoch(loader))
    take = median(takes)
    return {
        "rows_per_second_gather_from_ram": round(take),
        **{f"rows_per_second_loader_{lanes}_lanes": round(median(rates)) for lanes, rates in loads.items()},
        **{f"ratio_{lanes}_lanes": round(median(rates) / take, 3) for lanes, rates in loads.items()},
    }


def epoch(loader: Loader) -> float:
    """Rows a second of one epoch."""
    begun, rows = time.perf_counter(), 0
    for batch in loader:
        rows += len(batch["tokens"])
    return rows / (time.perf_counter() - begun)


def gather(data: np.ndarray) -> float:
    """Rows a second of random batches from memory."""
    order = np.random.default_rng().permutation(ROWS)
    out = np.empty((BATCH, TOKENS), data.dtype)
    begun = time.perf_counter()
    for start in range(0, ROWS, BATCH):
        np.take(data, order[start : start + BATCH], axis=0, out=out, mode="clip")
    return ROWS / (time.perf_counter() - begun)
