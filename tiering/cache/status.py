"""What a node cache holds, how it does, and who reads from it."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

from tiering.cache.admission import UNKNOWN, Admission, chosen, decision, resized_bytes
from tiering.cache.choice import AUTO, CLAIRVOYANT
from tiering.cache.content import Content
from tiering.cache.index import Counts, counts
from tiering.cache.readers import ReaderStatus


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """What a node cache holds now.

    policy: as it was asked for. decision: what it comes to, and `reason` why. bound: the largest share of
    bytes that any policy hits for the readers that live; None while none is registered. capacity_bytes: what
    counts, None where nobody told; with `resized`, because ``tiering cache resize`` said so. counts: requests
    of all processes, since the cache was made or cleared.
    """

    path: Path
    policy: str
    capacity_bytes: int | None
    used_bytes: int
    shards: int
    filling: int
    decision: str = AUTO
    reason: str = ""
    bound: float | None = None
    resized: bool = False
    counts: Counts = field(default_factory=Counts)
    readers: tuple[ReaderStatus, ...] = ()


def look(content: Content, db: sqlite3.Connection, admission: Admission) -> CacheStatus:
    """What the index and the registrations say, in one transaction."""
    used, shards, filling = db.execute(
        "SELECT coalesce(sum(nbytes), 0), coalesce(sum(whole), 0),"
        " count(*) - coalesce(sum(whole), 0) FROM entries"
    ).fetchone()
    limit_bytes = admission.limit_bytes(db)
    living, choice = admission.readers.living(), chosen(db)
    if not any(len(reader.told.uses) for reader in living):
        choice = None
    return CacheStatus(
        content.path,
        admission.policy,
        limit_bytes if limit_bytes < UNKNOWN else None,
        used,
        shards,
        filling,
        decision(admission.policy, choice),
        _why(admission.policy, choice.reason if choice else None),
        choice.bound if choice else None,
        resized_bytes(db) is not None,
        counts(db),
        tuple(reader.status() for reader in living),
    )


def _why(policy: str, reason: str | None) -> str:
    """Why the policy is what it is, in one sentence."""
    if policy == AUTO:
        return (
            reason
            or "nobody has said what he will read: what is here stays, and comes in while there is room"
        )
    named = f"{policy} was asked for"
    if policy == CLAIRVOYANT and reason is None:
        return f"{named}, but nobody has said what he will read: what is here stays, as with pin"
    return f"{named}; auto would say: {reason}" if reason else named
