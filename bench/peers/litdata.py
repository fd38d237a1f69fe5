"""LitData: its chunks, tokens by its TokensLoader, StreamingDataset and StreamingDataLoader."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.peers.rows import Rows
from bench.peers.task import Epochs, Task

QUALITY = "rows within windows of 256 in a chunk of 64 MiB, windows and chunks shuffled (its default)"
VARIANTS = ("0 workers", "2 workers")
REMOTE_VARIANTS = ("0 workers",)


def prepare(task: Task) -> None:
    """Chunks of its own format; JPEG files as bytes."""
    from litdata.streaming.cache import Cache

    cache = Cache(str(task.folder), chunk_bytes=task.shard_bytes, item_loader=_item_loader(task.rows))
    for index in range(len(task.rows)):
        cache[index] = task.rows.raw(index) if task.rows.jpeg else np.ascontiguousarray(task.rows[index])
    cache.done()
    cache.merge()


def epochs(task: Task) -> Epochs:
    """Batches as tensors."""
    from litdata import StreamingDataLoader, StreamingDataset

    options: dict[str, Any] = {}
    if task.remote:
        options = {
            "cache_dir": str(task.cache),
            "max_cache_size": task.cache_bytes,
            "storage_options": {"endpoint_url": task.endpoint},
        }
    source = task.remote or str(task.folder)
    data = StreamingDataset(source, shuffle=True, item_loader=_item_loader(task.rows), **options)
    workers = {"num_workers": task.workers, "persistent_workers": task.workers > 0}
    loader: Any = StreamingDataLoader(data, batch_size=task.batch, collate_fn=Collate(task.rows), **workers)
    return lambda: iter(loader)


class Collate:
    """One tensor of the rows of a batch."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __call__(self, items: list[Any]) -> Any:
        """Of arrays, tensors or JPEG files."""
        import torch

        if self._rows.jpeg:
            items = [self._rows.decode(item) for item in items]
        if isinstance(items[0], torch.Tensor):
            return torch.stack(items)
        return torch.from_numpy(np.stack(items))


def _item_loader(rows: Rows) -> Any:
    from litdata.streaming.item_loader import TokensLoader

    return TokensLoader(block_size=rows.shape[0]) if len(rows.shape) == 1 else None
