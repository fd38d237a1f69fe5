"""Batches that the host reads, on a GPU: page-locked memory, copied one batch ahead of the training.

Invariant: page-locked memory is not filled again before its copy is over, and memory of the GPU not before
what was queued on the training's stream, when that memory was let go, is over.

The copy of a batch is queued on a stream of its own when the batch before is handed out, behind all that the
training's stream has been given until then; so it runs beside the step on that batch. Where the next batch is
not read yet, it is copied when it is asked for.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from typing import Final

from loaders.gpu_device import Device, Event
from loaders.host import HostFeed
from loaders.slots import Batch
from tiering.closing import Closing

MOST_COPYING: Final = 8
"""Batches whose copies may be under way, before the host waits for a GPU that lags behind."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """One batch on its way."""

    start: int
    stream: int
    host: Batch
    arrays: Batch
    copied: Event


class GpuFeed(Closing):
    """The batches of a feed, on a device. Use as a context manager.

    Args:
        feed: into memory of `Device.page_locked`; it is closed with this one.
        device: where batches go.
        stop: position where every lane ends, if it has so many rows.
        step: positions of a batch.
    """

    def __init__(self, feed: HostFeed, device: Device, stop: int, step: int) -> None:
        self._feed, self._device, self._stop, self._step = feed, device, stop, step
        self._next: _Copy | None = None
        self._copying: deque[_Copy] = deque()  # whose memory on the host may still be read
        self._process = os.getpid()

    @property
    def stall_seconds(self) -> float:
        """How long the caller of `batch` waited for bytes, so far."""
        return self._feed.stall_seconds

    def close(self) -> None:
        """Wait for copies, and stop reading. Idempotent; a forked child has no copies."""
        self._next = None
        if self._process == os.getpid():
            self._forget(0)
        self._feed.close()

    def batch(self, start: int, stop: int) -> Batch:
        """See `Feed.batch`: arrays of the device, which later work of the current stream finds filled."""
        with self._device.active():
            self._forget(MOST_COPYING - 2)
            copy, stream = self._next, self._device.stream()
            if copy is None or copy.start != start:
                copy = self._begin(self._feed.batch(start, stop), start, stream)
            elif copy.stream != stream:  # its arrays are of a stream that the training has left
                copy = self._begin(copy.host, start, stream)
            self._next = None
            self._device.wait(copy.copied)
            end = min(stop + self._step, self._stop)
            if stop < end and self._feed.is_ready(end):
                self._next = self._begin(self._feed.batch(stop, end), stop, stream)
            return copy.arrays

    def _forget(self, most: int) -> None:
        """Let go of what was copied; wait where more than `most` copies are under way."""
        while self._copying and (len(self._copying) > most or self._copying[0].copied.done):
            self._copying.popleft().copied.synchronize()

    def _begin(self, host: Batch, start: int, stream: int) -> _Copy:
        arrays, copied = self._device.upload(host)
        copy = _Copy(start, stream, host, arrays, copied)
        self._copying.append(copy)
        return copy
