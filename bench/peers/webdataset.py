"""WebDataset: tar shards, shards shuffled and rows by a buffer, batches made by the workers."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import numpy as np

from bench.peers.task import Epochs, Task

BUFFER, SHARDS = 5_000, 16
QUALITY = f"shards over all, rows by a buffer of {BUFFER:,}"
VARIANTS = ("0 workers", "2 workers")


def prepare(task: Task) -> None:
    """Shards of equal length, a file a row."""
    rows = task.rows
    for number, indices in enumerate(np.array_split(np.arange(len(rows)), SHARDS)):
        with tarfile.open(task.folder / f"{number:04}.tar", "w", format=tarfile.USTAR_FORMAT) as shard:
            for index in indices.tolist():
                raw = rows.raw(index)
                member = tarfile.TarInfo(f"{index:09}.bin")
                member.size = len(raw)
                shard.addfile(member, io.BytesIO(raw))


def epochs(task: Task) -> Epochs:
    """Batches as tensors."""
    import webdataset as wds

    decode = task.rows.decode
    shards = sorted(str(path) for path in task.folder.glob("*.tar"))
    data: Any = (
        wds.WebDataset(shards, shardshuffle=SHARDS)
        .shuffle(BUFFER)
        .map(lambda sample: decode(sample["bin"]))
        .batched(task.batch, collation_fn=np.stack)
    )
    workers = {"num_workers": task.workers, "persistent_workers": task.workers > 0}
    loader: Any = wds.WebLoader(data, batch_size=None, **workers)
    return lambda: iter(loader)
