"""Plans of moves: what will be read, written and paid, before a byte is moved.

Invariant: a plan is immutable and says all it will do; when the corpus or the destination is no longer what
it was planned for, `MovePlan.run` refuses.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from dask.delayed import Delayed, delayed
from dask.utils import format_bytes, format_time
from distributed import Client

from tiering import catalog
from tiering.claim import Claim, version_held
from tiering.corpus import Corpus, need_corpus
from tiering.digest import digest
from tiering.errors import Conflict, LastCopy, UsageError
from tiering.graph import choose_client, run_tasks
from tiering.keys import is_control
from tiering.move import BatchResult, MoveReport, copy_batch, finish, publish_copy
from tiering.progress import track
from tiering.release import IN_MEMORY, is_lasting_beside, release
from tiering.room import check_room, refuse_foreign, room_held
from tiering.tier import Tier, need_tier

GET_BYTES: Final = 8 << 20
"""Bytes of one ranged GET of an object tier."""
PUT_BYTES: Final = 64 << 20
"""Bytes of the largest object that is written by one PUT; others are uploaded in parts."""
PART_BYTES: Final = 8 << 20
"""Bytes of one part of an upload, but where that would be more than `MAX_PARTS` of them."""
MAX_PARTS: Final = 9_000
MIN_BATCH_BYTES: Final = 4 << 20
MAX_BATCH_BYTES: Final = 256 << 20
_BATCHES: Final = 16
"""At least so many tasks where the corpus is large enough for it."""
_IN_FLIGHT: Final = 16


@dataclass(frozen=True)
class MovePlan:
    """What a move will do. Made by `plan_move`."""

    corpus: Corpus
    target: Tier
    steps: pa.Table = field(repr=False)
    """One row a shard: ``key, nbytes, digest, action``: ``copy`` what is missing, ``check`` what is there."""
    release: bool = False
    """Whether the copy on the source tier is released afterwards."""

    @cached_property
    def nbytes(self) -> int:
        """Bytes to copy."""
        return int(pc.sum(self._copied["nbytes"]).as_py() or 0)

    @cached_property
    def requests(self) -> int:
        """Requests for shards and documents to the source and the target, of any kind.

        With each shard that is written goes a look at the claim.

        Some dozens more are of claims, reservations and listings, however large the corpus.
        """
        reads, writes, checks, deletes = self._requests
        return reads + writes + checks + deletes

    @cached_property
    def seconds_range(self) -> tuple[float, float]:
        """Seconds at best (full throughput) and at worst (one request after the other, a quarter of it)."""
        speeds = (self.corpus.tier.speed, self.target.speed)
        flow = self.nbytes / min(speed.bytes_per_second for speed in speeds)
        return flow, 4 * flow + self.requests * max(speed.latency_seconds for speed in speeds)

    @cached_property
    def seconds(self) -> float:
        """Seconds to expect, from the usual speed of the kinds of tier; the machine may differ."""
        best, _ = self.seconds_range
        latency = max(tier.speed.latency_seconds for tier in (self.corpus.tier, self.target))
        return 1.5 * best + self.requests * latency / _IN_FLIGHT

    @cached_property
    def cost(self) -> float:
        """US dollars for requests and egress, the read-backs that verify included. Deletes cost nothing."""
        reads, writes, checks, _deletes = self._requests
        return (
            self.corpus.tier.prices.reading(self.nbytes, reads)
            + self.target.prices.writing(writes)
            + self.target.prices.reading(self._read_backs * self.corpus.nbytes, checks)
        )

    @property
    def _read_backs(self) -> int:
        """How often all of the copy is read: to verify it, and as the proof of a release."""
        return 2 if self.release else 1

    @cached_property
    def digest(self) -> str:
        """Names the plan: the same steps between the same tiers have the same digest."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.steps.schema) as writer:
            writer.write_table(self.steps.combine_chunks())
        tiers = [(tier.url, tier.option_items) for tier in (self.corpus.tier, self.target)]
        what = json.dumps([self.corpus.name, astuple(self.corpus.record), tiers, self.release])
        return digest([what.encode(), memoryview(sink.getvalue())])

    def final_bytes(self, present: Mapping[str, int]) -> int:
        """Bytes of the corpus's folder on the target when the copy is whole; `present` is the data there."""
        prefix = self.corpus.key("")
        keys, sizes = self.steps["key"].to_pylist(), self.steps["nbytes"].to_numpy()
        seen = np.array([present.get(prefix + key, -1) for key in keys], np.int64)
        missing = int(sizes[seen != sizes].sum())
        missing += sum(nbytes for key, nbytes in self._small.items() if present.get(prefix + key) != nbytes)
        return sum(present.values()) + missing

    @cached_property
    def _small(self) -> dict[str, int]:
        """Bytes of the manifest and the documents."""
        corpus = self.corpus
        manifest = catalog.manifest_key(corpus.name, corpus.record.manifest)
        sizes = {key: len(text) for key, text in corpus.contents.documents.items()}
        return {manifest.removeprefix(corpus.key("")): corpus.tier.store.stat(manifest).nbytes, **sizes}

    @property
    def _copied(self) -> pa.Table:
        return self.steps.filter(pc.equal(self.steps["action"], "copy"))

    @cached_property
    def _requests(self) -> tuple[int, int, int, int]:
        """Reads of the source, writes to the target, reads of it that verify, deletes on the source."""
        copied = self._copied["nbytes"].to_numpy()
        everything = self.steps["nbytes"].to_numpy()
        small = len(self.corpus.contents.documents) + 3  # manifest, version record, HEAD
        looks = len(everything) + len(copied) if self.target.kind == "object" else 0  # HEAD
        return (
            _gets(copied, self.corpus.tier),
            _puts(copied, self.target) + small,
            self._read_backs * _gets(everything, self.target) + looks + len(copied),
            len(everything) + small if self.release else 0,
        )

    def batches(self) -> Iterator[pa.Table]:
        """The steps in runs of neighbours, each the work of one task."""
        total = int(pc.sum(self.steps["nbytes"]).as_py() or 0)
        target = min(MAX_BATCH_BYTES, max(MIN_BATCH_BYTES, total // _BATCHES))
        ends = np.cumsum(self.steps["nbytes"].to_numpy())
        start = 0
        while start < len(ends):
            begun = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, begun + target, side="right")))
            yield self.steps.slice(start, stop - start)
            start = stop

    def tasks(self, *, claim: Claim | None = None, final_bytes: int = 0) -> Iterator[Delayed]:
        """The copying tasks, one a batch.

        They write as long as the claim is held. Without one, each task holds the name by itself, and room for
        `final_bytes`, what the corpus's folder will hold at the end.
        """
        task = delayed(copy_batch, pure=False)
        for batch in self.batches():
            yield task(
                self.corpus.tier,
                self.target,
                self.corpus.name,
                self.corpus.record,
                batch["key"].to_pylist(),
                batch["nbytes"].to_pylist(),
                batch["digest"].to_pylist(),
                claim=claim,
                final_bytes=final_bytes,
            )

    def graph(self) -> Delayed:
        """The whole move as one Dask value: one task a batch, then publish, then (if planned) release.

        Compute it on any scheduler, or make it part of another graph. Its value: the number of shards moved.
        """
        corpus, target = self.corpus, self.target
        listed = target.store.list(corpus.name)
        final_bytes = self.final_bytes({info.key: info.nbytes for info in listed if not is_control(info.key)})
        whole: Delayed = delayed(finish, pure=False)(
            list(self.tasks(final_bytes=final_bytes)),
            corpus.tier,
            target,
            corpus.name,
            corpus.record,
            give_up=self.release,
            final_bytes=final_bytes,
        )
        return whole

    def check_drift(self) -> None:
        """Raise `Conflict` when the source or the target is no longer what was planned for."""
        name, version = self.corpus.name, self.corpus.version
        for tier in (self.corpus.tier, self.target):
            if tier is self.target and not catalog.is_published(tier.store, name, version):
                continue
            found = catalog.record(tier.store, name, version)
            if found != self.corpus.record:
                raise Conflict(
                    f"corpus {self.corpus.name!r} is not the one that was planned for",
                    tier=tier.name,
                    hint="Plan the move again",
                )

    def run(self, client: Client | None = None, *, progress: bool | None = None) -> MoveReport:
        """Do what the plan says, verified, and publish the copy. Running it again skips what is there.

        Args:
            client: Dask client; by default the current one, else threads for small work or a local cluster.
            progress: show a progress bar on standard error; by default when that is a terminal.

        Raises:
            Conflict: the world is not the planned one any more; nothing was done.
            Corrupt, NotFound: a shard of the source is damaged or missing; nothing is published.
            CapacityExceeded, Unavailable, DeadlineExceeded: from the tiers; run again to go on.
        """
        corpus, target, started = self.corpus, self.target, time.monotonic()
        results: list[BatchResult] = []
        if self.release and not catalog.is_published(corpus.tier.store, corpus.name, corpus.version):
            # An earlier run was stopped while it released: only the rest of that is left to do.
            release(corpus.at(target), corpus.tier, client=client)
            return MoveReport(0, self.steps.num_rows, 0, time.monotonic() - started)
        _look(corpus, target, give_up=self.release)
        with (
            version_held(target, corpus.name, corpus.record) as claim,
            room_held(target, corpus.name, self.final_bytes),
            choose_client(client, self.nbytes, (corpus.tier, target)) as chosen,
            track(
                f"{corpus.name}: {corpus.tier.name} to {target.name}", self.nbytes, chosen, progress
            ) as bar,
        ):
            for result in run_tasks(self.tasks(claim=claim), chosen):
                results.append(result)
                bar.advance(result.nbytes)
            publish_copy(corpus.tier, target, corpus.name, corpus.record)
            if self.release:
                release(corpus, corpus.tier, copies=[target], client=chosen)
        return MoveReport(
            moved=sum(result.moved for result in results),
            skipped=sum(result.skipped for result in results),
            nbytes=sum(result.nbytes for result in results),
            seconds=time.monotonic() - started,
        )

    def __str__(self) -> str:
        present = self.steps.num_rows - self._copied.num_rows
        best, worst = self.seconds_range
        return "\n".join(
            [
                f"move {self.corpus.name!r} version {self.corpus.version}"
                f" from {self.corpus.tier.name} to {self.target.name}",
                f"  shards    {self._copied.num_rows} to copy, {present} there to check",
                f"  bytes     {format_bytes(self.nbytes)}",
                f"  requests  {self.requests:,}",
                f"  time      {format_time(self.seconds)} ({format_time(best)} to {format_time(worst)})",
                f"  money     ${self.cost:.4f}",
                f"  then      {'release the source' if self.release else 'keep the source'}",
                f"  digest    {self.digest[:16]}",
            ]
        )


def plan_move(corpus: Corpus, target: Tier, *, release: bool = False) -> MovePlan:
    """Plan to make a verified copy of a corpus on another tier.

    Args:
        corpus: the corpus, on the tier to copy from.
        target: where to.
        release: give up the copy on the source once the new one is proven.

    Raises:
        UsageError: the target is the source, or read-only; or the source is, and shall be released.
        LastCopy: the source shall be released, and the target is in memory.
        Conflict: another corpus has this name on the target.
        CapacityExceeded: the target has no room.
    """
    need_corpus(corpus)
    need_tier(target, "target")
    plan = _look(corpus, target, give_up=release)
    largest_bytes = int(plan.steps["nbytes"].to_numpy().max())
    check_room(target, corpus.name, plan.final_bytes, largest_bytes)
    return plan


def _look(corpus: Corpus, target: Tier, *, give_up: bool) -> MovePlan:
    """The plan as the world is now, without a look at the room."""
    if target.is_same(corpus.tier):
        raise UsageError(
            f"corpus {corpus.name!r} is on tier {target.name!r} already", hint="Choose another tier"
        )
    if give_up and corpus.tier.read_only:
        hint = "Open it without read_only, or plan without release"
        raise UsageError("the source is read-only, and shall be released", tier=corpus.tier.name, hint=hint)
    if give_up and not is_lasting_beside(target, corpus.tier):
        raise LastCopy(
            f"the copy of corpus {corpus.name!r} would be {IN_MEMORY}",
            tier=target.name,
            hint="Plan without release: the copy on the source stays",
        )
    if target.read_only:
        raise UsageError("the target is read-only", tier=target.name, hint="Choose another tier")
    shards = corpus.manifest.select(["key", "nbytes", "digest"])
    present = {info.key: info.nbytes for info in target.store.list(corpus.name)}
    refuse_foreign(target, corpus.name, present)
    prefix = corpus.key("")
    seen = np.array([present.get(prefix + key, -1) for key in shards["key"].to_pylist()], np.int64)
    actions = pa.array(np.where(seen == shards["nbytes"].to_numpy(), "check", "copy"), pa.string())
    plan = MovePlan(corpus, target, shards.append_column("action", actions), give_up)
    plan.check_drift()
    return plan


def _gets(sizes: Any, tier: Tier) -> int:
    """Requests that read objects of these sizes."""
    return int(np.sum(-(-sizes // GET_BYTES))) if tier.kind == "object" else len(sizes)


def _puts(sizes: Any, tier: Tier) -> int:
    """Requests that write objects of these sizes."""
    if tier.kind != "object":
        return len(sizes)
    parts = -(-sizes // np.maximum(PART_BYTES, -(-sizes // MAX_PARTS)))
    return int(np.sum(np.where(sizes <= PUT_BYTES, 1, parts + 2)))  # an upload is begun and completed
