"""The loader: batches of a corpus for one rank, in an order that is known in advance.

Invariant: what a training sees is a function of (corpus version, seed, epoch, lanes, shuffle) alone. Cache,
tier, device, threads and the number of ranks change how fast it comes, never what comes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from loaders.ranks import choose_lanes, find_rank
from loaders.slots import Batch, HostSlots, Slots
from loaders.state import LoaderState
from loaders.stats import LoaderStats
from loaders.window import WindowFeed, slots_needed
from policies import Order
from policies.regime import bound
from tiering.cache import NodeCache
from tiering.corpus import Corpus
from tiering.errors import Conflict, UsageError
from tiering.reader import BlockReader

Transform = Callable[[Batch], Any]


class Loader:
    """Iterates over the batches of an epoch: ``for batch in loader: batch["tokens"]``.

    Each `for` is one epoch; the next one begins by itself after the last batch. A loop that is left early
    begins the same epoch anew, unless a state was loaded.

    Args:
        corpus: the corpus, on the tier to read from.
        batch_size: rows of a batch of this rank.
        seed: of the order.
        shuffle: ``window`` or ``none``.
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
        io_threads: blocks that are read at a time.

    Batches are ``{column: array}``: dtype as stored, shape ``[batch_size, *shape]``; lane by lane, so that the
    batches of all ranks, joined in the order of the ranks, are the same for every world size.

    Raises:
        UsageError: an argument does not fit the corpus or the others.
    """

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
        io_threads: int = 4,
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
        self._reader = BlockReader(corpus, columns, cache)
        lanes = choose_lanes(lanes, batch_size, self.world_size)
        self._set_order(_order(corpus, seed, shuffle, lanes, group_shards, window_blocks))
        self._slots_used: Slots | None = None
        self._epoch = 0
        self._position = 0
        self._resume = False
        self._epochs_run = 0
        self.stats = LoaderStats(0, self._bound())

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        shortest, longest = self._lane_rows()
        return shortest // self._step if self.drop_last else -(-longest // self._step)

    def __iter__(self) -> Iterator[Any]:
        if not self._resume:
            self._position = 0
        self._resume = False
        return self._run()

    @property
    def order(self) -> Order:
        """The order the rows come in."""
        return self._order

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch."""
        if epoch < 0:
            raise UsageError(f"epoch = {epoch} is negative")
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
        self._set_order(_order(self.corpus, wanted.seed, wanted.mode, lanes, wanted.group, wanted.window))
        self._slots_used = None
        self._epoch, self._position, self._resume = wanted.epoch, wanted.position, True

    def _run(self) -> Iterator[Any]:
        lanes = self._order.rank_lanes(self.rank, self.world_size)
        shortest, longest = self._lane_rows()
        end = shortest - shortest % self._step if self.drop_last else longest
        self.stats = stats = LoaderStats(self._epoch, self._bound())
        self._reader.new_epoch()
        counts = self._reader.counts
        counts.reset()
        begun = time.perf_counter()
        with WindowFeed(
            self._order, self._slots(), self._epoch, lanes, self._position, self._threads
        ) as feed:
            while self._position < end:
                batch = feed.batch(self._position, min(self._position + self._step, end))
                self._position += self._step
                stats.rows += len(next(iter(batch.values())))
                stats.batches += 1
                stats.stall_seconds = feed.stall_seconds
                stats.seconds = time.perf_counter() - begun
                stats.bytes_needed, stats.bytes_fetched = counts.bytes_needed, counts.bytes_fetched
                stats.damaged = list(counts.damaged)
                if self._position >= end:
                    self._epoch, self._position = self._epoch + 1, 0
                    self._epochs_run += 1
                    yield self._handed_out(batch)
                    return
                yield self._handed_out(batch)

    def _handed_out(self, batch: Batch) -> Any:
        return batch if self.transform is None else self.transform(batch)

    def _slots(self) -> Slots:
        if self._slots_used is None:
            lanes = self._order.lanes // self.world_size
            count = slots_needed(lanes, self._order.window_blocks)
            if self._device == "cpu":
                self._slots_used = HostSlots(self._reader, count)
            else:
                from loaders.gpu import CudaSlots

                self._slots_used = CudaSlots(self._reader, count, self._device)
        return self._slots_used

    def _set_order(self, order: Order) -> None:
        self._order = order
        self._step = self.batch_size * self.world_size // order.lanes
        shortest, _ = self._lane_rows()
        if self.drop_last and shortest < self._step:
            raise UsageError(
                f"corpus {self.corpus.name!r} has {self.corpus.rows} rows, too few for one batch of "
                f"{self.batch_size} on each of {self.world_size} ranks",
                hint="Give a smaller batch_size, or drop_last=False",
            )

    def _lane_rows(self) -> tuple[int, int]:
        """Rows of the shortest and the longest lane; the same in every epoch."""
        return self.corpus.rows // self._order.lanes, -(-self.corpus.rows // self._order.lanes)

    def _bound(self) -> float:
        cache = self._reader.cache
        if cache is None:
            return 0.0
        total = self._reader.stored_bytes
        if self._epochs_run:
            return bound(cache.capacity_bytes, total, self._epochs_run)
        return cache.resident_bytes(self._reader.digests) / total


def _order(
    corpus: Corpus, seed: int, mode: str, lanes: int, group_shards: int, window_blocks: int | None
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
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
