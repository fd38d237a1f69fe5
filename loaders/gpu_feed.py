"""Batches that the host reads, on a GPU: page-locked memory, copied a few batches ahead of the training.

Invariant: page-locked memory is not filled again before its copy is over; memory of the GPU not before what
was queued on the training's stream, when that memory was let go, is over; and what was not handed out is let
go behind its copy.

Copies are queued on a stream of their own, behind all that the training's stream was given before; so they
run beside the step on the batch that is handed out. Several batches that are read already go together: each
call of CUDA gives up the interpreter, which threads that read want too. A batch that is not read yet is
copied when it is asked for.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from typing import Final

from loaders.feed import Feed
from loaders.gpu_device import Device, Event
from loaders.host import HostFeed
from loaders.slots import Batch

TOGETHER: Final = 4
"""Batches at most that are copied together."""
MOST_COPYING: Final = 4
"""Such copies that may be under way, before the host waits for a GPU that lags behind."""


@dataclass(slots=True)
class _Copy:
    """Batches on their way."""

    stream: int
    host: list[Batch]
    copied: Event
    waited: bool = False
    """Whether the stream waits for it."""


class GpuFeed(Feed):
    """The batches of a feed, on a device. Use as a context manager.

    Args:
        feed: into memory of `Device.page_locked`; it is closed with this one.
        device: where batches go.
        stop: position where every lane ends, if it has so many rows.
        step: positions of a batch.
    """

    def __init__(self, feed: HostFeed, device: Device, stop: int, step: int) -> None:
        self._feed, self._device, self._stop, self._step = feed, device, stop, step
        self._position = 0  # batches that begin before were taken from the feed
        self._next: deque[tuple[Batch, Batch, _Copy]] = deque()  # on the host, on the device, and their copy
        self._copying: deque[_Copy] = deque()  # whose memory on the host may still be read
        self._process = os.getpid()

    @property
    def stall_seconds(self) -> float:
        """How long the caller of `batch` waited for bytes, so far."""
        return self._feed.stall_seconds

    def close(self) -> None:
        """Wait for copies, and stop reading. Idempotent; a forked child has no copies."""
        if self._process == os.getpid():
            self._forget(0)
        self._next.clear()
        self._feed.close()

    def batch(self, start: int, stop: int) -> Batch:
        """See `Feed.batch`: arrays of the device, which later work of the current stream finds filled."""
        with self._device.active():
            stream = self._device.stream()
            if not self._next:
                self._begin([self._feed.batch(start, stop)], stream)
                self._position = stop
            elif self._next[0][2].stream != stream:  # arrays are of a stream that the training has left
                self._forget(0)  # or that stream could use their memory for others while it is filled
                host = [batch for batch, _, _ in self._next]
                self._next.clear()
                self._begin(host, stream)
            _, arrays, copy = self._next.popleft()
            if not copy.waited:
                self._device.wait(copy.copied)
                copy.waited = True
            if len(self._next) <= 1:
                self._copy_ahead(stream)
            return arrays

    def _copy_ahead(self, stream: int) -> None:
        """Begin to copy the batches that come next, as far as they are read."""
        host: list[Batch] = []
        while len(host) < TOGETHER and self._position < self._stop:
            end = min(self._position + self._step, self._stop)
            if not self._feed.is_ready(end):
                break
            host.append(self._feed.batch(self._position, end))
            self._position = end
        if host:
            self._begin(host, stream)

    def _begin(self, host: list[Batch], stream: int) -> None:
        self._forget(MOST_COPYING - 1)
        arrays, copied = self._device.upload(host)
        copy = _Copy(stream, host, copied)
        self._copying.append(copy)
        self._next.extend((batch, made, copy) for batch, made in zip(host, arrays, strict=True))

    def _forget(self, most: int) -> None:
        """Let go of what was copied; wait where more than `most` copies are under way."""
        while self._copying and (len(self._copying) > most or self._copying[0].copied.done):
            self._copying[0].copied.synchronize()  # before its memory is let go
            self._copying.popleft()
