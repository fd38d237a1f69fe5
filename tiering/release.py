"""Gives up copies that are proven elsewhere.

Invariant: nothing is deleted before enough whole copies were read back now, in other places, and are held so
that nobody releases them meanwhile; objects that the manifest does not name are never deleted.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

from distributed import Client

from tiering import catalog, process
from tiering.arguments import whole
from tiering.claim import claimed, claims, version_held
from tiering.corpus import Corpus, need_corpus
from tiering.digest import digest
from tiering.errors import LastCopy, TieringError, UsageError
from tiering.keys import INTERNAL
from tiering.room import refuse_foreign
from tiering.scrub import verify
from tiering.stores.base import ObjectInfo
from tiering.tier import Tier, need_tier, need_tiers

IN_MEMORY: Final = "in memory, which is gone when the machine stops"


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
            names or urls counts once; one in memory does not count, unless `tier` is in memory too.
        copies: tiers to look for them, besides those that `corpus` knows of.
        client: for the verification.

    Returns:
        Bytes given back; 0 where `tier` holds nothing of the corpus.

    Raises:
        LastCopy: too few verified copies remain; nothing was deleted.
        Conflict: another corpus has this name on `tier`, or somebody is at work on it there; or what lies
            there is not of a corpus.
    """
    need_corpus(corpus)
    need_tier(tier)
    need_tiers(copies, "copies")
    min_copies = whole(min_copies, "min_copies", "min_copies=1")
    if tier.read_only:
        raise UsageError("the tier is read-only", tier=tier.name, hint="Open it without read_only")
    if not catalog.is_published(tier.store, corpus.name, corpus.version):
        refuse_foreign(tier, corpus.name, [info.key for info in tier.store.list(corpus.name)])
        if not _belonging(corpus, tier):
            return 0
    intent = digest(f"release {corpus.record.manifest}".encode())
    with (
        name_held(corpus, tier, intent, "released"),
        proven(corpus, tier, min_copies=min_copies, copies=copies, client=client),
    ):
        return drop_version(corpus, tier)


@contextmanager
def name_held(corpus: Corpus, tier: Tier, intent: str, purpose: str) -> Iterator[None]:
    """Claim the name of a corpus that is to be deleted, also where the tier is so full that no claim fits."""
    with contextlib.ExitStack() as held:
        catalog.with_room(
            tier.store,
            corpus.name,
            lambda: held.enter_context(
                claimed(tier.store, corpus.name, intent, shared=False, purpose=purpose)
            ),
        )
        if catalog.is_published(tier.store, corpus.name, corpus.version):
            corpus.at(tier)
        yield


@contextmanager
def proven(
    corpus: Corpus, tier: Tier, *, min_copies: int, copies: Sequence[Tier], client: Client | None
) -> Iterator[None]:
    """Prove that `min_copies` whole copies are elsewhere than on `tier`, and hold them while the block runs.

    Raises:
        LastCopy: there are too few.
    """
    if min_copies < 1:
        raise LastCopy(
            f"min_copies = {min_copies} would allow to delete the last copy", hint="Give at least 1"
        )
    candidates = [other for other in (*copies, corpus.tier, *corpus.others) if other != tier]
    with contextlib.ExitStack() as held:
        problems = []
        count = 0
        for other, problem in _other_places(corpus, tier, dict.fromkeys(candidates)).items():
            found = problem or _proof(corpus, other, held, client)
            if found:
                problems.append(f"{other.name}: {found}")
            else:
                count += 1
        if count < min_copies:
            raise LastCopy(
                f"corpus {corpus.name!r} has {count} verified copies elsewhere, {min_copies} needed"
                f" ({'; '.join(problems) or 'no other tier named'})",
                tier=tier.name,
                hint="Move it to another tier first, or name the tiers that hold it",
            )
        yield


def is_lasting_beside(other: Tier, tier: Tier) -> bool:
    """Whether a copy on `other` can stand for one on `tier`: not so if it alone is gone with the machine."""
    return tier.store.is_volatile() or not other.store.is_volatile()


def drop_version(corpus: Corpus, tier: Tier) -> int:
    """Delete what the manifest names and no other version does: first what makes it visible, then the bytes.

    The caller holds the name. Claims stay: their numbers must go on.

    Returns:
        Bytes given back.
    """
    store, name = tier.store, corpus.name
    belonging = _belonging(corpus, tier)
    catalog.unpublish(store, name, corpus.version)
    store.sweep(name)
    for info in belonging:
        store.delete(info.key)
    return sum(info.nbytes for info in belonging)


def _other_places(corpus: Corpus, tier: Tier, candidates: Iterable[Tier]) -> dict[Tier, str | None]:
    """The candidates, each with None when it is another place than `tier` and than those before it.

    Two urls can mean one place (links, mounts, addresses of one server). So a small object is written to each
    place, and whoever sees it is a place that was seen before. To those that are read-only, which come last,
    nothing can be written: of these, files are told apart by their inodes, and all others count as one.
    """
    key = corpus.key(f"{INTERNAL}/probes/{secrets.token_hex(8)}")
    probe = process.current().text().encode()  # so that `tiering.gc` leaves those of the living alone
    found: dict[Tier, str | None] = {}
    marked = [tier]
    try:
        catalog.with_room(tier.store, corpus.name, lambda: tier.store.write(key, [probe]))
        bare: dict[tuple[int, int] | None, Tier] = {}
        for candidate in sorted(candidates, key=lambda tier: tier.read_only):
            try:
                if not is_lasting_beside(candidate, tier):
                    found[candidate] = IN_MEMORY
                    continue
                if candidate.store.exists(key):
                    found[candidate] = "the same place as a tier before it"
                    continue
                if candidate.read_only:
                    before = bare.setdefault(_inode(corpus, candidate), candidate)
                    if before is not candidate:
                        found[candidate] = f"read-only, and not to be told from {before.name}"
                        continue
                else:
                    marked.append(candidate)
                    catalog.with_room(
                        candidate.store, corpus.name, partial(candidate.store.write, key, [probe])
                    )
                found[candidate] = None
            except TieringError as error:
                found[candidate] = str(error)
    finally:
        for candidate in marked:
            with contextlib.suppress(TieringError):
                candidate.store.delete(key)
    return found


def _inode(corpus: Corpus, tier: Tier) -> tuple[int, int] | None:
    """The file that holds the version's record on a tier, where it is one."""
    where = tier.store.locate(catalog.record_key(corpus.name, corpus.version))
    if where is None or tier.kind != "file":
        return None
    with contextlib.suppress(OSError):  # gone meanwhile, which whoever verifies it will tell
        found = where.path.stat()
        return found.st_dev, found.st_ino
    return None


def _proof(corpus: Corpus, tier: Tier, held: contextlib.ExitStack, client: Client | None) -> str | None:
    """None when the copy on `tier` is whole, read back now, and held from now on; else why not."""
    try:
        corpus.at(tier)
        if not tier.read_only:
            held.callback(catalog.put_head_back, tier.store, corpus.name)
            catalog.with_room(
                tier.store,
                corpus.name,
                lambda: held.enter_context(version_held(tier, corpus.name, corpus.record)),
            )
        report = verify(corpus, tier, client=client, progress=False)
        if tier.read_only and _is_claimed_by_others(corpus, tier):
            return "read-only, and somebody else is at work on it there"
    except TieringError as error:
        return str(error)
    return None if report.ok else f"{len(report.missing)} missing, {len(report.damaged)} damaged"


def _is_claimed_by_others(corpus: Corpus, tier: Tier) -> bool:
    """Whether the copy may be on its way out. Asked with a claim on the tier that shall give up its own copy.

    So of two releases that name each other's tier as their proof, at least one sees the other.
    """
    held = claims(tier.store, corpus.name).all()
    return any(claim.counts and claim.intent != corpus.record.manifest for claim in held)


def _belonging(corpus: Corpus, tier: Tier) -> list[ObjectInfo]:
    """Objects on a tier that are of this version and of no other; what a killed release left, too."""
    store, name = tier.store, corpus.name
    others = [version for version in catalog.versions(store, name) if version != corpus.version]
    loaded = [catalog.load(store, name, version) for version in others]
    kept = {key for _record, manifest in loaded for key in manifest.named()}
    gone = set(map(corpus.key, corpus.contents.named() - kept))
    if all(record.manifest != corpus.record.manifest for record, _manifest in loaded):
        gone.add(catalog.manifest_key(name, corpus.record.manifest))
    inside = {corpus.key(f"{INTERNAL}/{folder}") for folder in ("manifests", "quarantine", "probes")}
    return [
        info
        for info in store.list(name)
        if info.key in gone or (not others and info.key.rpartition("/")[0] in inside)
    ]
