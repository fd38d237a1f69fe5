"""LitData: its chunks, rows of tokens by its TokensLoader, StreamingDataset and StreamingDataLoader."""

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

    cache = Cache(str(task.folder), chunk_bytes=task.shard_bytes, item_loader=_item_loader(task))
    for index in range(len(task.rows)):
        cache[index] = task.rows.raw(index) if task.rows.jpeg else np.ascontiguousarray(task.rows[index])
    cache.done()
    cache.merge()


def epochs(task: Task) -> Epochs:
    """Batches as tensors."""
    from litdata import StreamingDataLoader, StreamingDataset

    options: dict[str, Any] = {}
    if task.remote:
        from litdata.streaming import downloader

        # It has no option for a server on plain HTTP, as one on loopback is.
        getattr(downloader, "_OBSTORE_CLIENT_OPTIONS", {})["allow_http"] = True
        options = {
            "cache_dir": str(task.cache),
            "max_cache_size": task.cache_bytes,
            "storage_options": {"endpoint_url": task.endpoint},
        }
    source = task.remote or str(task.folder)
    data = StreamingDataset(source, shuffle=True, item_loader=_item_loader(task), **options)
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


def _item_loader(task: Task) -> Any:
    """Rows of tokens by the loader for them; not with a bounded cache: there it dies of KeyError (0.2.76)."""
    from litdata.streaming.item_loader import TokensLoader

    shape = task.rows.shape
    return TokensLoader(block_size=shape[0]) if len(shape) == 1 and not task.uploaded else None
