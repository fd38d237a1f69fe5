"""Grain: a MapDataset over a memory map, shuffled, repeated, batched; read in line or by workers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from bench.peers.task import Epochs, Task

QUALITY = "a permutation of all rows"
VARIANTS = ("0 workers", "2 workers")
READS_AHEAD = True


def prepare(_task: Task) -> None:
    """It reads the rows as they were given: a source is anything with a length and items."""


def epochs(task: Task) -> Epochs:
    """Batches as arrays. One iterator gives all epochs, for workers start with each."""
    import grain

    read = grain.ReadOptions()
    if not task.rows.jpeg:  # what it advises for rows in memory
        read = grain.ReadOptions(num_threads=0, prefetch_buffer_size=1)
    source: Any = task.rows
    data = grain.MapDataset.source(source).seed(7).shuffle().repeat()
    batches: Any = data.to_iter_dataset(read).batch(task.batch, drop_remainder=True)
    if task.workers:
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=task.workers))
    endless = iter(batches)

    def epoch() -> Iterator[Any]:
        return itertools.islice(endless, len(task.rows) // task.batch)

    return epoch
