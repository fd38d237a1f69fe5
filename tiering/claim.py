"""Claims: who may write a corpus name on a tier, without a server and without stale locks.

Invariant: at most one *intent* (what is to be written) holds a name at a time. Writers of one intent write
the same bytes to the same keys and so cannot harm each other; writers of two intents would mix them.

A claim is a ticket (see `tiering.tickets`), an object ``<corpus>/.tiering/claims/00000001.json``. One that
counts keeps other intents out; its own intent is kept out only while its process is known to live. The
highest number stays even when the corpus goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tiering import catalog, process, tickets
from tiering.catalog import Record
from tiering.errors import Conflict, Locked
from tiering.keys import INTERNAL
from tiering.manifest import FORMAT_VERSION
from tiering.process import ProcessId
from tiering.stores.base import Store
from tiering.tickets import Tickets
from tiering.tier import Tier


@dataclass(frozen=True, slots=True)
class Claim:
    """A hold on a corpus name."""

    number: int
    intent: str
    owner: ProcessId
    token: str
    """Tells the claims of one process apart."""
    released: bool = False
    purpose: str = "written"
    """What is done to the corpus, for messages."""

    @property
    def counts(self) -> bool:
        """Whether it may still be at work."""
        return tickets.counts(self)

    def as_released(self) -> Claim:
        """The same claim, given back."""
        return replace(self, released=True)

    def encode(self) -> bytes:
        """The JSON document."""
        fields = {
            "format_version": FORMAT_VERSION,
            "intent": self.intent,
            "owner": self.owner.text(),
            "token": self.token,
            "released": self.released,
            "purpose": self.purpose,
        }
        return tickets.encode(fields)


def claims(store: Store, name: str) -> Tickets[Claim]:
    """All claims on a corpus name, those that do not count any more too."""
    unlock = f"tiering unlock {name} --on {store.name} --claim"
    return Tickets(store, f"{name}/{INTERNAL}/claims", "claim", _parse, _void, unlock)


@contextmanager
def claimed(
    store: Store, name: str, intent: str, *, shared: bool, purpose: str = "written"
) -> Iterator[Claim]:
    """Hold corpus `name` for `intent` while the block runs; released at its end, also after an error.

    Args:
        store: the tier.
        name: the corpus.
        intent: digest of what is to be written.
        shared: whether other living processes of the same intent may work beside this one.
        purpose: what is done to the corpus, for the messages that others get.

    Raises:
        Locked: a living process of the same intent is at work (and not `shared`).
        Conflict: the name is held for another intent.
    """

    def make(number: int, token: str, known: list[Claim]) -> Claim:
        for claim in known:
            if claim.counts:
                _check_allowed(claim, intent, name, store.name, shared=shared)
        return Claim(number, intent, process.current(), token, purpose=purpose)

    line = claims(store, name)
    claim = line.take(make)
    try:
        yield claim
    finally:
        line.give_back(claim)


def check_held(store: Store, name: str, claim: Claim) -> None:
    """Raise `Conflict` where a claim is not held any more: its tasks may outlive the process that made it.

    Whoever claims the name after that deletes it.
    """
    found = claims(store, name).read(claim.number)
    ended = claim.owner != process.current() and claim.owner.is_dead()
    if ended or found is None or found.token != claim.token or found.released:
        raise Conflict(
            f"the claim on corpus {name!r} under which this is written is not held any more",
            tier=store.name,
            key=f"{name}/{INTERNAL}/claims/{claim.number:08d}.json",
            hint="Its process has ended; start again what it did",
        )


@contextmanager
def version_held(target: Tier, name: str, record: Record) -> Iterator[Claim]:
    """Hold `name` on a tier for this version; raises `Conflict` where the version is another one there."""
    with claimed(target.store, name, record.manifest, shared=True) as claim:
        if (
            catalog.is_published(target.store, name, record.version)
            and catalog.record(target.store, name, record.version) != record
        ):
            raise Conflict(
                f"another corpus is called {name!r} there", tier=target.name, hint="Choose another tier"
            )
        yield claim


def _parse(number: int, fields: dict[str, Any]) -> Claim:
    return Claim(
        number,
        str(fields["intent"]),
        ProcessId.parse(str(fields["owner"])),
        str(fields["token"]),
        released=bool(fields["released"]),
        purpose=str(fields.get("purpose", "written")),
    )


def _void(number: int) -> Claim:
    return Claim(number, "", process.current(), "", released=True)


def _check_allowed(held: Claim, intent: str, name: str, tier: str, *, shared: bool) -> None:
    if held.owner.is_dead():  # since it was asked whether the claim counts
        return
    alive = held.owner.is_alive()
    where = "" if alive else " of another machine or container"
    who = f"process {held.owner.pid}{where}"
    if held.intent != intent:
        what = "written with other content" if held.purpose == "written" else held.purpose
        hint = "Wait until it has ended, or choose another name"
        if where:
            hint += f"; if it is surely dead: tiering unlock {name} --on {tier} --claim {held.number}"
        raise Conflict(
            f"corpus {name!r} is being {what} by {who}",
            tier=tier,
            key=f"{name}/{INTERNAL}/claims/{held.number:08d}.json",
            hint=hint,
        )
    if alive and not shared:
        hint = "It will finish the same corpus; wait for it"
        raise Locked(f"corpus {name!r} is being {held.purpose} by {who}", tier=tier, hint=hint)
