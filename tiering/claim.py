"""Claims: who may write a corpus name on a tier, without a server and without stale locks.

Invariant: at most one *intent* (what is to be written) holds a name at a time. Writers of one intent write
the same bytes to the same keys and so cannot harm each other; writers of two intents would mix them.

A claim is an object ``<corpus>/.tiering/claims/00000001.json``, made by conditional create. Its owner changes
it once, to say that it is released. The highest number is never deleted, not even when the corpus is: whoever
created a number and then finds no higher one has seen all that it succeeds. A claim counts as long as it is
neither released nor its process known to be dead. One that counts keeps other intents out; its own intent is
kept out only while its process is known to live. A process knows by itself which of its own claims it holds.
So nothing has to be cleaned up after a kill, and nothing depends on a clock.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from tiering import catalog, process
from tiering.catalog import Record
from tiering.errors import Conflict, FormatError, Locked, TieringError, UnsupportedVersion
from tiering.keys import INTERNAL
from tiering.manifest import FORMAT_VERSION, check_version, parse_json
from tiering.process import ProcessId
from tiering.stores.base import Store
from tiering.tier import Tier

MAX_CLAIM_BYTES: Final = 1 << 16

log = logging.getLogger("tiering.claim")

_at_work: Final[set[str]] = set()
"""Tokens of the claims that this process holds now: no others of its own count."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A hold on a corpus name."""

    number: int
    intent: str
    owner: ProcessId
    token: str
    """Tells the claims of one process apart."""
    released: bool = False

    @property
    def counts(self) -> bool:
        """Whether it may still be at work."""
        if self.released or self.owner.is_dead():
            return False
        return self.token in _at_work or self.owner != process.current()

    def encode(self) -> bytes:
        """The JSON document."""
        fields = {
            "format_version": FORMAT_VERSION,
            "intent": self.intent,
            "owner": self.owner.text(),
            "token": self.token,
            "released": self.released,
        }
        return json.dumps(fields, sort_keys=True).encode()


@contextmanager
def claimed(store: Store, name: str, intent: str, *, shared: bool) -> Iterator[None]:
    """Hold corpus `name` for `intent` while the block runs; released at its end, also after an error.

    Args:
        store: the tier.
        name: the corpus.
        intent: digest of what is to be written.
        shared: whether other living processes of the same intent may work beside this one.

    Raises:
        Locked: a living process of the same intent is at work (and not `shared`).
        Conflict: the name is held for another intent.
    """
    token = secrets.token_hex(8)
    claim = None
    _at_work.add(token)
    try:
        claim = _take(store, name, intent, token, shared=shared)
        yield
    finally:
        _at_work.discard(token)
        if claim is not None:
            _release(store, name, claim)


def _release(store: Store, name: str, claim: Claim) -> None:
    """Say that a claim is released; if the tier is full or sick, others learn it when this process ends."""
    try:
        store.write(_key(name, claim.number), [replace(claim, released=True).encode()])
    except TieringError as error:
        log.warning("corpus %r stays claimed until this process ends: %s", name, error)


@contextmanager
def version_held(target: Tier, name: str, record: Record) -> Iterator[None]:
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


def _take(store: Store, name: str, intent: str, token: str, *, shared: bool) -> Claim:
    while True:
        numbers = _numbers(store, name)
        claims = [claim for claim in (_read(store, name, number) for number in numbers) if claim]
        for claim in claims:
            if claim.counts:
                _check_allowed(claim, intent, name, store.name, shared=shared)
        mine = Claim(max(numbers, default=0) + 1, intent, process.current(), token)
        try:
            store.write(_key(name, mine.number), [mine.encode()], if_absent=True)
        except FileExistsError:  # somebody was faster: look at the claims again
            _check_seen(store, name, mine.number)
            continue
        if max(_numbers(store, name), default=0) > mine.number:
            # Between our look and our write a higher claim came, and took away the one that had our number.
            store.delete(_key(name, mine.number))
            continue
        for claim in claims:
            if not claim.counts:
                store.delete(_key(name, claim.number))
        return mine


def _check_seen(store: Store, name: str, number: int) -> None:
    """Raise `Conflict` when what keeps us from a number is no claim, and would do so for ever."""
    if max(_numbers(store, name), default=0) < number:
        raise Conflict(
            "something that is no claim has the name of one",
            tier=store.name,
            key=_key(name, number),
            hint="Look at it (a symbolic link?) and delete it",
        )


def _check_allowed(held: Claim, intent: str, name: str, tier: str, *, shared: bool) -> None:
    who = f"process {held.owner.pid}" + ("" if held.owner.is_alive() else " of another machine or container")
    if held.intent != intent:
        raise Conflict(
            f"corpus {name!r} is being written with other content by {who}",
            tier=tier,
            key=_key(name, held.number),
            hint="Choose another name, or wait until it has ended; if it is surely dead, delete this object",
        )
    if held.owner.is_alive() and not shared:
        hint = "It will finish the same corpus; wait for it"
        raise Locked(f"corpus {name!r} is being written by {who}", tier=tier, hint=hint)


def _numbers(store: Store, name: str) -> list[int]:
    names = store.children(_folder(name))
    return sorted(int(child[:8]) for child in names if child[:8].isdecimal() and child[8:] == ".json")


def _read(store: Store, name: str, number: int) -> Claim | None:
    key = _key(name, number)
    try:
        data = store.read(key)
    except FileNotFoundError:  # succeeded since it was listed
        return None
    try:
        fields = parse_json(data, "a claim", MAX_CLAIM_BYTES)
        check_version(fields.get("format_version"), "the claim")
        owner = ProcessId.parse(str(fields["owner"]))
        return Claim(
            number, str(fields["intent"]), owner, str(fields["token"]), released=bool(fields["released"])
        )
    except UnsupportedVersion as error:
        error.tier, error.key = store.name, key
        raise
    except (KeyError, ValueError) as error:
        raise FormatError("not a claim", tier=store.name, key=key, hint="Delete this object") from error


def _folder(name: str) -> str:
    return f"{name}/{INTERNAL}/claims"


def _key(name: str, number: int) -> str:
    return f"{_folder(name)}/{number:08d}.json"
