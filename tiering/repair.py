"""Repairs copies from verified copies on other tiers.

Invariant: a damaged object is put aside below ``.tiering/quarantine/`` before it is replaced, never just
overwritten, and is replaced only by bytes that were read whole and found to have the digest that the manifest
names. A link, a folder or a pipe in place of an object is put aside as it is. What cannot be read at all
leaves nothing to put aside.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dask.delayed import Delayed, delayed
from distributed import Client

from tiering import catalog
from tiering.catalog import Record
from tiering.claim import claimed, version_held
from tiering.corpus import Corpus
from tiering.digest import Buffer, digest
from tiering.errors import (
    Conflict,
    Corrupt,
    FormatError,
    NotFound,
    TieringError,
    UnsupportedVersion,
    UsageError,
)
from tiering.graph import choose_client, run_tasks
from tiering.keys import INTERNAL
from tiering.room import adding, room_held
from tiering.stores.base import Store
from tiering.tier import Tier
from tiering.transfer import is_verified, read_verified, write_verified

log = logging.getLogger("tiering.repair")

_BATCH_SHARDS = 4


@dataclass(frozen=True, slots=True)
class Repaired:
    """What became of one object; `problem` says why it could not be repaired, None where it was."""

    key: str
    source: str | None
    """Name of the tier whose copy it has now."""
    problem: str | None = None


def repair(
    corpus: Corpus, keys: Sequence[str], others: Sequence[Tier], client: Client | None = None
) -> list[Repaired]:
    """Replace shards and documents of the copy that `corpus` is seen on by verified copies from elsewhere.

    Args:
        corpus: seen on the tier to repair.
        keys: of missing, corrupt or unreadable objects, relative to the corpus.
        others: tiers to ask, in this order.
        client: Dask client.

    Raises:
        CapacityExceeded: there is no room for what is missing and for what is put aside.
        Conflict: somebody is at work on this corpus there.
    """
    tier, store = corpus.tier, corpus.tier.store
    expected = _expected(corpus)
    present = {info.key: info.nbytes for info in store.list(corpus.name)}
    planned = {corpus.key(key): expected[key][0] for key in keys}
    for key in keys:
        if (nbytes := present.get(corpus.key(key))) is not None:
            planned[corpus.key(f"{INTERNAL}/quarantine/{digest(key.encode())}")] = nbytes
    results: list[Repaired] = []
    with (
        version_held(tier, corpus.name, corpus.record),
        room_held(tier, corpus.name, adding(planned)),
        choose_client(client, sum(expected[key][0] for key in keys), [tier, *others]) as chosen,
    ):
        for done in run_tasks(_tasks(corpus, keys, expected, others), chosen):
            results += done
    return sorted(results, key=lambda result: result.key)


def repair_batch(
    tier: Tier,
    name: str,
    keys: Sequence[str],
    sizes: Sequence[int],
    digests: Sequence[str],
    documents: Mapping[str, bytes],
    others: Sequence[Tier],
) -> list[Repaired]:
    """Repair some objects of corpus `name`; the task of a repair."""
    results = []
    for key, size, expected in zip(keys, sizes, digests, strict=True):
        try:
            if key not in documents:
                found, good = _fetch(others, f"{name}/{key}", size, expected)
                source = found.name
            else:
                source, good = "the manifest", documents[key]
            _clear(tier.store, name, key)
            _put_back(tier.store, name, key, good, expected)
            results.append(Repaired(key, source))
        except TieringError as error:
            results.append(Repaired(key, None, str(error)))
    return results


def repair_catalog(name: str, record: Record, tier: Tier, others: Sequence[Tier]) -> list[str]:
    """Repair a version's record, manifest and ``HEAD`` on a tier, byte for byte; gives the keys repaired.

    A record that is missing is not made anew: the copy may have been given up. A move makes it anew.

    Raises:
        NotFound: the version is not published on `tier`.
        Conflict: another corpus has its name there, or somebody is at work on it.
        Corrupt: the manifest is damaged, and no other tier has a good one.
    """
    if tier.read_only:
        raise UsageError("the tier is read-only", tier=tier.name, hint="Open it without read_only")
    with claimed(tier.store, name, record.manifest, shared=True, purpose="repaired"):
        return _repair_catalog(tier.store, name, record, others)


def fetch_copy(corpus: Corpus, key: str, nbytes: int, expected: str) -> tuple[Tier, Buffer]:
    """A verified copy of one shard from another tier that is known to hold one.

    Raises:
        Corrupt: no other tier has a good copy; says what each of them answered.
    """
    try:
        return _fetch(corpus.others, corpus.key(key), nbytes, expected)
    except Corrupt as error:
        error.tier = corpus.tier.name
        raise


def heal(corpus: Corpus, key: str, nbytes: int, expected: str) -> tuple[Buffer, bool]:
    """Replace a damaged, unreadable or missing shard by a verified copy from another tier, while it is read.

    A tier that is read-only, full or sick, or that gave up the corpus meanwhile or has another one of its
    name, stays as it is: the good bytes are handed out all the same.

    Returns:
        The good bytes, and whether they are on the tier again.

    Raises:
        Corrupt: no other tier has a good copy; nothing was changed.
    """
    _source, data = fetch_copy(corpus, key, nbytes, expected)
    tier = corpus.tier
    try:
        if tier.read_only or not catalog.is_published(tier.store, corpus.name, corpus.version):
            return data, False
        with version_held(tier, corpus.name, corpus.record):  # nobody gives it up, and it is not another's
            if not catalog.is_published(tier.store, corpus.name, corpus.version):
                return data, False
            _put_back(tier.store, corpus.name, key, data, expected)
    except TieringError as error:
        log.warning("shard %s stays bad on tier %s: %s", corpus.key(key), tier.name, error)
        return data, False
    return data, True


def _repair_catalog(store: Store, name: str, record: Record, others: Sequence[Tier]) -> list[str]:
    prefix = f"{name}/"
    record_key = catalog.record_key(name, record.version).removeprefix(prefix)
    manifest_key = catalog.manifest_key(name, record.manifest).removeprefix(prefix)
    try:
        found = catalog.record(store, name, record.version)
    except NotFound as error:
        error.hint = "Move it there again: what is there and right is skipped"
        raise
    except UnsupportedVersion:
        raise
    except FormatError:
        found = None
    if found is not None and found != record and _has_manifest(store, name, found):
        hint = "Choose another tier"
        raise Conflict(f"another corpus is called {name!r} there", tier=store.name, hint=hint)
    if found != record and not store.exists(prefix + manifest_key):
        raise Conflict(
            f"the version record is damaged, and nothing there says that it is corpus {name!r}",
            tier=store.name,
            key=prefix + record_key,
            hint="Move the corpus to another name or tier",
        )
    repaired = []
    if not _has_manifest(store, name, record):
        _clear(store, name, manifest_key)
        _put_back(store, name, manifest_key, _manifest(name, record, others), record.manifest)
        repaired.append(manifest_key)
    if found != record:
        good = record.encode()
        _put_back(store, name, record_key, good, digest(good))
        repaired.append(record_key)
    if catalog.write_head(store, name):
        repaired.append(f"{INTERNAL}/HEAD")
    return repaired


def _fetch(others: Sequence[Tier], key: str, nbytes: int, expected: str) -> tuple[Tier, Buffer]:
    answers = []
    for tier in others:
        try:
            return tier, read_verified(tier.store, key, nbytes, expected)
        except TieringError as error:
            answers.append(f"{tier.name}: {error.message}")
    told = "; ".join(answers) or "no other tier with a copy is known"
    raise Corrupt(
        f"no good copy of the shard ({told})",
        key=key,
        hint="Name a tier that has one (--from TIER, in Python others=[tier]), or move it here again",
    )


def _clear(store: Store, name: str, key: str) -> None:
    """Put aside, without following it, what lies in the place of an object and is none."""
    aside = f"{name}/{INTERNAL}/quarantine/{digest(key.encode())[:32]}-{secrets.token_hex(8)}"
    if store.set_aside(f"{name}/{key}", aside):
        log.warning("%s/%s on tier %s was no object; it is now %s", name, key, store.name, aside)


def _put_back(store: Store, name: str, key: str, good: Buffer, expected: str) -> None:
    """Put the bad bytes of an object into quarantine and the good ones in their place."""
    try:
        bad = store.read(f"{name}/{key}")
    except (NotFound, Corrupt):
        bad = b""
    except TieringError as error:
        if not error.retryable:
            raise
        # The medium gives these bytes no more. If it is the tier that is away, the write fails too.
        log.warning("%s/%s on tier %s cannot be put aside: %s", name, key, store.name, error)
        bad = b""
    if bad:
        found = digest(bad)
        if found == expected:  # somebody else was faster
            return
        aside = f"{name}/{INTERNAL}/quarantine/{found}"
        if not is_verified(store, aside, len(bad), found):
            store.write(aside, [bad])
    write_verified(store, f"{name}/{key}", [good], len(good), expected)


def _has_manifest(store: Store, name: str, record: Record) -> bool:
    try:
        catalog.manifest_bytes(store, name, record)
    except (Corrupt, FormatError):
        return False
    except TieringError as error:
        if not error.retryable or not store.exists(catalog.record_key(name, record.version)):
            raise
        return False  # the tier answers, the manifest alone cannot be read
    return True


def _manifest(name: str, record: Record, others: Sequence[Tier]) -> Buffer:
    answers = []
    for tier in others:
        try:
            return catalog.manifest_bytes(tier.store, name, record)
        except TieringError as error:
            answers.append(f"{tier.name}: {error.message}")
    raise Corrupt(
        f"no good copy of the manifest ({'; '.join(answers) or 'no other tier is known'})",
        key=catalog.manifest_key(name, record.manifest),
        hint="Name a tier that holds the corpus",
    )


def _expected(corpus: Corpus) -> dict[str, tuple[int, str]]:
    """Bytes and digest of every object that the manifest names."""
    table, documents = corpus.manifest, corpus.contents.documents
    sizes = zip(table["nbytes"].to_pylist(), table["digest"].to_pylist(), strict=True)
    shards = dict(zip(table["key"].to_pylist(), sizes, strict=True))
    return shards | {key: (len(text), digest(text)) for key, text in documents.items()}


def _tasks(
    corpus: Corpus, keys: Sequence[str], expected: Mapping[str, tuple[int, str]], others: Sequence[Tier]
) -> Iterator[Delayed]:
    task = delayed(repair_batch, pure=False)
    for start in range(0, len(keys), _BATCH_SHARDS):
        some = keys[start : start + _BATCH_SHARDS]
        documents = {key: text for key, text in corpus.contents.documents.items() if key in some}
        sizes, digests = zip(*(expected[key] for key in some), strict=True)
        yield task(corpus.tier, corpus.name, list(some), sizes, digests, documents, tuple(others))
