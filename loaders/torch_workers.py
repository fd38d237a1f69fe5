"""What TorchLoader's worker processes send and get, and how their parts of a batch become one.

Invariant: every message carries where its worker stands after it, so what workers read ahead counts nowhere.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from loaders.loader import Loader
from loaders.stats import LoaderStats
from tiering.errors import UsageError
from tiering.monitor.stats import COUNTERS, Snapshot

_NUMERIC: Final = "biufc"
_LETTER_BYTES: Final = 4096
State = dict[str, Any]


def to_torch(batch: Any) -> Any:
    """A batch with tensors in the place of arrays, in dicts, lists and tuples too.

    Tensors share the arrays' memory and have their dtype; cupy arrays become tensors on their GPU. Read-only
    arrays are copied, because torch would write to them. Text and whatever else torch cannot hold stays as
    it is. torch stores and converts uint16, uint32 and uint64 and computes little with them: ``x.long()``.
    """
    if isinstance(batch, np.ndarray):
        if batch.dtype.kind not in _NUMERIC:
            return batch
        # Without a negative stride, which torch has not; a copy only where there is one.
        return torch.from_numpy(np.require(batch, requirements=["C", "W"]))
    if hasattr(batch, "__cuda_array_interface__") and not isinstance(batch, torch.Tensor):
        return torch.from_dlpack(batch)
    if isinstance(batch, Mapping):
        return {name: to_torch(value) for name, value in batch.items()}
    if isinstance(batch, list | tuple):
        return [to_torch(value) for value in batch]
    return batch


class Part(NamedTuple):
    """What a worker sends: its rows of a batch, where it stands after it, and what it did so far."""

    state: State
    stats: LoaderStats
    counters: Snapshot
    batch: Any


class Parts(IterableDataset):  # type: ignore[misc]
    """In each worker, its lanes' rows of every batch of the loader, with the state after that batch."""

    def __init__(self, loader: Loader) -> None:
        super().__init__()
        self.loader = loader
        self._letters = Letters()

    def begin(self, state: State) -> None:
        """Say from where the next loop reads."""
        self._letters.send(state)

    def __iter__(self) -> Iterator[Part]:
        worker = get_worker_info()
        own = share(self.loader, worker.id, worker.num_workers, self.loader.batch_size // worker.num_workers)
        own.load_state_dict(self._letters.latest()[1])
        for batch in own:
            stats = replace(own.stats)  # as it is now: it is sent later, by a thread of torch's
            yield Part(own.state_dict(), stats, COUNTERS.snapshot(), to_torch(batch))


class Letters:
    """The latest state that the main process gave its workers, in memory that they share."""

    def __init__(self) -> None:
        self._memory = torch.zeros(_LETTER_BYTES, dtype=torch.uint8).share_memory_()
        self._sent = 0

    def send(self, state: Mapping[str, Any]) -> None:
        """Must be called between epochs: workers look when one begins."""
        self._sent += 1
        text = json.dumps([self._sent, dict(state)]).encode()
        if len(text) > _LETTER_BYTES:
            raise UsageError(f"a loader state of {len(text)} bytes is too long for workers")
        self._memory[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        self._memory[len(text) :] = 0

    def latest(self) -> tuple[int, State]:
        """Its number, from 1, and the state; 0 before the first."""
        text = self._memory.numpy().tobytes().rstrip(b"\0")
        number, state = json.loads(text) if text else (0, {})
        return number, state


def share(loader: Loader, part: int, parts: int, batch_size: int) -> Loader:
    """A loader of some of this rank's lanes, as of one rank of `parts` times as many."""
    lanes, world_size = loader.order.lanes, loader.world_size * parts
    if lanes % world_size:
        fitting = [count for count in range(1, lanes + 1) if lanes % (loader.world_size * count) == 0]
        raise UsageError(
            f"{parts} workers on each of {loader.world_size} ranks do not divide its {lanes} lanes",
            hint=f"Set num_workers to one of {fitting[:8]}",
        )
    own = copy.copy(loader)  # as pickling does: with files and threads of its own
    own.rank, own.world_size, own.batch_size = loader.rank * parts + part, world_size, batch_size
    own.load_state_dict(loader.state_dict())  # checked for the new world size
    return own


def add(stats: LoaderStats, parts: Sequence[Part]) -> int:
    """Let `stats` be of one more batch of these parts; returns the rows of that batch."""
    workers = [part.stats for part in parts]
    before, stats.rows = stats.rows, sum(worker.rows for worker in workers)
    stats.batches = workers[0].batches
    stats.bytes_needed = sum(worker.bytes_needed for worker in workers)
    stats.bytes_fetched = sum(worker.bytes_fetched for worker in workers)
    read: Counter[str] = Counter()
    for worker in workers:
        read.update(worker.bytes_read)
    stats.bytes_read = dict(read)
    stats.damaged = [bad for worker in workers for bad in worker.damaged]
    for part in parts:
        COUNTERS.adopt(part.counters)
    return stats.rows - before


def joined(parts: list[Any]) -> Any:
    """The batch whose rows are those of the parts, one after the other."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, torch.Tensor):
        return torch.cat(parts)
    if isinstance(first, np.ndarray):
        return np.concatenate(parts)
    if isinstance(first, dict):
        return {name: joined([part[name] for part in parts]) for name in first}
    if isinstance(first, list):
        return [joined(list(values)) for values in zip(*parts, strict=True)]
    raise UsageError(
        f"a transform gave a {type(first).__name__}, and parts of {len(parts)} workers have to be joined",
        hint="Give arrays or tensors with rows on axis 0, in dicts or lists; or use one worker",
    )


def pinned(batch: Any) -> Any:
    """A batch with its tensors copied to page-locked memory."""
    if isinstance(batch, torch.Tensor):
        return batch.pin_memory()
    if isinstance(batch, dict):
        return {name: pinned(value) for name, value in batch.items()}
    if isinstance(batch, list):
        return [pinned(value) for value in batch]
    return batch


def as_it_is(batch: Any) -> Any:
    """What a worker sends, untouched; a lambda could not be pickled."""
    return batch
