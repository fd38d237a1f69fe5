"""MosaicML Streaming: MDS shards, StreamingDataset and StreamingDataLoader."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from typing import Any

import numpy as np

from bench.peers.rows import Rows
from bench.peers.task import Epochs, Task

QUALITY = "a permutation of all rows (py1e, its default)"
VARIANTS = ("0 workers", "2 workers")
REMOTE_VARIANTS = ("0 workers, defaults", "0 workers, shuffle blocks of two shards")


def prepare(task: Task) -> None:
    """MDS shards; JPEG files as bytes."""
    rows = task.rows
    shape = ",".join(map(str, rows.shape))
    kind = "bytes" if rows.jpeg else f"ndarray:{rows.dtype.name}:{shape}"
    out = str(task.folder / "mds")
    with load().MDSWriter(out=out, columns={"row": kind}, size_limit=task.shard_bytes) as writer:
        for index in range(len(rows)):
            writer.write({"row": rows.raw(index) if rows.jpeg else np.ascontiguousarray(rows[index])})


def epochs(task: Task) -> Epochs:
    """Batches as tensors."""
    streaming = load()
    options: dict[str, Any] = {"local": str(_linked(task))}
    if task.remote:
        os.environ["S3_ENDPOINT_URL"] = str(task.endpoint)
        options = {
            "remote": f"{task.remote}/mds",
            "local": str(task.cache),
            "cache_limit": task.cache_bytes,
        }
        if "blocks" in task.variant:
            options["shuffle_block_size"] = max(1, 2 * task.shard_bytes // task.rows[0].nbytes)
    data = streaming.StreamingDataset(shuffle=True, batch_size=task.batch, **options)
    workers = {"num_workers": task.workers, "persistent_workers": task.workers > 0}
    collate = Collate(task.rows)
    loader = streaming.StreamingDataLoader(data, batch_size=task.batch, collate_fn=collate, **workers)
    return lambda: iter(loader)


class Collate:
    """One tensor of the rows of a batch."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __call__(self, samples: list[Any]) -> Any:
        """Of arrays or JPEG files."""
        import torch

        items = [sample["row"] for sample in samples]
        if self._rows.jpeg:
            items = [self._rows.decode(item) for item in items]
        return torch.from_numpy(np.stack(items))


def load() -> Any:
    """The loader without its ready-made datasets, whose imports want a torchvision that fits the torch."""
    if "streaming" not in sys.modules:
        spec = importlib.util.find_spec("streaming")
        assert spec is not None
        package = sys.modules["streaming"] = types.ModuleType("streaming")
        package.__path__ = list(spec.submodule_search_locations or ())
    return importlib.import_module("streaming.base")


def _linked(task: Task) -> str:
    """A name of the shards for each variant: it refuses two datasets over one folder."""
    name = task.folder / f"mds {task.variant}"
    if not name.exists():
        name.symlink_to(task.folder / "mds")
    return str(name)
