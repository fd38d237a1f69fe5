"""Forgets versions of a corpus, or all of it, on one tier.

Invariant: an object goes only when no version that stays names it. The newest version, and with it the
corpus, goes only after proof that enough whole copies of it are elsewhere, unless the last copy was given
up in so many words. An older version is history: it is kept until it is forgotten here, and needs no
proof.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial

from distributed import Client

from tiering import catalog
from tiering.claim import claimed
from tiering.corpus import Corpus, open_corpus
from tiering.digest import digest
from tiering.errors import Corrupt, FormatError, UnsupportedVersion, UsageError
from tiering.keys import INTERNAL
from tiering.release import drop_version, name_held, proven
from tiering.tier import Tier, need_tier, need_tiers


def forget(
    tier: Tier,
    name: str,
    version: int | None = None,
    *,
    last_copy: bool = False,
    min_copies: int = 1,
    copies: Sequence[Tier] = (),
    client: Client | None = None,
) -> int:
    """Delete a version of a corpus on a tier, or all versions.

    Args:
        tier: where; other tiers are not touched.
        name: of the corpus.
        version: its number; None for all versions.
        last_copy: delete the newest version without proof that it is elsewhere, too. What it held is lost.
        min_copies: how many other places must hold a whole, verified copy of the newest version.
        copies: tiers to look for them.
        client: for the verification.

    Returns:
        Bytes given back.

    Raises:
        NotFound: no such corpus or version. LastCopy: too few verified copies remain; nothing was deleted.
        Conflict: somebody is at work on it there.
        Corrupt, FormatError: the manifest or record of a version is damaged, so that nobody knows what is
            shared with it. Repair it, or say `last_copy` of all versions: then whatever is the corpus's goes.
    """
    need_tier(tier)
    need_tiers(copies, "copies")
    if tier.read_only:
        raise UsageError("the tier is read-only", tier=tier.name, hint="Open it without read_only")
    if version is None and last_copy and not _is_readable(tier, name):
        return _clear(tier, name)
    last = _wanted(tier, name, version, copies)[-1]
    intent = digest(f"forget {last.record.manifest}".encode())
    with contextlib.ExitStack() as held:
        held.enter_context(name_held(last, tier, intent, "forgotten"))
        # Again: others may have forgotten some before we held the name.
        doomed = _wanted(tier, name, version, copies)
        if doomed[-1].version == catalog.head(tier.store, name).version and not last_copy:
            held.enter_context(proven(doomed[-1], tier, min_copies=min_copies, copies=copies, client=client))
        return sum(drop_version(corpus, tier) for corpus in doomed)


def _wanted(tier: Tier, name: str, version: int | None, copies: Sequence[Tier]) -> list[Corpus]:
    """The versions that are to go, the newest last: until then it is what readers find."""
    catalog.head(tier.store, name)  # NotFound where there is no such corpus
    wanted = catalog.versions(tier.store, name) if version is None else [version]
    return [open_corpus(tier, name, number, others=tuple(copies)) for number in wanted]


def _is_readable(tier: Tier, name: str) -> bool:
    """Whether it is known what each version names."""
    try:
        for number in catalog.versions(tier.store, name):
            catalog.load(tier.store, name, number)
    except UnsupportedVersion:
        raise
    except (Corrupt, FormatError):
        return False
    return True


def _clear(tier: Tier, name: str) -> int:
    """Delete all that may be the corpus's, whatever its versions named; claims stay, and so does the rest."""
    store = tier.store
    claim = partial(claimed, store, name, digest(f"clear {name}".encode()), shared=False, purpose="forgotten")
    with contextlib.ExitStack() as held:
        catalog.with_room(store, name, lambda: held.enter_context(claim()))
        for number in catalog.versions(store, name):  # the newest, which readers find, goes last
            store.delete(catalog.record_key(name, number))
        catalog.drop_head(store, name)
        store.sweep(name)
        listed = list(store.list(name))
        inside = tuple(f"{name}/{INTERNAL}/{folder}/" for folder in ("manifests", "quarantine", "probes"))
        gone = {info for info in listed if info.key.startswith(inside)}
        gone.update(catalog.own_objects(listed, name))
        for info in gone:
            store.delete(info.key)
    return sum(info.nbytes for info in gone)
