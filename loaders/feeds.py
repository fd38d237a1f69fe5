"""What reads for one loader in one process: its reader, the memory of its batches, and feeds over them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final

from loaders.arrow_slots import ArrowSlots
from loaders.buffers import BatchBuffers
from loaders.feed import Feed
from loaders.host import HostFeed, batches_ahead
from loaders.pieces import PiecePlanner
from loaders.slots import Slots
from loaders.whole import WholeBlocks
from loaders.window import WindowFeed, slots_needed
from policies import Order
from tiering.arguments import whole
from tiering.cache import NodeCache
from tiering.corpus import Corpus
from tiering.errors import UsageError
from tiering.reader import BlockReader

if TYPE_CHECKING:
    from loaders.gpu import Gpu

BATCHES_KEPT: Final = 16  # that a training may refer to while their memory waits to be used again


class Feeds:
    """Opens feeds, one at a time; what one of them filled the next one fills again.

    Args:
        corpus, columns, cache, verify: see `BlockReader`.
        device: ``cpu`` or ``cuda:N``.
        threads: the most that read ahead; None for as many as help.
        ragged: whether batches are of Arrow rows (`loaders.arrow_slots`).
    """

    def __init__(
        self,
        corpus: Corpus,
        columns: Sequence[str] | None,
        cache: NodeCache | None,
        verify: str,
        device: str,
        threads: int | None,
        *,
        ragged: bool = False,
    ) -> None:
        self.reader = BlockReader(corpus, columns, cache, verify, ragged=ragged)
        self._ragged = ragged
        self._device, self._threads = device, threads
        self._buffers: BatchBuffers | None = None
        self._slots: Slots | None = None
        self._gpu: Gpu | None = None
        self._made_for: tuple[Order, int] | None = None

    def open(self, order: Order, epoch: int, lanes: range, start: int, stop: int, step: int) -> Feed:
        """A feed of positions [start, stop) of some lanes, `step` positions a batch."""
        if self._made_for is None or self._made_for[0] is not order or self._made_for[1] != step:
            self._buffers = self._slots = None
            self._made_for = order, step
        gpu = None if self._device == "cpu" else self._open_gpu()
        if self._ragged or (gpu is not None and gpu.direct):
            return WindowFeed(order, self._slots_for(order, lanes), epoch, lanes, start, stop, self._threads)
        ahead = batches_ahead(order, step)
        if self._buffers is None:
            new = None if gpu is None else gpu.device.page_locked
            self._buffers = BatchBuffers(self.reader.columns, len(lanes) * step, ahead + BATCHES_KEPT, new)
        planner = PiecePlanner(order, epoch, lanes, start, stop)
        blocks = WholeBlocks(self.reader, order.shard_rows, len(lanes) + 1)
        feed = HostFeed(planner, [blocks], self._buffers, start, stop, step, ahead, self._threads)
        return feed if gpu is None else gpu.feed(feed, stop, step)

    def place(self) -> AbstractContextManager[Any]:
        """Where this thread's batches are made, to be entered by another that works on them."""
        if self._device == "cpu":
            return nullcontext()
        from loaders.gpu_device import same_stream

        return same_stream(self._device)

    def _slots_for(self, order: Order, lanes: range) -> Slots:
        if self._slots is None:
            count = slots_needed(order, len(lanes))
            if self._ragged:
                self._slots = ArrowSlots(self.reader, count)
            else:
                self._slots = self._open_gpu().slots(count)
        return self._slots

    def _open_gpu(self) -> Gpu:
        if self._gpu is None:
            from loaders.gpu import Gpu

            self._gpu = Gpu(self.reader, self._device)
        return self._gpu


def threads_of(prefetch: int | str) -> int | None:
    """The most threads that may read, for a loader's ``prefetch``; None where it is left to the reads.

    Raises:
        UsageError: it is neither ``auto`` nor a number above 0.
    """
    if prefetch == "auto":
        return None
    if isinstance(prefetch, str) or whole(prefetch, "prefetch", "prefetch='auto'") < 1:
        raise UsageError(f"prefetch = {prefetch!r} is neither 'auto' nor at least 1", hint="Give prefetch=8")
    return int(prefetch)
