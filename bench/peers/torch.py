"""Index lists of a BatchSampler gathered from a memory map: what a careful user of torch writes by hand."""

from __future__ import annotations

from typing import Any

from bench.peers.rows import Rows
from bench.peers.task import Epochs, Task

QUALITY = "a permutation of all rows"
VARIANTS = ("0 workers", "2 workers")


class Mapped:
    """A map-style dataset of whole batches."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, indices: list[int]) -> Any:
        from torch import from_numpy

        return from_numpy(self._rows.gather(indices))


def prepare(_task: Task) -> None:
    """It reads the rows as they were given."""


def epochs(task: Task) -> Epochs:
    """Batches as tensors."""
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler

    data: Any = Mapped(task.rows)
    sampler: Any = BatchSampler(RandomSampler(data), task.batch, drop_last=True)
    workers = {"num_workers": task.workers, "persistent_workers": task.workers > 0}
    loader: Any = DataLoader(data, sampler=sampler, batch_size=None, **workers)
    return lambda: iter(loader)
