"""Batches as torch tensors: a dataset for torch's own DataLoader, and a loader with workers and exact state.

Invariant: tensors share the memory of the batch they are made of; what `TorchLoader` hands out is the same,
batch for batch, for every number of workers.

Nothing else of this project imports torch, but `torch_workers`, of which this is made; import this only
where torch is used.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from loaders.loader import Loader
from loaders.stats import LoaderStats
from loaders.tally import Tally
from tiering.errors import UsageError

try:
    import torch
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info
except ImportError as error:
    raise UsageError("loaders.torch needs torch", hint="pip install 'corpus-tiering[torch]'") from error

from loaders.torch_workers import Letters, Part, Parts, State, add, as_it_is, joined, pinned, share, to_torch

__all__ = ["TorchDataset", "TorchLoader", "to_torch"]


def _tensors(loader: Loader) -> Iterator[Any]:
    """The batches of one epoch as tensors.

    Those of a GPU are made on the stream that is torch's current one when the batch is asked for, and as with
    torch's own memory, what else reads them must be over, or waited for by that stream, before they are let
    go: another batch takes their memory.
    """
    if loader.device == "cpu":
        return map(to_torch, loader)
    return _gpu_tensors(loader)


def _gpu_tensors(loader: Loader) -> Iterator[Any]:
    from loaders.gpu_device import on_stream

    batches = iter(loader)
    while True:
        with on_stream(loader.device, torch.cuda.current_stream(loader.device).cuda_stream):
            try:
                batch = to_torch(next(batches))
            except StopIteration:
                return
        yield batch
        del batch  # or its memory could not be the next one's


class TorchDataset(IterableDataset):  # type: ignore[misc]
    """A loader as an iterable dataset of whole batches, for ``DataLoader(dataset, batch_size=None)``.

    With `num_workers` each worker reads lanes of its own and gives batches of the full size from them, in
    turn. Then world size times workers must divide the lanes, and after every `num_workers` batches of all
    ranks the rows seen are those that as many global batches have without workers. Call `set_epoch` before
    each epoch: workers that begin anew know of no earlier one.

    `TorchLoader` gives the very batches of the loader instead, and a state that is exact with workers.
    """

    def __init__(self, loader: Loader) -> None:
        super().__init__()
        self.loader = loader
        self._letters = Letters()
        self._read = 0
        self._share: Loader | None = None

    def __iter__(self) -> Iterator[Any]:
        return _tensors(self._own())

    def __len__(self) -> int:
        """Batches of an epoch without workers; with them at most as many."""
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch, also in workers that live on between epochs."""
        self.loader.set_epoch(epoch)
        self._letters.send(self.loader.state_dict())

    def state_dict(self) -> State:
        """Where the loader stands; in a worker, where the worker does."""
        return self._own().state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken. Raises as `Loader.load_state_dict`."""
        self._own().load_state_dict(state)
        if get_worker_info() is None:
            self._letters.send(state)

    def _own(self) -> Loader:
        """The loader of this process."""
        worker = get_worker_info()
        if worker is None:
            return self.loader
        if self.loader.device != "cpu":
            told = f"a worker process gives no batches on device {self.loader.device!r}"
            raise UsageError(told, hint="Use num_workers=0: the loader reads in threads")
        if self._share is None:
            self._share = share(self.loader, worker.id, worker.num_workers, self.loader.batch_size)
        number, state = self._letters.latest()
        if number != self._read:
            self._read = number
            self._share.load_state_dict(state)
        return self._share


class TorchLoader:
    """The batches of a loader as tensors, with the attributes and methods of a torch DataLoader.

    For training loops, Lightning's Trainer and Accelerate's: it is sharded already, so that they should not
    shard it again. The state is that of `Loader`, exact with workers: it loads with another number of them.

    Args:
        loader: what to read. It is the template of the workers' loaders; its threads are enough for most.
        num_workers: processes that read, for transforms that hold the interpreter; 0 reads in this process.
            Each reads its lanes of every batch, and parts are joined here: world size times workers must
            divide the lanes, and a transform sees the worker's part of the batch.
        multiprocessing_context: how workers start: ``forkserver``, ``spawn`` or ``fork``. A forked worker
            opens files and makes threads anew, but inherits every lock that another thread of this process
            holds at that moment, torch's and the allocator's too: fork only before threads run.
        prefetch_factor: batches that each worker reads ahead.
        pin_memory: copy tensors to page-locked memory, from which ``.to(device, non_blocking=True)`` does not
            wait. Without an accelerator it does nothing and warns, as torch's own does.

    Raises:
        UsageError: the workers do not divide the lanes, or the loader's batches are on a GPU, where neither
            workers nor pin_memory are of use.
    """

    batch_sampler = None
    collate_fn = staticmethod(to_torch)

    def __init__(
        self,
        loader: Loader,
        *,
        num_workers: int = 0,
        multiprocessing_context: str = "forkserver",
        prefetch_factor: int = 2,
        pin_memory: bool = False,
    ) -> None:
        if num_workers < 0 or prefetch_factor < 1:
            raise UsageError(
                f"num_workers = {num_workers} is below 0 or prefetch_factor = {prefetch_factor} below 1"
            )
        if loader.device != "cpu" and (num_workers or pin_memory):
            raise UsageError(
                f"num_workers and pin_memory are for batches on the host, not on device {loader.device!r}",
                hint="Leave them out: the loader reads in threads, into page-locked memory",
            )
        self.loader = loader
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self._pins = pin_memory and torch.accelerator.is_available()
        if pin_memory and not self._pins:
            warnings.warn("pin_memory does nothing: torch finds no accelerator", stacklevel=2)
        self.dataset: TorchDataset | Parts = TorchDataset(loader)
        self._workers: Any = None
        if num_workers:
            share(loader, 0, num_workers, loader.batch_size // num_workers)  # or say what is wrong
            self.dataset = Parts(loader)
            self._workers = DataLoader(
                self.dataset,
                batch_size=None,
                num_workers=num_workers,
                collate_fn=as_it_is,
                multiprocessing_context=multiprocessing_context,
                prefetch_factor=prefetch_factor,
                persistent_workers=True,
            )
        self._state = loader.state_dict()
        self._stats = loader.stats
        self._resume = True
        self._loop = object()

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        batches = self._from_workers() if self.num_workers else _tensors(self.loader)
        return map(pinned, batches) if self._pins else batches

    @property
    def batch_size(self) -> int:
        """Rows of a batch of this rank."""
        return self.loader.batch_size

    @property
    def drop_last(self) -> bool:
        """Whether the rows at the end of an epoch that fill no batch are left out."""
        return self.loader.drop_last

    @property
    def sampler(self) -> TorchLoader:
        """What has a `set_epoch`, for those who look for it here."""
        return self

    @property
    def stats(self) -> LoaderStats:
        """Of the epoch so far, as `Loader.stats`.

        With workers, bytes and bad copies are the sum of theirs up to this batch, and the time that was
        waited for a batch is all a stall, their transforms included.
        """
        return self._stats if self.num_workers else self.loader.stats

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch, or stay where a state was loaded in this very one."""
        if epoch != self.state_dict()["epoch"]:
            self.loader.set_epoch(epoch)
            self._begin_from(self.loader.state_dict())

    def state_dict(self) -> State:
        """Where it stands, after the last batch it handed out, whatever workers have read ahead."""
        return dict(self._state) if self.num_workers else self.loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken. Raises as `Loader.load_state_dict`."""
        self.loader.load_state_dict(state)
        self._begin_from(self.loader.state_dict())

    def _begin_from(self, state: State) -> None:
        self._state, self._resume, self._loop = state, True, object()

    def _from_workers(self) -> Iterator[Any]:
        loop = self._loop = object()
        if not self._resume:
            self._state = self._state | {"position": 0}
        self._resume = False
        self.dataset.begin(self._state)
        self.loader.load_state_dict(self._state)
        stats = self._stats = self.loader.new_stats()
        tally, begun, waited = Tally(), time.perf_counter(), 0.0
        parts = iter(self._workers)
        while True:
            asked = time.perf_counter()
            whole: list[Part] = list(itertools.islice(parts, self.num_workers))
            waited += time.perf_counter() - asked
            if not whole:
                return
            if len(whole) < self.num_workers:
                raise AssertionError("all workers have as many batches")
            self._state = whole[0].state
            batch = joined([part.batch for part in whole])
            rows = add(stats, whole)
            stats.seconds, stats.stall_seconds = time.perf_counter() - begun, waited
            tally.add(rows, stats.seconds, waited)
            yield batch
            del batch, whole
            if self._loop is not loop:
                raise UsageError(
                    "this loop was ended by a newer one, set_epoch or load_state_dict",
                    hint="Begin a new loop, or make a loader for each loop",
                )
