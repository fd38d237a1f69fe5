"""The loader: batches of a corpus for one rank, in an order that is known in advance.

Invariant: what a training sees is a function of (corpus version, seed, epoch, lanes, shuffle, affinity)
alone. Cache, tier, device, threads and the number of ranks change how fast it comes, never what comes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

from loaders.buffers import BatchBuffers
from loaders.host import HostFeed, batches_ahead
from loaders.pieces import PiecePlanner
from loaders.ranks import choose_lanes, find_rank
from loaders.slots import Batch, Slots
from loaders.state import LoaderState
from loaders.stats import LoaderStats
from loaders.whole import WholeBlocks
from loaders.window import WindowFeed, slots_needed
from policies import Order
from policies.bounds import bound
from tiering.cache import NodeCache
from tiering.corpus import Corpus
from tiering.errors import Conflict, FormatError, UsageError
from tiering.reader import BlockReader

Transform = Callable[[Batch], Any]

MAX_EPOCHS: Final = 1 << 32
BATCHES_KEPT: Final = 16  # that a training may refer to while their memory waits to be used again
_OF_THIS_PROCESS: Final = frozenset({"_process", "_reader", "_slots_used", "_buffers", "_feed"})


class Loader:
    """Iterates over the batches of an epoch: ``for batch in loader: batch["tokens"]``.

    Each `for` is one epoch; the next one begins by itself after the last batch. A loop that is left early
    begins the same epoch anew, unless a state was loaded. One loop at a time: a new one, `set_epoch` and
    `load_state_dict` end the one before, whose next batch is then a `UsageError`.

    A pickled loader goes on where it stood. The copy in a forked child has threads of its own.

    Args:
        corpus: the corpus, on the tier to read from.
        batch_size: rows of a batch of this rank.
        seed: of the order.
        shuffle: ``window``; ``none``, the stored order; or ``full``, all rows permuted, which reads a whole
            block for each row: for corpora with few rows a block, near at hand.
        rank: of this process; by default from the environment of torchrun, else 0.
        world_size: how many ranks there are.
        columns: names; all by default. Only columns of fixed shape.
        cache: the node's cache; None reads the tier alone.
        device: ``cpu``, or ``cuda:N`` for arrays in that GPU's memory (cupy, DLPack), read by kvikio.
        transform: called with each batch; what it returns is handed out.
        drop_last: leave out the rows at the end of an epoch that fill no batch.
        lanes: slices of an epoch, a multiple of every world size that will ever read it; by default the
            largest power of two up to 64 that divides the global batch. Kept in the state.
        group_shards: shards whose blocks are shuffled together.
        window_blocks: blocks of a lane whose rows are shuffled together; by default 64 over all lanes.
        affinity: ``global`` deals shards to lanes anew each epoch; with ``lane`` a lane keeps its rows, so
            that a node that keeps its ranks finds them in its cache.
        io_threads: the most threads that read ahead; more than one where reads turn out slow.
        verify: ``first``, the CRC of a block in a local file, uncompressed, is checked when it is first read
            and anew after the file changed; ``always``, in every epoch.

    Batches are ``{column: array}``: dtype as stored, shape ``[batch_size, *shape]``; lane by lane, so that
    the batches of all ranks, joined in the order of the ranks, are the same for every world size.

    Raises:
        UsageError: an argument does not fit the corpus or the others.
    """

    _slots_used: Slots | None
    _buffers: BatchBuffers | None
    _feed: HostFeed | WindowFeed | None

    def __init__(
        self,
        corpus: Corpus,
        batch_size: int = 256,
        *,
        seed: int = 7,
        shuffle: str = "window",
        rank: int | None = None,
        world_size: int | None = None,
        columns: Sequence[str] | None = None,
        cache: NodeCache | None = None,
        device: str = "cpu",
        transform: Transform | None = None,
        drop_last: bool = True,
        lanes: int | None = None,
        group_shards: int = 8,
        window_blocks: int | None = None,
        affinity: str = "global",
        io_threads: int = 4,
        verify: str = "first",
    ) -> None:
        if batch_size < 1 or io_threads < 1:
            raise UsageError(f"batch_size = {batch_size} and io_threads = {io_threads} must be at least 1")
        self.corpus = corpus
        self.batch_size = batch_size
        self.rank, self.world_size = find_rank(rank, world_size)
        self.transform = transform
        self.drop_last = drop_last
        self._threads = io_threads
        self._device = device
        self._columns = columns
        self._cache = cache
        self._verify = verify
        self._epoch = 0
        self._position = 0
        self._resume = False
        self._epochs_run = 0
        lanes = choose_lanes(lanes, batch_size, self.world_size)
        self._order = self._fitting(
            _order(corpus, seed, shuffle, lanes, group_shards, window_blocks, affinity)
        )
        self._open()
        self.stats = LoaderStats(0, self._bound())

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        shortest, longest = self._lane_rows()
        return shortest // self._step if self.drop_last else -(-longest // self._step)

    def __iter__(self) -> Iterator[Any]:
        if self._process != os.getpid():
            self._open()
        self._end_loop()
        if not self._resume:
            self._position = 0
        self._resume = False
        self.stats = LoaderStats(self._epoch, self._bound())
        self._reader.new_epoch()
        self._reader.counts.reset()
        lanes = self._order.rank_lanes(self.rank, self.world_size)
        epoch, position, end = self._epoch, self._position, self._end()
        if position >= end:  # a state near the end, loaded by a loader with larger batches
            self._epoch, self._position = epoch + 1, 0
            return
        begun = time.perf_counter()
        with ExitStack() as stack:
            stack.callback(self._reader.rest)
            feed = self._new_feed(epoch, lanes, position, end)
            stack.enter_context(feed)
            self._feed = feed
            while self._feed is feed and self._process == os.getpid():
                batch = feed.batch(position, min(position + self._step, end))
                position += self._step
                rows = len(next(iter(batch.values())))
                handed_out = batch if self.transform is None else self.transform(batch)
                self._count(rows, feed, time.perf_counter() - begun)
                self._epoch, self._position = (epoch, position) if position < end else (epoch + 1, 0)
                self._epochs_run += position >= end
                yield handed_out
                if position >= end:
                    return
        raise UsageError(
            "this loop was ended by a newer one, set_epoch, load_state_dict or a fork",
            hint="Begin a new loop, or make a loader for each loop",
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in _OF_THIS_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._resume = self._position > 0
        self._open()

    @property
    def order(self) -> Order:
        """The order the rows come in."""
        return self._order

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch."""
        if not 0 <= epoch < MAX_EPOCHS:
            raise UsageError(f"epoch = {epoch} is not in [0, 2**32)")
        self._end_loop()
        self._epoch, self._position, self._resume = epoch, 0, False

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, after the last batch it handed out; small enough for JSON."""
        return LoaderState(
            epoch=self._epoch,
            position=self._position,
            seed=self._order.seed,
            lanes=self._order.lanes,
            mode=self._order.mode,
            group=self._order.group_shards,
            window=self._order.window_blocks,
            corpus=self.corpus.record.manifest[:16],
            affinity=self._order.affinity,
        ).to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken, also by another number of ranks.

        Raises:
            FormatError: it is not a state. Conflict: it is of another corpus or version.
            UsageError: batch or world size do not fit the lanes of the state.
        """
        wanted = LoaderState.from_dict(state)
        if wanted.corpus != self.corpus.record.manifest[:16]:
            raise Conflict(
                f"the state is of the manifest {wanted.corpus}, not {self.corpus.record.manifest[:16]}",
                hint="Open the version that the training began with: open_corpus(..., version=N)",
            )
        lanes = choose_lanes(wanted.lanes, self.batch_size, self.world_size)
        order = _order(
            self.corpus, wanted.seed, wanted.mode, lanes, wanted.group, wanted.window, wanted.affinity
        )
        if wanted.epoch >= MAX_EPOCHS or wanted.position > -(-self.corpus.rows // lanes):
            raise FormatError(f"a loader state beyond the end: {dict(state)!r:.200}")
        order = self._fitting(order)
        self._end_loop()
        self._order, self._slots_used, self._buffers = order, None, None
        self._epoch, self._position, self._resume = wanted.epoch, wanted.position, True

    @property
    def _step(self) -> int:
        """Rows of each lane in a batch."""
        return self.batch_size * self.world_size // self._order.lanes

    def _end(self) -> int:
        """Position at which the lanes end, counted from the present one in whole steps."""
        shortest, longest = self._lane_rows()
        return shortest - (shortest - self._position) % self._step if self.drop_last else longest

    def _count(self, rows: int, feed: HostFeed | WindowFeed, seconds: float) -> None:
        stats, counts = self.stats, self._reader.counts
        stats.rows += rows
        stats.batches += 1
        stats.seconds, stats.stall_seconds = seconds, feed.stall_seconds
        stats.bytes_needed, stats.bytes_fetched = counts.bytes_needed, counts.bytes_fetched
        stats.damaged = list(counts.damaged)

    def _open(self) -> None:
        """Make what belongs to this process alone."""
        self._process = os.getpid()
        self._reader = BlockReader(self.corpus, self._columns, self._cache, self._verify)
        self._slots_used = self._buffers = None
        self._feed = None

    def _end_loop(self) -> None:
        """Stop the reads of a loop that was not left, before its slots are used for others."""
        feed, self._feed = self._feed, None
        if feed is not None and self._process == os.getpid():
            feed.close()

    def _new_feed(self, epoch: int, lanes: range, start: int, stop: int) -> HostFeed | WindowFeed:
        if self._device != "cpu":
            return WindowFeed(self._order, self._slots(), epoch, lanes, start, stop, self._threads)
        ahead = batches_ahead(self._order, self._step)
        if self._buffers is None:
            rows = len(lanes) * self._step
            self._buffers = BatchBuffers(self._reader.columns, rows, ahead + BATCHES_KEPT)
        planner = PiecePlanner(self._order, epoch, lanes, start, stop)
        blocks = WholeBlocks(self._reader, self._order.shard_rows, len(lanes) + 1)
        return HostFeed(planner, [blocks], self._buffers, start, stop, self._step, ahead, self._threads)

    def _slots(self) -> Slots:
        if self._slots_used is None:
            from loaders.gpu import CudaSlots

            count = slots_needed(self._order, self._order.lanes // self.world_size)
            self._slots_used = CudaSlots(self._reader, count, self._device)
        return self._slots_used

    def _fitting(self, order: Order) -> Order:
        """The order, if an epoch of it has a batch."""
        step = self.batch_size * self.world_size // order.lanes
        if self.drop_last and self.corpus.rows // order.lanes < step:
            raise UsageError(
                f"corpus {self.corpus.name!r} has {self.corpus.rows} rows, too few for one batch of "
                f"{self.batch_size} on each of {self.world_size} ranks",
                hint="Give a smaller batch_size, or drop_last=False",
            )
        return order

    def _lane_rows(self) -> tuple[int, int]:
        """Rows of the shortest and the longest lane; the same in every epoch."""
        return self.corpus.rows // self._order.lanes, -(-self.corpus.rows // self._order.lanes)

    def _bound(self) -> float:
        """For this rank's part of the epoch to come, as if the cache had nothing else to do."""
        if self._cache is None:
            return 0.0
        lanes = self._order.rank_lanes(self.rank, self.world_size)
        rows = sum(max(0, self._order.lane_rows(0, lane) - self._position) for lane in lanes)
        needed = self._reader.stored_bytes * rows // self.corpus.rows
        if self._epochs_run or self.world_size > 1:  # other ranks may have filled the cache, or do so now
            limit = bound(self._cache.capacity_bytes, needed, 1)
        else:
            limit = bound(self._cache.resident_bytes(self._reader.digests), needed, 1)
        # In mode "full" a block is read for each of its rows, and need be fetched for one of them alone.
        return limit if self._order.mode != "full" else 1 - (1 - limit) / self._order.block_rows


def _order(
    corpus: Corpus,
    seed: int,
    mode: str,
    lanes: int,
    group_shards: int,
    window_blocks: int | None,
    affinity: str,
) -> Order:
    try:
        return Order(
            corpus.shard_rows,
            block_rows=corpus.contents.block_rows,
            seed=seed,
            mode=mode,
            lanes=lanes,
            group_shards=group_shards,
            window_blocks=window_blocks,
            affinity=affinity,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
