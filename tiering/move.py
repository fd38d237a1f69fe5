"""Runs planned moves, and releases copies that are proven elsewhere.

Invariant: a copy is published only after all its shards were verified on the target, and released only after
proof, read back now, that enough verified copies remain elsewhere. The target is the journal: whatever was
verified there is skipped by the next run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from dask.delayed import delayed
from distributed import Client

from tiering import catalog
from tiering.claim import claimed
from tiering.corpus import Corpus
from tiering.errors import LastCopy, TieringError
from tiering.graph import choose_client, run_tasks
from tiering.keys import INTERNAL
from tiering.plan import MovePlan
from tiering.progress import track
from tiering.scrub import verify
from tiering.tier import Tier
from tiering.transfer import copy_verified


@dataclass(frozen=True, slots=True)
class MoveReport:
    """What a move did."""

    moved: int
    """Shards copied and verified."""
    skipped: int
    """Shards that were there and right."""
    nbytes: int
    """Bytes copied."""
    seconds: float


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What one task did; a few dozen bytes."""

    moved: int
    skipped: int
    nbytes: int


def copy_batch(
    source: Tier, target: Tier, name: str, keys: Sequence[str], sizes: Sequence[int], digests: Sequence[str]
) -> BatchResult:
    """Copy and verify some shards of corpus `name`; the task of a move."""
    moved = skipped = nbytes = 0
    for key, size, expected in zip(keys, sizes, digests, strict=True):
        if copy_verified(source.store, target.store, f"{name}/{key}", size, expected) == "moved":
            moved += 1
            nbytes += size
        else:
            skipped += 1
    return BatchResult(moved, skipped, nbytes)


def finish(results: Sequence[BatchResult], plan: MovePlan) -> int:
    """Publish the copy on the target and, if planned, release the source; the last task of a move."""
    corpus = plan.corpus
    with claimed(plan.target.store, corpus.name, corpus.record.manifest, shared=True):
        # Byte for byte: the manifest is named by its digest, and another Parquet writer writes other bytes.
        encoded = catalog.manifest_bytes(corpus.tier.store, corpus.name, corpus.record)
        catalog.publish(plan.target.store, corpus.name, corpus.version, corpus.contents, encoded)
        catalog.load(plan.target.store, corpus.name, corpus.version)  # reads the manifest back
    if plan.release:
        release(corpus, corpus.tier, copies=[plan.target])
    return sum(result.moved for result in results)


def run_plan(plan: MovePlan, client: Client | None = None, *, progress: bool | None = None) -> MoveReport:
    """Do what the plan says, verified, and publish the copy. Running it again skips what is there.

    Args:
        plan: from `plan_move`.
        client: Dask client; by default the current one, else threads for small work or a local cluster.
        progress: show a progress bar on standard error; by default when that is a terminal.

    Raises:
        Conflict: the world is not the planned one any more; nothing was done.
        Corrupt, NotFound: a shard of the source is damaged or missing; nothing is published.
        CapacityExceeded, Unavailable, DeadlineExceeded: from the tiers; run again to go on.
    """
    plan.check_drift()
    corpus, started = plan.corpus, time.monotonic()
    results: list[BatchResult] = []
    tiers = (corpus.tier, plan.target)
    with (
        claimed(plan.target.store, corpus.name, corpus.record.manifest, shared=True),
        choose_client(client, plan.nbytes, tiers) as chosen,
        track(
            f"{corpus.name}: {corpus.tier.name} to {plan.target.name}", plan.nbytes, chosen, progress
        ) as bar,
    ):
        for result in run_tasks(plan.tasks(), chosen):
            results.append(result)
            bar.advance(result.nbytes)
        for _moved in run_tasks([delayed(finish, pure=False)(results, plan)], chosen):
            pass
    return MoveReport(
        moved=sum(result.moved for result in results),
        skipped=sum(result.skipped for result in results),
        nbytes=sum(result.nbytes for result in results),
        seconds=time.monotonic() - started,
    )


def release(
    corpus: Corpus,
    tier: Tier,
    *,
    min_copies: int = 1,
    copies: Sequence[Tier] = (),
    client: Client | None = None,
) -> int:
    """Give up the copy of a corpus on `tier`, after proof that `min_copies` whole copies remain elsewhere.

    Args:
        corpus: the corpus.
        tier: whose copy is deleted.
        min_copies: how many other tiers must hold a whole, verified copy; at least 1.
        copies: tiers to look for them, besides those that `corpus` knows of.
        client: for the verification.

    Returns:
        Bytes given back.

    Raises:
        LastCopy: too few verified copies remain; nothing was deleted.
        Conflict: another corpus has this name on `tier`.
    """
    if min_copies < 1:
        raise LastCopy(
            f"min_copies = {min_copies} would allow to delete the last copy", hint="Give at least 1"
        )
    here = corpus.at(tier) if catalog.is_published(tier.store, corpus.name, corpus.version) else corpus
    elsewhere = {t.url: t for t in (*copies, corpus.tier, *corpus.others) if t.url != tier.url}
    proofs = {t.name: _proof(corpus, t, client) for t in elsewhere.values()}
    proven = [name for name, problem in proofs.items() if problem is None]
    if len(proven) < min_copies:
        told = (
            "; ".join(f"{name}: {problem}" for name, problem in proofs.items() if problem)
            or "no other tier named"
        )
        raise LastCopy(
            f"corpus {corpus.name!r} has {len(proven)} verified copies elsewhere, {min_copies} needed ({told})",
            tier=tier.name,
            hint="Move it to another tier first, or name the tiers that hold it",
        )
    return _delete(here, tier)


def _proof(corpus: Corpus, tier: Tier, client: Client | None) -> str | None:
    """None when the copy on `tier` is whole, read back now; else why not."""
    try:
        report = verify(corpus, tier, client=client, progress=False)
    except TieringError as error:
        return str(error)
    return None if report.ok else f"{len(report.missing)} missing, {len(report.corrupt)} corrupt"


def _delete(corpus: Corpus, tier: Tier) -> int:
    """Delete what the manifest names: first what makes it visible, then the bytes."""
    store = tier.store
    catalog.unpublish(store, corpus.name)
    freed = 0
    keys = [*corpus.manifest["key"].to_pylist(), *corpus.contents.documents]
    present = {info.key: info.nbytes for info in store.list(corpus.name)}
    for key in map(corpus.key, keys):
        if key in present:
            store.delete(key)
            freed += present[key]
    for key in present:
        if key.startswith(f"{corpus.name}/{INTERNAL}/"):
            store.delete(key)
    return freed
