"""Warm epochs of a zstd corpus, beside numcodecs decoding the same blocks one after the other on one core.

The aim is a share of that rate times the cores that the loader used, which are its processor seconds by those
of the clock. Beside it stands the share of the rate times all cores of the machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
from numcodecs import Zstd

from bench.loader.scale import MB, SETTLE_SECONDS, Scale, tokens
from loaders import Loader
from tiering import ingest, open_tier

LEVEL: Final = 1
THREADS: Final = (1, 4)


def run(scale: Scale, folder: Path) -> dict[str, object]:
    """Decoded MB a second of both, and their ratios."""
    data = tokens(scale)
    corpus = ingest({"tokens": data}, open_tier(folder / "zstd", "zstd"), "bench", codec=f"zstd:{LEVEL}")
    block_rows = corpus.contents.block_rows
    codec = Zstd(level=LEVEL)
    blocks = [codec.encode(data[start : start + block_rows]) for start in range(0, len(data), block_rows)]
    out = np.empty((block_rows, scale.tokens), data.dtype)

    def bare() -> None:
        for block in blocks[: len(data) // block_rows]:
            codec.decode(block, out)

    ways: dict[str, Callable[[], None]] = {"numcodecs, one core": bare}
    for threads in THREADS:
        loader = Loader(corpus, scale.batch, prefetch=threads)
        ways[f"loader, prefetch={threads}"] = lambda loader=loader: _epoch(loader)
    time.sleep(SETTLE_SECONDS)
    for warm in ways.values():
        warm()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(max(1, scale.rounds // 3)):
        for name, one in ways.items():
            cpu, begun = time.process_time(), time.perf_counter()
            one()
            seconds = time.perf_counter() - begun
            taken[name].append((scale.nbytes / MB / seconds, (time.process_time() - cpu) / seconds))
    bound = median(speed for speed, _ in taken["numcodecs, one core"])
    figures = {}
    for name, rounds in taken.items():
        speed, cores = (median(values) for values in zip(*rounds, strict=True))
        figures[name] = {
            "mb_per_second": round(speed),
            "cores_used": round(cores, 2),
            "ratio_by_cores_used": round(speed / bound / cores, 3),
            "ratio_by_cores": round(speed / bound / (os.cpu_count() or 1), 3),
        }
    stored = sum(map(len, blocks))
    return {
        "codec": f"zstd:{LEVEL}",
        "aim": 0.8,
        "stored_share": round(stored / scale.nbytes, 3),
        "ways": figures,
    }


def _epoch(loader: Loader) -> None:
    for batch in loader:
        del batch
