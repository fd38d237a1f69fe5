"""Batches of several corpora, mixed in exact proportion, for one rank.

Invariant: what a training sees is a function of (corpus versions, weights and their changes, seed, lanes,
shuffle, affinity) alone. Each corpus is gone through epoch by epoch, by its own lanes: no row of an epoch is
left out or comes twice, whatever the weights are and wherever they change.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import policies
from loaders.buffers import BatchBuffers
from loaders.feed import Feed
from loaders.feeds import BATCHES_KEPT, threads_of
from loaders.host import HostFeed
from loaders.mixed import MixedPlanner, blocks_kept, mixture_ahead
from loaders.mixing import Weights, check_columns, listed, mixed, orders_of, phases_of, step_number
from loaders.mixture_state import MixtureState
from loaders.mixture_stats import CorpusStats, MixtureStats
from loaders.ranks import choose_lanes, find_rank
from loaders.tally import Tally
from loaders.transform_worker import Transform
from loaders.whole import WholeBlocks
from tiering.arguments import need, whole
from tiering.cache import NodeCache
from tiering.corpus import Corpus, need_corpus
from tiering.errors import Conflict, FormatError, UsageError
from tiering.reader import BlockReader

if TYPE_CHECKING:
    from loaders.gpu import Gpu

SOURCE: Final = "source"
MAX_CORPORA: Final = 127  # numbers of an int8
_MAX_POSITION: Final = 1 << 49
_OF_THIS_PROCESS: Final = frozenset(
    {"_process", "_readers", "_buffers", "_planner", "_feed", "_loop", "_gpu"}
)


class Mixture:
    """Iterates over batches of several corpora: ``for batch in mixture: batch["tokens"]``.

    After every position of the lanes each corpus has its exact share of the rows to within one. It never
    ends, unless `steps` are given: a corpus that ends begins its next epoch. A loop goes on where the one
    before was left, or a state was taken. One loop at a time: a new one and `load_state_dict` end the one
    before, whose next batch is then a `UsageError`.

    A pickled mixture goes on where it stood. The copy in a forked child has threads of its own.

    Args:
        corpora: by name, on the tiers to read from, at most 127; all of the same columns.
        weights: the share of each in the rows, in any unit; with 0 it rests.
        batch_size: rows of a batch of this rank.
        schedule: other weights from the batch of this number on, counted from 0; they begin with any batch
            and hold until the next change. Each corpus goes on where it stood.
        steps: batches after which it ends, counted from the very first one; by default none.
        seed: of the orders; each corpus has one of its own, made of it and its number.
        source: whether batches have a column ``source``, int8 ``[batch_size]``: the number of each row's
            corpus, in the order of `corpora`.
        shuffle, rank, world_size, columns, cache, transform, lanes, group_shards, window_blocks, affinity,
            prefetch, verify, device: as of `Loader`. A window of each corpus is of `window_blocks`.

    Batches are ``{column: array}``: dtype as stored, shape ``[batch_size, *shape]``; lane by lane, so that
    the batches of all ranks, joined in the order of the ranks, are the same for every world size.

    Raises:
        UsageError: an argument does not fit the corpora or the others.
    """

    _readers: dict[str, BlockReader]
    _buffers: BatchBuffers | None
    _planner: MixedPlanner | None
    _feed: Feed | None
    _gpu: Gpu | None
    _loop: object
    _epochs: list[int]

    def __init__(
        self,
        corpora: Mapping[str, Corpus],
        weights: Weights,
        batch_size: int = 256,
        *,
        schedule: Mapping[int, Weights] | None = None,
        steps: int | None = None,
        seed: int = 7,
        shuffle: str = "window",
        rank: int | None = None,
        world_size: int | None = None,
        columns: Sequence[str] | None = None,
        cache: NodeCache | None = None,
        source: bool = False,
        transform: Transform | None = None,
        lanes: int | None = None,
        group_shards: int = 8,
        window_blocks: int | None = None,
        affinity: str = "global",
        prefetch: int | str = "auto",
        verify: str = "first",
        device: str = "cpu",
    ) -> None:
        batch_size = whole(batch_size, "batch_size", "batch_size=256")
        need(corpora, Mapping, "corpora", "{'web': open_corpus(tier, 'web')}")
        for corpus in corpora.values():
            need_corpus(corpus)
        if batch_size < 1:
            raise UsageError(f"batch_size = {batch_size} must be at least 1")
        if steps is not None and steps < 0:
            raise UsageError(f"steps = {steps} must be at least 0")
        if not 1 <= len(corpora) <= MAX_CORPORA:
            raise UsageError(f"{len(corpora)} corpora cannot be mixed", hint=f"Give 1 to {MAX_CORPORA}")
        self.corpora = dict(corpora)
        self.batch_size = batch_size
        self.steps = steps
        self.rank, self.world_size = find_rank(rank, world_size)
        self.transform = transform
        self._threads = threads_of(prefetch)
        self._columns = columns
        self._cache = cache
        self._verify = verify
        self.device = device
        self._source = source
        self._position = 0
        lanes = choose_lanes(lanes, batch_size, self.world_size)
        self._seed = seed
        orders = orders_of(corpora, seed, shuffle, lanes, group_shards, window_blocks, affinity)
        stride = batch_size * self.world_size // lanes
        later = {step_number(step, least=1): some for step, some in (schedule or {}).items()}
        phases = [(step * stride, listed(some, corpora)) for step, some in later.items()]
        self._order = mixed(orders, [(0, listed(weights, corpora)), *phases])
        self._open()
        self._begin_stats()

    def __len__(self) -> int:
        """Batches from the very first one to the end; TypeError where there is none."""
        if self.steps is None:
            raise TypeError("a mixture without steps has no length; for example steps=10_000")
        return self.steps

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Any]:
        if self._process != os.getpid():
            self._open()
        self._end_loop()
        loop = self._loop = object()
        for reader in self._readers.values():
            reader.new_epoch()
            reader.counts.reset()
        self._begin_stats()
        tally, begun = Tally(), time.perf_counter()
        try:
            while self._loop is loop and self._process == os.getpid():
                stop = self._position + self._stride
                if stop > self._end:
                    return
                feed = self._running_feed()
                batch = feed.batch(self._position, stop)
                if self._source:
                    corpora = self._order.corpora(self._lanes, self._position, stop)
                    source = corpora.astype(np.int8).reshape(-1)
                    batch[SOURCE] = source if self._gpu is None else self._gpu.array(source)
                handed_out = batch if self.transform is None else self.transform(batch)
                self._position = stop
                self._batches += 1
                self._seconds = time.perf_counter() - begun
                tally.add(len(next(iter(batch.values()))), self._seconds, self._stalled())
                yield handed_out
        finally:
            if self._loop is loop and self._process == os.getpid():
                self._end_loop()
        raise UsageError(
            "this loop was ended by a newer one, load_state_dict or a fork",
            hint="Begin a new loop, or make a mixture for each loop",
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in _OF_THIS_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()
        self._begin_stats()

    @property
    def order(self) -> policies.Mixture:
        """Which row of which corpus stands where; its changes are at positions of the lanes."""
        return self._order

    @property
    def step(self) -> int:
        """Batches that were handed out since the very first one, in the size they have now."""
        return self._position // self._stride

    @property
    def stats(self) -> MixtureStats:
        """What was done since the loop began, as of now."""
        drawn, before = (
            np.sum([self._order.drawn(lane, position) for lane in self._lanes], axis=0)
            for position in (self._position, self._first)
        )
        places = [self._order.places(lane, self._position) for lane in self._lanes]
        corpora = {}
        for number, (name, reader) in enumerate(self._readers.items()):
            counts = reader.counts
            corpora[name] = CorpusStats(
                max(place[number][0] for place in places),
                int(drawn[number] - before[number]),
                counts.bytes_needed,
                counts.bytes_fetched,
                tuple(counts.damaged),
            )
        return MixtureStats(self._batches, self._seconds, self._stalled(), corpora)

    def set_weights(self, weights: Weights, step: int | None = None) -> None:
        """Other weights from a batch on, by default the next one; a loop that runs goes on with them.

        Later changes that were planned are dropped; states hold this one.

        Raises:
            UsageError: they are no weights of these corpora, or the batch was handed out before.
        """
        number = self.step if step is None else step_number(step, least=0)
        if number < self.step:
            raise UsageError(f"batch {step} was handed out before; the next one is {self.step}")
        # From where it stands: a state of another batch size is at no multiple of the stride.
        position = self._position + (number - self.step) * self._stride
        earlier = [(start, some) for start, some in phases_of(self._order) if start < position]
        self._order = mixed(self._order.orders, [*earlier, (position, listed(weights, self.corpora))])
        self._end_feed()

    def state_dict(self) -> dict[str, Any]:
        """Where the mixture stands, after the last batch it handed out; small enough for JSON."""
        order = self._order.orders[0]
        return MixtureState(
            position=self._position,
            seed=self._seed,
            lanes=order.lanes,
            mode=order.mode,
            group=order.group_shards,
            window=order.window_blocks,
            affinity=order.affinity,
            corpora=self._manifests(),
            weights=phases_of(self._order),
        ).to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken, also by another number of ranks, with the weights of the state.

        Raises:
            FormatError: it is not a state. Conflict: it is of other corpora or versions.
            UsageError: batch or world size do not fit the lanes of the state.
        """
        wanted = MixtureState.from_dict(state)
        if list(wanted.corpora.items()) != list(self._manifests().items()):
            raise Conflict(
                f"the state is of {wanted.corpora}, not {self._manifests()}",
                hint="Give the corpora in that order, by those names, in the versions that it began with",
            )
        if wanted.position >= _MAX_POSITION:
            raise FormatError(f"a mixture's state beyond the end: {dict(state)!r:.200}")
        lanes = choose_lanes(wanted.lanes, self.batch_size, self.world_size)
        orders = orders_of(
            self.corpora, wanted.seed, wanted.mode, lanes, wanted.group, wanted.window, wanted.affinity
        )
        order = mixed(orders, wanted.weights)
        self._end_loop()
        self._order, self._buffers = order, None
        self._seed, self._position = wanted.seed, wanted.position
        self._begin_stats()

    @property
    def _stride(self) -> int:
        """Rows of each lane in a batch."""
        return self.batch_size * self.world_size // self._order.lanes

    @property
    def _lanes(self) -> range:
        return self._order.rank_lanes(self.rank, self.world_size)

    @property
    def _end(self) -> int:
        """Position after which there is no batch."""
        return _MAX_POSITION if self.steps is None else min(self.steps * self._stride, _MAX_POSITION)

    def _manifests(self) -> dict[str, str]:
        return {name: corpus.record.manifest[:16] for name, corpus in self.corpora.items()}

    def _open(self) -> None:
        """Make what belongs to this process alone."""
        self._process = os.getpid()
        self._readers = {
            name: BlockReader(corpus, self._columns, self._cache, self._verify)
            for name, corpus in self.corpora.items()
        }
        check_columns(self._readers, SOURCE if self._source else None)
        self._loop = None
        self._buffers = self._planner = self._feed = self._gpu = None

    def _running_feed(self) -> Feed:
        """The feed that reads from here on; new epochs are told to the readers."""
        if self._feed is None or self._planner is None:
            lanes, end = self._lanes, self._end - (self._end - self._position) % self._stride
            ahead = mixture_ahead(self._order, self._stride)
            if self._buffers is None:
                reader, new = next(iter(self._readers.values())), None
                if self.device != "cpu":
                    from loaders.gpu import Gpu

                    self._gpu = self._gpu or Gpu(reader, self.device, mixed=True)
                    new = self._gpu.device.page_locked
                rows = len(lanes) * self._stride
                self._buffers = BatchBuffers(reader.columns, rows, ahead + BATCHES_KEPT, new)
            self._planner = MixedPlanner(self._order, lanes, self._position, end, self._stride)
            self._epochs = list(self._planner.epochs)
            blocks = [
                WholeBlocks(reader, order.shard_rows, blocks_kept(order, len(lanes)))
                for reader, order in zip(self._readers.values(), self._order.orders, strict=True)
            ]
            feed = HostFeed(
                self._planner, blocks, self._buffers, self._position, end, self._stride, ahead, self._threads
            )
            self._feed = feed if self._gpu is None else self._gpu.feed(feed, end, self._stride)
        for number, reader in enumerate(self._readers.values()):
            if self._planner.epochs[number] > self._epochs[number]:
                self._epochs[number] = self._planner.epochs[number]
                reader.new_epoch()
        return self._feed

    def _end_feed(self) -> None:
        feed, self._feed, self._planner = self._feed, None, None
        if feed is not None and self._process == os.getpid():
            feed.close()
            self._stall_seconds += feed.stall_seconds

    def _end_loop(self) -> None:
        """Stop the reads of a loop, and keep no file open."""
        self._loop = None
        self._end_feed()
        if self._process == os.getpid():
            for reader in self._readers.values():
                reader.rest()

    def _stalled(self) -> float:
        return self._stall_seconds + (self._feed.stall_seconds if self._feed else 0.0)

    def _begin_stats(self) -> None:
        self._first, self._batches, self._seconds, self._stall_seconds = self._position, 0, 0.0, 0.0
