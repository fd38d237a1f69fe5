"""Gives up copies that are proven elsewhere.

Invariant: nothing is deleted before enough whole copies were read back now, in other places, and are held so
that nobody releases them meanwhile; objects that the manifest does not name are never deleted.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Sequence

from distributed import Client

from tiering import catalog
from tiering.claim import claimed, version_held
from tiering.corpus import Corpus
from tiering.digest import digest
from tiering.errors import CapacityExceeded, LastCopy, TieringError, UsageError
from tiering.keys import INTERNAL
from tiering.manifest import Manifest
from tiering.scrub import verify
from tiering.stores.base import ObjectInfo
from tiering.tier import Tier


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
        try:
            held.enter_context(claimed(tier.store, corpus.name, intent, shared=False))
        except CapacityExceeded:
            # So full that not even a claim fits, and to be released for that: the hint makes room for it.
            catalog.drop_head(tier.store, corpus.name)
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
            held.enter_context(version_held(tier, corpus.name, corpus.record))
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
