"""Hugging Face datasets: an arrow file, read by index lists, as arrow or as numpy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bench.peers.task import Epochs, Task

QUALITY = "a permutation of all rows"
VARIANTS = ("arrow", "numpy")


def prepare(task: Task) -> None:
    """One arrow file; JPEG files as binary."""
    import pyarrow as pa

    rows = task.rows
    width = int(np.prod(rows.shape))
    kind = pa.binary() if rows.jpeg else pa.list_(pa.from_numpy_dtype(rows.dtype), width)
    schema = pa.schema({"row": kind})
    with pa.ipc.new_stream(str(task.folder / "data.arrow"), schema) as writer:
        for start in range(0, len(rows), 1024):
            some = range(start, min(start + 1024, len(rows)))
            if rows.jpeg:
                column = pa.array([rows.raw(index) for index in some], kind)
            else:
                flat = pa.array(np.ascontiguousarray(rows.array[some.start : some.stop]).reshape(-1))
                column = pa.FixedSizeListArray.from_arrays(flat, width)
            writer.write_batch(pa.record_batch([column], schema=schema))


def epochs(task: Task) -> Epochs:
    """Batches as arrays."""
    from datasets import Dataset

    rows = task.rows
    kept = {"dtype": rows.dtype} if task.variant == "numpy" and not rows.jpeg else {}  # else it widens
    stored: Any = Dataset.from_file(str(task.folder / "data.arrow")).with_format(task.variant, **kept)

    def taken(column: Any) -> Any:
        if rows.jpeg:
            files = column.to_pylist() if task.variant == "arrow" else column
            return np.stack([rows.decode(file) for file in files])
        if task.variant == "arrow":
            column = column.combine_chunks().flatten().to_numpy()
        return column.reshape(-1, *rows.shape)

    def epoch() -> Iterator[Any]:
        order = np.random.default_rng().permutation(len(rows))
        for start in range(0, len(order), task.batch):
            yield taken(stored[order[start : start + task.batch].tolist()]["row"])

    return epoch
