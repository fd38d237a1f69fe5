"""Collects garbage: what dead work left on a tier.

Invariant: nothing is deleted that a published version names, that a living job may need, or that is not
the work of this engine. Garbage is looked for first without any lock; then the corpus is claimed, looked
at again, and before each single delete it is made sure that nobody has claimed it since. A job that
begins meanwhile is refused for that moment; one at work, or of another machine and perhaps at work, keeps
its whole corpus as it is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, TypeVar

from tiering import catalog
from tiering.claim import Claim, claimed, claims
from tiering.digest import digest
from tiering.errors import Conflict, TieringError, UsageError
from tiering.keys import INTERNAL
from tiering.probe_keys import abandoned
from tiering.process import ProcessId
from tiering.reservation import reservations
from tiering.stores.base import ObjectInfo, Store, Strays
from tiering.tickets import Ticket, Tickets, counts, holder
from tiering.tier import Tier, need_tier

DAY_SECONDS: Final = 86400.0
_INTENT: Final = digest(b"gc")

TicketT = TypeVar("TicketT", bound=Ticket)

Reason = Literal[
    "orphaned: no version names it",
    "unreferenced manifest",
    "probe of a dead process",
    "old quarantine",
    "dead claim",
    "dead reservation",
]


@dataclass(frozen=True, slots=True)
class Garbage:
    """One object that nobody needs."""

    key: str
    nbytes: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class GcReport:
    """What was, or would be, collected."""

    garbage: tuple[Garbage, ...]
    kept: tuple[tuple[str, str], ...]
    """Corpora that were left as they are, each with the reason."""
    unfinished: int
    """Unfinished writes of dead processes that were removed; not looked for in a dry run."""
    strays: Strays
    """Those on the whole tier that were left, as their writers may live on other machines."""

    @property
    def nbytes(self) -> int:
        """Bytes of all garbage."""
        return sum(one.nbytes for one in self.garbage)


def gc(
    tier: Tier,
    names: Iterable[str] | None = None,
    *,
    older_than_seconds: float = DAY_SECONDS,
    quarantine_seconds: float | None = None,
    dry_run: bool = False,
) -> GcReport:
    """Delete what dead ingests, moves and releases left on a tier.

    Args:
        tier: where.
        names: of corpora; by default all, dead reservations, and what killed probes of the tier left.
        older_than_seconds: leave younger objects alone. A killed ingest or move that is run again goes on
            from what it left: so long it is given for that. Where the store does not tell the age of an
            object, it is deleted only for 0.
        quarantine_seconds: delete quarantined bytes older than this, too; by default they stay.
        dry_run: delete nothing.

    Raises:
        UsageError: the tier is read-only.
    """
    need_tier(tier)
    if isinstance(names, str):
        raise UsageError(f"names = {names!r} is no list of names", hint=f"Example: names=[{names!r}]")
    if tier.read_only and not dry_run:
        raise UsageError("the tier is read-only", tier=tier.name, hint="Open it without read_only")
    store = tier.store
    found: list[Garbage] = []
    kept: list[tuple[str, str]] = []
    unfinished = 0
    limits = _Limits(time.time(), older_than_seconds, quarantine_seconds)
    for name in sorted(set(names)) if names is not None else store.children():
        if name.startswith((".", "_")) or not claims(store, name).numbers():
            continue  # not the work of this engine
        try:
            if not dry_run:
                unfinished += store.sweep(name)
            garbage = list(_garbage(store, name, limits))
            if garbage and not dry_run:
                garbage = [
                    *(one for one in garbage if one.reason == "dead claim"),  # went when ours was taken
                    *_collect(store, name, limits),
                ]
            found += garbage
        except TieringError as error:
            kept.append((name, error.message))
    if names is None:
        found += _reservations(store, dry_run=dry_run)
        found += _probes(store, limits.now_seconds, dry_run=dry_run)
    if not dry_run:
        unfinished += store.sweep(INTERNAL)
    return GcReport(tuple(found), tuple(kept), unfinished, store.strays())


@dataclass(frozen=True, slots=True)
class _Limits:
    now_seconds: float
    older_than_seconds: float
    quarantine_seconds: float | None

    def is_old(self, info: ObjectInfo) -> bool:
        return self._older(info, self.older_than_seconds)

    def is_old_quarantine(self, info: ObjectInfo) -> bool:
        return self.quarantine_seconds is not None and self._older(info, self.quarantine_seconds)

    def _older(self, info: ObjectInfo, seconds: float) -> bool:
        if info.modified_seconds is None:
            return seconds <= 0
        return self.now_seconds - info.modified_seconds >= seconds


def _collect(store: Store, name: str, limits: _Limits) -> list[Garbage]:
    """Delete the garbage of a corpus; gives what was deleted."""
    deleted: list[Garbage] = []
    with contextlib.ExitStack() as held:
        held.callback(catalog.put_head_back, store, name)
        claim = partial(claimed, store, name, _INTENT, shared=False, purpose="cleaned up")
        mine = catalog.with_room(store, name, lambda: held.enter_context(claim()))
        for one in list(_garbage(store, name, limits, mine)):
            _make_sure(store, name, mine)
            store.delete(one.key)
            deleted.append(one)
    return deleted


def _make_sure(store: Store, name: str, mine: Claim) -> None:
    """Raise `Conflict` unless our claim is the newest, there, and ours: then nobody began anything since."""
    line = claims(store, name)
    newest = line.read(max(line.numbers(), default=0))
    if newest is None or newest.token != mine.token or newest.released:
        raise Conflict(
            f"the claim on corpus {name!r} was taken away",
            tier=store.name,
            hint="Run it again when all is quiet",
        )


def _garbage(store: Store, name: str, limits: _Limits, mine: Claim | None = None) -> Iterator[Garbage]:
    """What nobody needs below a corpus's folder; `Conflict` where somebody may be at work on it."""
    line = claims(store, name)
    known = line.all()
    for claim in known:
        if claim.counts and claim != mine:
            raise Conflict(f"it is being {claim.purpose} by {holder(claim.owner)}", tier=store.name)
    listed = list(store.list(name))  # before the versions: what is published in between names what it needs
    loaded = [catalog.load(store, name, version) for version in catalog.versions(store, name)]
    named = {f"{name}/{key}" for _record, manifest in loaded for key in manifest.named()}
    named |= {catalog.manifest_key(name, record.manifest) for record, _manifest in loaded}
    own = {info.key for info in catalog.own_objects(listed, name)}
    for info in listed:
        if info.key in named:
            continue
        if reason := _reason(store, info, info.key.removeprefix(f"{name}/"), limits, own=info.key in own):
            yield Garbage(info.key, info.nbytes, reason)
    for _claim, info in _dead(line, known):
        yield Garbage(info.key, info.nbytes, "dead claim")


def _reason(store: Store, info: ObjectInfo, key: str, limits: _Limits, *, own: bool) -> Reason | None:
    """Why an object that no version names is garbage; None where it is not."""
    match key.split("/"):
        case [folder, "manifests", _] if folder == INTERNAL and limits.is_old(info):
            return "unreferenced manifest"
        case [folder, "quarantine", _] if folder == INTERNAL and limits.is_old_quarantine(info):
            return "old quarantine"
        case [folder, "probes", _] if folder == INTERNAL and _is_dead_probe(store, info.key):
            return "probe of a dead process"
        case _ if own and limits.is_old(info):
            return "orphaned: no version names it"
    return None


def _is_dead_probe(store: Store, key: str) -> bool:
    """Whether no living release can need it: else one place could be taken for two."""
    try:
        return ProcessId.parse(bytes(store.read(key)).decode()).is_dead()
    except (ValueError, FileNotFoundError):
        return False


def _dead(line: Tickets[TicketT], known: Sequence[TicketT]) -> Iterator[tuple[TicketT, ObjectInfo]]:
    """Tickets that do not count any more; but the highest, whose number must not come again."""
    highest = max((ticket.number for ticket in known), default=0)
    for ticket in known:
        if ticket.number < highest and not counts(ticket):
            yield ticket, ObjectInfo(line.key(ticket.number), len(ticket.encode()))


def _reservations(store: Store, *, dry_run: bool) -> Iterator[Garbage]:
    line = reservations(store)
    for _ticket, info in _dead(line, line.all()):
        if not dry_run:
            store.delete(info.key)
        yield Garbage(info.key, info.nbytes, "dead reservation")


def _probes(store: Store, now_seconds: float, *, dry_run: bool) -> Iterator[Garbage]:
    for info in list(abandoned(store, now_seconds)):
        if not dry_run:
            store.delete(info.key)
        yield Garbage(info.key, info.nbytes, "probe of a dead process")
