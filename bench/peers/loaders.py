"""Epochs of other loaders, for `bench.loader`: ``python loaders.py NAME ROWS.npy FOLDER BATCH``.

Imports nothing of this project, for it runs in the peer's own environment. Prints ``ready``; then runs one
epoch for each line it is sent, and prints the seconds it took. FOLDER is for a copy in the peer's own format.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Epoch = Callable[[], int]
"""Runs an epoch of shuffled batches of torch tensors or arrays; how many rows came."""


def torch(rows: Path, _folder: Path, batch: int) -> Epoch:
    """Gather index lists of a BatchSampler from a memory map: what a careful user writes by hand."""
    from torch import from_numpy
    from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

    class Mapped(Dataset):
        def __init__(self) -> None:
            self.rows = np.load(rows, mmap_mode="r")

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: list[int]) -> object:
            return from_numpy(self.rows[index])

    data = Mapped()
    sampler = BatchSampler(RandomSampler(data), batch, drop_last=True)
    loader = DataLoader(data, sampler=sampler, batch_size=None)
    return lambda: sum(len(found) for found in loader)


def datasets(rows: Path, folder: Path, batch: int) -> Epoch:
    """Hugging Face datasets: an arrow file, read by index lists, rows as numpy."""
    import pyarrow as pa
    from datasets import Dataset

    data = np.load(rows, mmap_mode="r")
    path = folder / "data.arrow"
    schema = pa.schema({"tokens": pa.list_(pa.uint16(), data.shape[1])})
    with pa.ipc.new_stream(str(path), schema) as writer:
        for start in range(0, len(data), 1024):
            flat = pa.array(np.asarray(data[start : start + 1024]).reshape(-1))
            column = pa.FixedSizeListArray.from_arrays(flat, data.shape[1])
            writer.write_batch(pa.record_batch([column], schema=schema))
    stored = Dataset.from_file(str(path)).with_format("arrow")

    def epoch() -> int:
        order, seen = np.random.default_rng().permutation(len(data)), 0
        for start in range(0, len(order), batch):
            column = stored[order[start : start + batch].tolist()]["tokens"].combine_chunks()
            seen += len(column.flatten().to_numpy().reshape(-1, data.shape[1]))
        return seen

    return epoch


PEERS = {"torch": torch, "datasets": datasets}


def main() -> None:
    """Prepare, then run an epoch for each line of the standard input."""
    name, rows, folder, batch = sys.argv[1:]
    epoch = PEERS[name](Path(rows), Path(folder), int(batch))
    print("ready", flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        epoch()
        print(time.perf_counter() - begun, flush=True)


if __name__ == "__main__":
    main()
