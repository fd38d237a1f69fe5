"""Epochs that do nothing with their batches, and the gather from RAM that bounds them.

Invariant: what is timed is the loader alone: the sample for the bound is read afterwards, and is bounded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import numpy as np
import pyarrow as pa

from loaders.loader import Loader

_ROUNDS: Final = 5


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch, or as much of it as there was time for."""

    epoch: int
    whole: bool
    rows: int
    rows_per_second: float
    bytes_per_second: float
    """Of the batches, not of what was read for them."""
    first_batch_seconds: float
    """From the start of the loop to its first batch."""
    stall_share: float
    """Share of the time that was waited for bytes."""
    hit_ratio: float
    bound: float
    """Of the hit ratio, for any cache policy."""
    bytes_fetched: int
    bytes_read: dict[str, int]


def run_epoch(loader: Loader, max_seconds: float = math.inf) -> Epoch:
    """Run the next epoch, but no longer than `max_seconds`."""
    nbytes, first = 0, None
    begun = time.perf_counter()
    for batch in loader:
        seconds = time.perf_counter() - begun
        first = seconds if first is None else first
        nbytes += batch_bytes(batch)
        if seconds > max_seconds:
            break
    seconds = time.perf_counter() - begun
    stats = loader.stats
    return Epoch(
        epoch=stats.epoch,
        whole=stats.batches == len(loader),
        rows=stats.rows,
        rows_per_second=stats.rows / seconds,
        bytes_per_second=nbytes / seconds,
        first_batch_seconds=first or 0.0,
        stall_share=stats.stall_seconds / seconds,
        hit_ratio=stats.hit_ratio,
        bound=stats.bound,
        bytes_fetched=stats.bytes_fetched,
        bytes_read=dict(sorted(stats.bytes_read.items())),
    )


@dataclass(frozen=True, slots=True)
class Gather:
    """Batches of random rows of a sample in RAM, by one call a column and batch."""

    rows: int
    """Of the sample; where that fits the processor's cache, the figure is of the cache."""
    nbytes: int
    rows_per_second: float


def gather_from_ram(loader: Loader, sample_bytes: int, seed: int = 7) -> Gather:
    """How fast rows of this corpus are gathered from RAM: what a loader with all rows in RAM would reach.

    Arrays by ``np.take(out=, mode="clip")``, record batches by Arrow's take. The median of some rounds.

    Args:
        loader: gives the sample: the first batches of its next loop.
        sample_bytes: the most that the sample may have; it has at least one batch.
        seed: of the random rows.
    """
    kept: list[Any] = []
    nbytes = 0
    for batch in loader:
        if kept and nbytes + batch_bytes(batch) > sample_bytes:
            break
        kept.append(batch)
        nbytes += batch_bytes(batch)
    rows, take = _taking(kept)
    batches = np.array_split(np.random.default_rng(seed).permutation(rows), len(kept))
    take(batches[0])
    seconds = []
    for _ in range(_ROUNDS):
        begun = time.perf_counter()
        for index in batches:
            take(index)
        seconds.append(time.perf_counter() - begun)
    return Gather(rows, nbytes, rows / median(seconds))


def batch_bytes(batch: Any) -> int:
    """Bytes of the arrays of a batch, or of a record batch."""
    if isinstance(batch, pa.RecordBatch):
        return int(batch.nbytes)
    return sum(int(values.nbytes) for values in batch.values() if isinstance(values, np.ndarray))


def _taking(kept: list[Any]) -> tuple[int, Callable[[Any], object]]:
    """Rows of a sample, and what takes some of them."""
    if isinstance(kept[0], pa.RecordBatch):
        table = pa.concat_batches(kept)
        return table.num_rows, lambda index: table.take(pa.array(index))
    columns = {name: np.concatenate([batch[name] for batch in kept]) for name in kept[0]}
    rows = len(next(iter(columns.values())))
    longest = -(-rows // len(kept))
    outs = {name: np.empty((longest, *values.shape[1:]), values.dtype) for name, values in columns.items()}

    def take(index: Any) -> None:
        for name, values in columns.items():
            np.take(values, index, axis=0, out=outs[name][: len(index)], mode="clip")

    return rows, take
