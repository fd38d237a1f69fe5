"""The tasks of a move: copy and verify shards, publish the copy, release the source.

Invariant: a copy is published only after all its shards were verified on the target. The target is the
journal: whatever was verified there is skipped by the next run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from tiering import catalog
from tiering.catalog import Record
from tiering.claim import Claim, check_held, version_held
from tiering.corpus import Corpus, open_corpus
from tiering.errors import Conflict
from tiering.manifest import decode
from tiering.release import release
from tiering.room import room_held
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
    claim: Claim | None,
    final_bytes: int,
) -> BatchResult:
    """Copy and verify some shards of corpus `name`; the task of a move.

    Without `claim`, under which the whole move is done, the task holds the name and room for `final_bytes` on
    the target itself.
    """
    held = _held(target, name, record, final_bytes) if claim is None else contextlib.nullcontext(claim)
    with held as mine:
        moved = skipped = nbytes = 0
        for key, size, expected in zip(keys, sizes, digests, strict=True):
            outcome = copy_verified(
                source.store,
                target.store,
                f"{name}/{key}",
                size,
                expected,
                before_write=partial(check_held, target.store, name, mine),
            )
            if outcome == "moved":
                moved += 1
                nbytes += size
            else:
                skipped += 1
        return BatchResult(moved, skipped, nbytes)


def publish_copy(source: Tier, target: Tier, name: str, record: Record) -> None:
    """Publish a version on the target, after all its shards are there.

    Raises:
        Conflict: some are not, or not any more; nothing was published.
    """
    with version_held(target, name, record):
        # Byte for byte: the manifest is named by its digest, and another Parquet writer writes other bytes.
        encoded = catalog.manifest_bytes(source.store, name, record)
        manifest = decode(encoded, record.manifest)
        # Between the tasks of a graph nobody holds the name: what they wrote may have been swept since.
        if absent := Corpus(name, target, record, manifest).absent():
            raise Conflict(
                f"{len(absent)} shards of corpus {name!r} went away while it was moved",
                tier=target.name,
                key=f"{name}/{absent[0]}",
                hint="Move it again: what is there is skipped",
            )
        catalog.publish(target.store, name, record.version, manifest, encoded)
        catalog.load(target.store, name, record.version)  # reads it back


def finish(
    results: Sequence[BatchResult],
    source: Tier,
    target: Tier,
    name: str,
    record: Record,
    *,
    give_up: bool,
    final_bytes: int,
) -> int:
    """Publish the copy on the target and, if planned, release the source; the last task of a move's graph.

    Where an earlier run has begun to release, which it does only once the copy is published, that is ended.
    """
    if not give_up or catalog.is_published(source.store, name, record.version):
        with _held(target, name, record, final_bytes):
            publish_copy(source, target, name, record)
    if give_up:
        release(open_corpus(target, name, record.version), source)
    return sum(result.moved for result in results)


@contextlib.contextmanager
def _held(target: Tier, name: str, record: Record, final_bytes: int) -> Iterator[Claim]:
    """Hold the name on the target, and the room of the whole copy."""

    def final(present: Mapping[str, int]) -> int:
        return max(final_bytes, sum(present.values()))

    with version_held(target, name, record) as claim, room_held(target, name, final):
        yield claim
