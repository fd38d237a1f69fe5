"""Runs planned moves, and releases copies that are proven elsewhere.

Invariant: a copy is published only after all its shards were verified on the target, and released only after
proof, read back now, that enough verified copies remain elsewhere. The target is the journal: whatever was
verified there is skipped by the next run.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from distributed import Client

from tiering import catalog
from tiering.catalog import Record
from tiering.claim import claimed
from tiering.corpus import Corpus, open_corpus
from tiering.digest import digest
from tiering.errors import Conflict, LastCopy, TieringError, UsageError
from tiering.graph import choose_client, run_tasks
from tiering.keys import INTERNAL
from tiering.manifest import Manifest, decode
from tiering.plan import MovePlan
from tiering.progress import track
from tiering.scrub import verify
from tiering.stores.base import ObjectInfo
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
    source: Tier,
    target: Tier,
    name: str,
    record: Record,
    keys: Sequence[str],
    sizes: Sequence[int],
    digests: Sequence[str],
    *,
    claim: bool,
) -> BatchResult:
    """Copy and verify some shards of corpus `name`; the task of a move.

    With `claim`, the task holds the name on the target itself, because nobody holds it for the whole move.
    """
    with _hold(target, name, record) if claim else contextlib.nullcontext():
        moved = skipped = nbytes = 0
        for key, size, expected in zip(keys, sizes, digests, strict=True):
            if copy_verified(source.store, target.store, f"{name}/{key}", size, expected) == "moved":
                moved += 1
                nbytes += size
            else:
                skipped += 1
        return BatchResult(moved, skipped, nbytes)


def publish_copy(source: Tier, target: Tier, name: str, record: Record) -> None:
    """Publish a version on the target, after all its shards are there."""
    with _hold(target, name, record):
        # Byte for byte: the manifest is named by its digest, and another Parquet writer writes other bytes.
        encoded = catalog.manifest_bytes(source.store, name, record)
        catalog.publish(target.store, name, record.version, decode(encoded, record.manifest), encoded)
        catalog.load(target.store, name, record.version)  # reads it back


def finish(
    results: Sequence[BatchResult], source: Tier, target: Tier, name: str, record: Record, *, give_up: bool
) -> int:
    """Publish the copy on the target and, if planned, release the source; the last task of a move's graph."""
    publish_copy(source, target, name, record)
    if give_up:
        release(open_corpus(target, name, record.version), source)
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
    corpus, target, started = plan.corpus, plan.target, time.monotonic()
    results: list[BatchResult] = []
    if plan.release and not catalog.is_published(corpus.tier.store, corpus.name, corpus.version):
        # An earlier run was stopped while it released: only the rest of that is left to do.
        release(corpus.at(target), corpus.tier, client=client)
        return MoveReport(0, plan.steps.num_rows, 0, time.monotonic() - started)
    plan.check()
    with (
        _hold(target, corpus.name, corpus.record),
        choose_client(client, plan.nbytes, (corpus.tier, target)) as chosen,
        track(f"{corpus.name}: {corpus.tier.name} to {target.name}", plan.nbytes, chosen, progress) as bar,
    ):
        for result in run_tasks(plan.tasks(), chosen):
            results.append(result)
            bar.advance(result.nbytes)
        publish_copy(corpus.tier, target, corpus.name, corpus.record)
        if plan.release:
            release(corpus, corpus.tier, copies=[target], client=chosen)
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

    Meanwhile the name is claimed on all these tiers, so that nobody releases the copies that are the proof.

    Args:
        corpus: the corpus.
        tier: whose copy is deleted.
        min_copies: how many other places must hold a whole, verified copy; at least 1. One place under two
            names or urls counts once.
        copies: tiers to look for them, besides those that `corpus` knows of.
        client: for the verification.

    Returns:
        Bytes given back; 0 where `tier` holds nothing of the corpus.

    Raises:
        LastCopy: too few verified copies remain; nothing was deleted.
        Conflict: another corpus has this name on `tier`, or somebody is at work on it there.
    """
    if min_copies < 1:
        raise LastCopy(
            f"min_copies = {min_copies} would allow to delete the last copy", hint="Give at least 1"
        )
    if tier.read_only:
        raise UsageError("the tier is read-only", tier=tier.name, hint="Open it without read_only")
    if not catalog.is_published(tier.store, corpus.name, corpus.version) and not _belonging(corpus, tier):
        return 0
    candidates = [other for other in (*copies, corpus.tier, *corpus.others) if other != tier]
    intent = digest(f"release {corpus.record.manifest}".encode())
    with contextlib.ExitStack() as held:
        held.enter_context(claimed(tier.store, corpus.name, intent, shared=False))
        if catalog.is_published(tier.store, corpus.name, corpus.version):
            corpus.at(tier)
        problems = []
        proven = 0
        for other, problem in _other_places(corpus, tier, dict.fromkeys(candidates)).items():
            found = problem or _proof(corpus, other, held, client)
            if found:
                problems.append(f"{other.name}: {found}")
            else:
                proven += 1
        if proven < min_copies:
            raise LastCopy(
                f"corpus {corpus.name!r} has {proven} verified copies elsewhere, {min_copies} needed"
                f" ({'; '.join(problems) or 'no other tier named'})",
                tier=tier.name,
                hint="Move it to another tier first, or name the tiers that hold it",
            )
        return _delete(corpus, tier)


@contextlib.contextmanager
def _hold(target: Tier, name: str, record: Record) -> Iterator[None]:
    """Hold `name` on a tier for this version; raises `Conflict` where the version is another one there."""
    with claimed(target.store, name, record.manifest, shared=True):
        if (
            catalog.is_published(target.store, name, record.version)
            and catalog.record(target.store, name, record.version) != record
        ):
            raise Conflict(
                f"another corpus is called {name!r} there", tier=target.name, hint="Choose another tier"
            )
        yield


def _other_places(corpus: Corpus, tier: Tier, candidates: Iterable[Tier]) -> dict[Tier, str | None]:
    """The candidates, each with None when it is another place than `tier` and than those before it.

    Two urls can mean one place (links, mounts, addresses of one server). So a small object is written to each
    place, and whoever sees it is a place that was seen before.
    """
    key = corpus.key(f"{INTERNAL}/probes/{secrets.token_hex(8)}")
    found: dict[Tier, str | None] = {}
    marked = [tier]
    try:
        tier.store.write(key, [b"probe"])
        for candidate in candidates:
            try:
                if candidate.store.exists(key):
                    found[candidate] = "the same place as a tier before it"
                    continue
                if not candidate.read_only:
                    marked.append(candidate)
                    candidate.store.write(key, [b"probe"])
                found[candidate] = None
            except TieringError as error:
                found[candidate] = str(error)
    finally:
        for candidate in marked:
            with contextlib.suppress(TieringError):
                candidate.store.delete(key)
    return found


def _proof(corpus: Corpus, tier: Tier, held: contextlib.ExitStack, client: Client | None) -> str | None:
    """None when the copy on `tier` is whole, read back now, and held from now on; else why not."""
    try:
        corpus.at(tier)
        if not tier.read_only:
            held.enter_context(_hold(tier, corpus.name, corpus.record))
        report = verify(corpus, tier, client=client, progress=False)
    except TieringError as error:
        return str(error)
    return None if report.ok else f"{len(report.missing)} missing, {len(report.corrupt)} corrupt"


def _delete(corpus: Corpus, tier: Tier) -> int:
    """Delete what the manifest names and no other version does: first what makes it visible, then the bytes.

    Claims stay: their numbers must go on.
    """
    store, name = tier.store, corpus.name
    belonging = _belonging(corpus, tier)
    catalog.unpublish(store, name, corpus.version)
    store.sweep(name)
    for info in belonging:
        store.delete(info.key)
    return sum(info.nbytes for info in belonging)


def _belonging(corpus: Corpus, tier: Tier) -> list[ObjectInfo]:
    """Objects on a tier that are of this version and of no other; what a killed release left, too."""
    store, name = tier.store, corpus.name
    others = [version for version in catalog.versions(store, name) if version != corpus.version]
    kept = {key for version in others for key in _named(catalog.load(store, name, version)[1])}
    gone = set(map(corpus.key, _named(corpus.contents) - kept))
    inside = {corpus.key(f"{INTERNAL}/{folder}") for folder in ("manifests", "quarantine", "probes")}
    return [
        info
        for info in store.list(name)
        if info.key in gone or (not others and info.key.rpartition("/")[0] in inside)
    ]


def _named(manifest: Manifest) -> set[str]:
    return {*manifest.table["key"].to_pylist(), *manifest.documents}
