"""How batches come to a GPU: by slots in its memory that kvikio fills from files, where that is direct.

Elsewhere, without GPUDirect Storage and for compressed blocks, `loaders.gpu_feed` copies what the host read.

Invariant: no byte reaches a slot before it was verified, and no slot is overwritten before the gathers that
read it have completed. Which way blocks take is counted and told, never assumed.

Direct: an uncompressed Zarr block, on a file tier or in the node cache, goes by `CuFile.pread` straight to
its slot. The host cannot check such a block's CRC, so the whole shard's BLAKE3 is checked before its first
direct read, once in a process for each file and time of change: one more reading of the shard, which leaves
it in the page cache. Host: everything else is read and checked by the `BlockReader` into page-locked memory.

kvikio waits for the legacy default stream before it reads: train on another one to have both at a time.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from loaders.gpu_device import Bytes, Device, Event, RawFiles, open_device
from loaders.gpu_feed import GpuFeed
from loaders.host import HostFeed
from loaders.slots import Batch
from tiering.errors import Corrupt, NotFound, TieringError
from tiering.layout.base import PAGE_BYTES
from tiering.layout.zarr import ZarrColumn
from tiering.reader import BlockReader

log = logging.getLogger("loaders.gpu")

MAX_OPEN_FILES: Final = 32
_ATTEMPTS: Final = 4  # a bad copy in the cache, a bad one on the tier, the healed one, and one to spare


@dataclass(frozen=True, slots=True)
class ReadPath:
    """Which way blocks took to the device, each column's counted."""

    device: str
    direct: int
    """By `CuFile.pread` into the slot."""
    host: int
    """Verified in host memory and copied."""


class Gpu:
    """A device, and how the batches of one loader come to it.

    Args:
        reader: of the corpus.
        name: ``cuda:N``.
        mixed: whether the loader mixes corpora, this one first.

    Attributes:
        direct: whether blocks go to the device as they are in their files, by GPUDirect Storage.

    Raises:
        UsageError: no such device, or what it needs is missing here.
    """

    def __init__(self, reader: BlockReader, name: str, *, mixed: bool = False) -> None:
        self.device = open_device(name)
        self._reader = reader
        why = "corpora are mixed there" if mixed else _why_never_direct(reader)
        if why is None and self.device.compat:
            why = "kvikio is in compatibility mode: no GPUDirect Storage"
        self.direct = why is None
        if why is not None:
            told = "%s, corpus %r: the host reads into page-locked memory, from where batches are copied; %s"
            log.warning(told, name, reader.corpus.name, why)

    def array(self, values: np.ndarray[Any, Any]) -> Any:
        """A copy on the device."""
        with self.device.active():
            return self.device.arrays.asarray(values)

    def slots(self, count: int) -> CudaSlots:
        """Slots that blocks are read to directly."""
        return CudaSlots(self._reader, count, self.device)

    def feed(self, feed: HostFeed, stop: int, step: int) -> GpuFeed:
        """The batches of a feed on this device."""
        return GpuFeed(feed, self.device, stop, step)


class CudaSlots:
    """Slots on a device; see `loaders.slots.Slots`.

    Args:
        reader: of the corpus.
        count: how many slots.
        device: where they are.

    Raises:
        CapacityExceeded: it has no room for the slots.
    """

    def __init__(self, reader: BlockReader, count: int, device: Device) -> None:
        self.count = count
        self._reader = reader
        self._device = device
        self._columns = {column.name: _Column(column, reader) for column in reader.columns}
        with self._device.active():
            self._memory = {
                name: self._device.memory(count * column.slot_bytes) for name, column in self._columns.items()
            }
        self._fences = SlotFences(count)
        self._files = RawFiles(self._device.open, MAX_OPEN_FILES)
        self._pinned: list[dict[str, Bytes]] = []
        self._lock = threading.Lock()
        self._direct = self._host = 0
        self._told: set[str] = set()
        self._why_not_direct = _why_not_direct(reader)
        # Before device memory is given back: wait until nothing reads it.
        self._end = weakref.finalize(self, _finish, self._fences, self._files, count, os.getpid())
        self._end.atexit = False

    @property
    def nbytes(self) -> int:
        """Device memory held."""
        return sum(self.count * column.slot_bytes for column in self._columns.values())

    @property
    def path(self) -> ReadPath:
        """Which way blocks took so far."""
        with self._lock:
            return ReadPath(self._device.name, self._direct, self._host)

    def close(self) -> None:
        """Wait for gathers and close files. Idempotent."""
        self._end()

    def slot_rows(self, column: str) -> int:
        """See `Slots`."""
        return self._columns[column].slot_rows

    def read(self, shard: int, block: int, slot: int) -> None:
        """See `Slots`."""
        with self._device.active():
            self._fences.wait(slot)
            rest = [name for name in self._columns if not self._read_direct(name, shard, block, slot)]
            if rest:
                self._read_by_host(rest, shard, block, slot)
        with self._lock:
            self._host += len(rest)
            self._direct += len(self._columns) - len(rest)

    def new_batch(self, rows: int) -> Batch:
        """See `Slots`."""
        with self._device.active():
            return {
                name: self._device.arrays.empty((rows, *column.shape), column.dtype)
                for name, column in self._columns.items()
            }

    def gather(
        self, batch: Batch, start: int, slots: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]
    ) -> None:
        """See `Slots`. Runs on the current stream and does not wait for it."""
        indexes: dict[int, Any] = {}
        with self._device.active():
            for name, column in self._columns.items():
                stride = column.slot_rows
                if stride not in indexes:
                    indexes[stride] = self._device.arrays.asarray(slots.astype(np.int64) * stride + rows)
                out = batch[name][start : start + len(rows)].reshape(len(rows), column.row_items)
                source = self._memory[name].view(column.unit).reshape(self.count * stride, -1)
                self._device.arrays.take(source, indexes[stride], axis=0, out=out.view(column.unit))
            self._fences.used(np.unique(slots).tolist(), *self._device.record())

    def _read_direct(self, name: str, shard: int, block: int, slot: int) -> bool:
        """Read a block of a column into its slot, if it lies in a file as it is and the file is right."""
        column = self._columns[name]
        for _ in range(_ATTEMPTS):
            try:
                raw = self._reader.raw_block(name, shard, block)
                if raw is None or raw.nbytes != column.block_bytes:
                    self._tell("host", f"blocks go through host memory: {self._why_not_direct}")
                    return False
                with self._files.proven(raw) as file:
                    done = file.pread(column.slot(self._memory[name], slot), raw.nbytes, raw.offset).get()
            except (Corrupt, NotFound) as error:
                self._reader.replace(name, shard, error)
                continue
            except (OSError, RuntimeError) as error:
                if isinstance(error, TieringError):
                    raise
                self._tell("failed", f"kvikio cannot read a file, so the host reads it: {error}")
                return False
            if done == raw.nbytes:
                self._reader.count_raw(raw)
                return True
        return False

    def _read_by_host(self, names: Sequence[str], shard: int, block: int, slot: int) -> None:
        with self._borrow_pinned() as pinned:
            self._reader.read(shard, block, {name: memoryview(pinned[name]) for name in names})
            for name in names:
                column = self._columns[name]
                self._device.copy(pinned[name][: column.block_bytes], column.slot(self._memory[name], slot))

    @contextmanager
    def _borrow_pinned(self) -> Iterator[dict[str, Bytes]]:
        """Page-locked memory for one block; there is one for each thread that read at the same time."""
        try:
            pinned = self._pinned.pop()
        except IndexError:
            byte = np.dtype(np.uint8)
            pinned = {
                name: self._device.page_locked((column.read_bytes,), byte)
                for name, column in self._columns.items()
            }
        try:
            yield pinned
        finally:
            self._pinned.append(pinned)

    def _tell(self, topic: str, what: str) -> None:
        with self._lock:
            known = topic in self._told
            self._told.add(topic)
        if not known:
            log.warning("%s, corpus %r: %s", self._device.name, self._reader.corpus.name, what)


class _Column:
    """Sizes of one column's slots."""

    def __init__(self, column: ZarrColumn, reader: BlockReader) -> None:
        self.shape, self.dtype = column.shape, column.dtype
        self.row_items = math.prod(column.shape)
        self.unit = np.dtype(f"u{math.gcd(8, column.row_bytes)}")  # a gather copies unit by unit
        self.slot_rows = aligned_rows(reader.block_rows, column.row_bytes)
        self.slot_bytes = self.slot_rows * column.row_bytes
        self.block_bytes = reader.block_rows * column.row_bytes
        self.read_bytes = reader.slot_rows(column) * column.row_bytes

    def slot(self, memory: Any, number: int) -> Any:
        """The memory of one block."""
        start = number * self.slot_bytes
        return memory[start : start + self.block_bytes]


def aligned_rows(rows: int, row_bytes: int) -> int:
    """`rows`, or up to an eighth more if slots then begin on pages, where cuFile needs no bounce buffer."""
    step = PAGE_BYTES // math.gcd(PAGE_BYTES, row_bytes)
    aligned = -(-rows // step) * step
    return aligned if aligned * 8 <= rows * 9 else rows


def _why_never_direct(reader: BlockReader) -> str | None:
    corpus = reader.corpus
    if corpus.format != "zarr":
        return f"the corpus is in the format {corpus.format!r}"
    if corpus.layout.codec is not None:
        return f"blocks are compressed ({corpus.layout.codec})"
    return None


def _why_not_direct(reader: BlockReader) -> str:
    corpus = reader.corpus
    if corpus.tier.encrypted:
        return f"tier {corpus.tier.name!r} is encrypted, and their shard is in no node cache"
    return f"their shard is in no node cache, and has no file on {corpus.tier.kind} tier {corpus.tier.name!r}"


class SlotFences:
    """For each slot, the events behind the last gathers that read it, one for each stream."""

    def __init__(self, count: int) -> None:
        self._events: list[dict[int, Event]] = [{} for _ in range(count)]

    def used(self, slots: Iterable[int], stream: int, event: Event) -> None:
        """Note that work on `stream` up to `event` reads these slots; later events cover earlier ones."""
        for slot in slots:
            self._events[slot][stream] = event

    def wait(self, slot: int) -> None:
        """Wait until nothing reads the slot; nobody may begin to meanwhile."""
        events, self._events[slot] = self._events[slot], {}
        for event in events.values():
            event.synchronize()


def _finish(fences: SlotFences, files: RawFiles, count: int, process: int) -> None:
    if os.getpid() != process:  # a forked child has neither the GPU nor these files
        return
    for slot in range(count):
        fences.wait(slot)
    files.close()
