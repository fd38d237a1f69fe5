"""The loader: batches of a corpus for one rank, in an order that is known in advance.

Invariant: what a training sees is a function of (corpus version, seed, epoch, lanes, shuffle, affinity)
alone. Cache, tier, device, threads and the number of ranks change how fast it comes, never what comes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

from loaders.arrow_slots import ROWS
from loaders.collate import Collate, choose_collate, gives_rows, record_batch
from loaders.digest import RowsDigest, RowsHasher
from loaders.feed import Feed
from loaders.feeds import Feeds, threads_of
from loaders.foretold import Foreteller
from loaders.ranks import choose_lanes, find_rank
from loaders.state import LoaderState
from loaders.stats import LoaderStats
from loaders.subset import Rows, called, hit_bound, make_order, name_of
from loaders.tally import Tally
from loaders.transform_worker import Transform
from loaders.transforms import Work, Working
from policies import Order
from tiering.arguments import need, whole
from tiering.cache import NodeCache
from tiering.corpus import Corpus, need_corpus
from tiering.errors import Conflict, FormatError, UsageError
from tiering.layout.zarr import ZarrColumn
from tiering.schema import choose

MAX_EPOCHS: Final = 1 << 32
_OF_THIS_PROCESS: Final = frozenset({"_process", "_feeds", "_foreteller", "_feed", "_working"})


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
        rank: of this process; by default as `loaders.ranks` finds it.
        world_size: how many ranks there are.
        columns: names; all by default.
        collate: what becomes of rows whose lengths differ, in Arrow corpora: ``arrow``, batches are record
            batches; ``pad`` or `Pad`; ``pack`` or `Pack`; or a function of a record batch, whose result is
            handed out. Without it, columns of no fixed shape are refused.
        rows: those to hand out, all by default: a bool mask, shape ``[corpus.rows]``; row numbers, ascending;
            half-open ranges of them, ``[k, 2]``; or an expression of columns, which are read for it, such as
            ``pyarrow.compute.field("label") == 3``. Shards without any of them are not fetched.
        cache: the node's cache; None reads the tier alone.
        device: ``cpu``, or ``cuda:N`` for arrays in that GPU's memory (cupy, DLPack); see ``docs/gpu.md``.
        transform: called with each batch; what it returns is handed out.
        per_row: call it with each row instead, a dict by column; its results are joined: dicts by their
            keys, arrays and numbers stacked, all else as lists.
        workers: threads or processes for the transform; with 0 it runs in the training's thread.
        worker: ``thread``; or ``process``, for a transform that holds the interpreter's lock: it must be
            picklable, and the batch it gets is its own only while it runs.
        drop_last: leave out the rows at the end of an epoch that fill no batch.
        lanes: slices of an epoch, a multiple of every world size that will ever read it; by default the
            largest power of two up to 64 that divides the global batch. Kept in the state.
        group_shards: shards whose blocks are shuffled together.
        window_blocks: blocks of a lane whose rows are shuffled together; by default 64 over all lanes.
        affinity: ``global`` deals shards to lanes anew each epoch; with ``lane`` a lane keeps its rows, so
            that a node that keeps its ranks finds them in its cache.
        prefetch: how many blocks are read at a time at most; ``auto``: one where they come at the speed of a
            copy, four where they are slow, and more, up to 32, while the training waits for them.
        verify: ``first``, the CRC of a block in a local file, uncompressed, is checked when it is first read
            and anew after the file changed; ``always``, in every epoch.
        digest: keep count of what is handed out, for `digest`; costs a pass over every batch.

    Batches are ``{column: array}`` unless `collate` or `transform` make others: dtype as stored, shape
    ``[batch_size, *shape]``; lane by lane, so that the batches of all ranks, joined in the order of the
    ranks, are the same for every world size.

    Raises:
        UsageError: an argument does not fit the corpus or the others.
    """

    _feed: Feed | None
    _working: Working | None

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
        rows: Rows | None = None,
        collate: Collate = None,
        cache: NodeCache | None = None,
        device: str = "cpu",
        transform: Transform | None = None,
        per_row: bool = False,
        workers: int = 0,
        worker: str = "thread",
        drop_last: bool = True,
        lanes: int | None = None,
        group_shards: int = 8,
        window_blocks: int | None = None,
        affinity: str = "global",
        prefetch: int | str = "auto",
        verify: str = "first",
        digest: bool = False,
    ) -> None:
        need_corpus(corpus)
        batch_size = whole(batch_size, "batch_size", "batch_size=256")
        if cache is not None:
            need(cache, NodeCache, "cache", "cache=NodeCache('/mnt/nvme/cache', '500GB')")
        if batch_size < 1:
            raise UsageError(f"batch_size = {batch_size} must be at least 1")
        self.corpus = corpus
        self.batch_size = batch_size
        self.rank, self.world_size = find_rank(rank, world_size)
        self._work = Work(transform, per_row, workers, worker)
        schema = choose(corpus.schema, columns, f"corpus {corpus.name!r}")
        self._collate = choose_collate(collate, schema)
        self._is_arrow = self._collate is not None and corpus.format == "arrow"
        if self._collate is not None and device != "cpu":
            raise UsageError(f"collate gives no batches on device {device!r}", hint="Use device='cpu'")
        if device != "cpu" and workers and worker == "process":
            raise UsageError(f"processes get no batches on device {device!r}", hint="Use worker='thread'")
        if digest and (self._is_arrow or device != "cpu"):
            raise UsageError(
                "digest needs columns of fixed shape in host memory", hint="Leave digest=True out"
            )
        if self._collate is not None and per_row and not gives_rows(self._collate):
            raise UsageError("per_row needs batches that have rows", hint="Use collate='arrow' or 'pad'")
        self.drop_last = drop_last
        self._threads = threads_of(prefetch)
        self.device = device
        self._columns = columns
        self._cache = cache
        self._verify = verify
        self._digests = digest
        self._digest: RowsDigest | None = None
        self._epoch = 0
        self._position = 0
        self._resume = False
        self._epochs_run = 0
        self._order = self._fitting(
            make_order(
                corpus,
                rows,
                cache,
                seed=seed,
                mode=shuffle,
                lanes=choose_lanes(lanes, batch_size, self.world_size),
                group_shards=group_shards,
                window_blocks=window_blocks,
                affinity=affinity,
            )
        )
        self._rows_name = name_of(self._order)
        self._open()
        self.stats = self.new_stats()

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
        self.stats = self.new_stats()
        self._tally = Tally()
        self._digest = None
        self._feeds.reader.new_epoch()
        self._feeds.reader.counts.reset()
        lanes = self._order.rank_lanes(self.rank, self.world_size)
        epoch, position, end = self._epoch, self._position, self._end()
        if position >= end:  # a state near the end, loaded by a loader with larger batches
            self._epoch, self._position = epoch + 1, 0
            return
        begun = time.perf_counter()
        with ExitStack() as stack:
            stack.callback(self._feeds.reader.rest)
            stack.enter_context(self._foreteller.loop(self._order, epoch, position))
            feed = self._feeds.open(self._order, epoch, lanes, position, end, self._step)
            stack.enter_context(feed)
            self._feed = feed
            self._working = working = self._work.begin(
                self._gathered(feed, epoch, position, end), self._feeds.place
            )
            stack.callback(working.close)
            while self._feed is feed and self._process == os.getpid():
                (rows, self._digest), handed_out = next(working)
                position += self._step
                self._count(rows, feed, working, time.perf_counter() - begun)
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
    def gives_columns(self) -> bool:
        """Whether batches are ``{column: array}``, and no collate or transform makes others of them."""
        return self._collate is None and self._work.transform is None

    @property
    def columns(self) -> tuple[ZarrColumn, ...]:
        """Columns of a batch, before a transform."""
        return self._feeds.reader.columns

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
            rows=self._rows_name,
        ).to_dict()

    def digest(self) -> RowsDigest:
        """Which rows this rank handed out in its last loop so far, in 128 bits; see `RowsDigest`.

        Digests of all ranks, and of the loops before and after a resume, add up (``+``) to that of a single
        rank's whole epoch, whatever the world sizes were.

        Raises:
            UsageError: the loader was made without ``digest=True``, or nothing was handed out yet.
        """
        if self._digest is None:
            raise UsageError("there is no digest", hint="Give Loader(..., digest=True), and begin a loop")
        return self._digest

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
        if wanted.rows != self._rows_name:
            raise Conflict(
                f"the state is of {called(wanted.rows)}, not {called(self._rows_name)}",
                hint="Give the rows that the training began with",
            )
        order = make_order(
            self.corpus,
            self._order.kept,
            seed=wanted.seed,
            mode=wanted.mode,
            lanes=choose_lanes(wanted.lanes, self.batch_size, self.world_size),
            group_shards=wanted.group,
            window_blocks=wanted.window,
            affinity=wanted.affinity,
        )
        if wanted.epoch >= MAX_EPOCHS or wanted.position > -(-len(order) // order.lanes):
            raise FormatError(f"a loader state beyond the end: {dict(state)!r:.200}")
        order = self._fitting(order)
        self._end_loop()
        self._order = order
        self._epoch, self._position, self._resume = wanted.epoch, wanted.position, True

    def new_stats(self) -> LoaderStats:
        """Numbers of the loop that would begin now."""
        return LoaderStats(self._epoch, self._bound(), self._position // self._step)

    @property
    def _step(self) -> int:
        """Rows of each lane in a batch."""
        return self.batch_size * self.world_size // self._order.lanes

    def _end(self) -> int:
        """Position at which the lanes end, counted from the present one in whole steps."""
        shortest, longest = self._lane_rows()
        return shortest - (shortest - self._position) % self._step if self.drop_last else longest

    def _gathered(self, feed: Feed, epoch: int, position: int, end: int) -> Iterator[tuple[Any, Any]]:
        """Rows of each batch and the digest up to it; and the batch, before transforms."""
        lanes = self._order.rank_lanes(self.rank, self.world_size)
        lane_rows = [self._order.lane_rows(epoch, lane) for lane in lanes]
        hasher = RowsHasher(epoch, position, lanes, lane_rows) if self._digests else None
        for start in range(position, end, self._step):
            stop = min(start + self._step, end)
            batch = feed.batch(start, stop)
            note = len(next(iter(batch.values()))), None if hasher is None else hasher.update(batch, stop)
            if self._collate is None:
                yield note, batch
            else:
                yield note, self._collate(batch[ROWS].whole() if self._is_arrow else record_batch(batch))

    def _count(self, rows: int, feed: Feed, working: Working, seconds: float) -> None:
        stats, counts = self.stats, self._feeds.reader.counts
        stats.rows += rows
        stats.batches += 1
        self._tally.add(rows, seconds, feed.stall_seconds)
        stats.seconds, stats.stall_seconds = seconds, feed.stall_seconds
        stats.transform_seconds = working.seconds
        stats.bytes_needed, stats.bytes_fetched = counts.bytes_needed, counts.bytes_fetched
        stats.bytes_read = dict(counts.bytes_read)
        stats.damaged = list(counts.damaged)

    def _open(self) -> None:
        """Make what belongs to this process alone."""
        self._process = os.getpid()
        self._feeds = Feeds(
            self.corpus,
            self._columns,
            self._cache,
            self._verify,
            self.device,
            self._threads,
            ragged=self._is_arrow,
        )
        self._foreteller = Foreteller(self._feeds.reader, self.rank, self.world_size)
        self._feed = self._working = None

    def _end_loop(self) -> None:
        """Stop the reads of a loop that was not left, before its slots are used for others."""
        feed, self._feed = self._feed, None
        working, self._working = self._working, None
        if self._process == os.getpid():
            if working is not None:
                working.close()
            if feed is not None:
                feed.close()

    def _fitting(self, order: Order) -> Order:
        """The order, if an epoch of it has a batch."""
        step = self.batch_size * self.world_size // order.lanes
        if self.drop_last and len(order) // order.lanes < step:
            raise UsageError(
                f"corpus {self.corpus.name!r} has {len(order)} rows, too few for one batch of "
                f"{self.batch_size} on each of {self.world_size} ranks",
                hint="Give a smaller batch_size, or drop_last=False",
            )
        return order

    def _lane_rows(self) -> tuple[int, int]:
        """Rows of the shortest and the longest lane; the same in every epoch."""
        return len(self._order) // self._order.lanes, -(-len(self._order) // self._order.lanes)

    def _bound(self) -> float:
        """For this rank's part of the epoch to come, as if the cache had nothing else to do."""
        lanes = self._order.rank_lanes(self.rank, self.world_size)
        left = sum(max(0, self._order.lane_rows(0, lane) - self._position) for lane in lanes)
        # Other ranks may have filled the cache, or do so now.
        alone = not self._epochs_run and self.world_size == 1
        return hit_bound(self._cache, self._feeds.reader, self._order, left, alone=alone)
