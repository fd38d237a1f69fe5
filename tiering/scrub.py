"""Verifies copies against their manifest, and heals a damaged shard from another tier.

Invariant: nothing is called whole that was not read back and found to have its digest; a damaged object is
put aside before it is replaced, never just overwritten.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dask.delayed import Delayed, delayed
from distributed import Client

from tiering import catalog
from tiering.corpus import Corpus
from tiering.digest import digest
from tiering.errors import Corrupt, NotFound, TieringError
from tiering.graph import choose_client, run_tasks
from tiering.keys import INTERNAL
from tiering.progress import track
from tiering.stores.base import Store
from tiering.tier import Tier
from tiering.transfer import put_verified, read_verified

log = logging.getLogger("tiering.scrub")

_BATCH_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a verification found; keys are relative to the corpus, sorted."""

    missing: tuple[str, ...]
    corrupt: tuple[str, ...]
    extra: tuple[str, ...]
    """Objects below the corpus that its manifest does not name; they do no harm."""
    nbytes: int
    """Bytes read and found right."""

    @property
    def ok(self) -> bool:
        """Whether every shard and document is there and right."""
        return not self.missing and not self.corrupt


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What one task found."""

    missing: tuple[str, ...]
    corrupt: tuple[str, ...]
    nbytes: int


def check_batch(
    tier: Tier, name: str, keys: Sequence[str], sizes: Sequence[int], digests: Sequence[str]
) -> CheckResult:
    """Read some objects of corpus `name` back; the task of a verification."""
    missing, corrupt, nbytes = [], [], 0
    for key, size, expected in zip(keys, sizes, digests, strict=True):
        try:
            read_verified(tier.store, f"{name}/{key}", size, expected)
            nbytes += size
        except NotFound:
            missing.append(key)
        except Corrupt:
            corrupt.append(key)
    return CheckResult(tuple(missing), tuple(corrupt), nbytes)


def verify(
    corpus: Corpus, tier: Tier | None = None, *, client: Client | None = None, progress: bool | None = None
) -> VerifyReport:
    """Read a copy back, whole, and compare it with the manifest.

    Args:
        corpus: the corpus.
        tier: whose copy; by default the one that `corpus` is seen on.
        client: Dask client; by default the current one, else threads for small work or a local cluster.
        progress: show a progress bar; by default when standard error is a terminal.

    Raises:
        NotFound: the corpus is not published on `tier`. Conflict: another corpus has its name there.
        Corrupt: the manifest itself is missing or damaged there.
    """
    here = corpus.at(tier or corpus.tier)
    tier = here.tier
    catalog.load(tier.store, here.name, here.version)  # reads the manifest back too
    missing: list[str] = []
    corrupt: list[str] = []
    nbytes = 0
    with (
        choose_client(client, here.nbytes, [tier]) as chosen,
        track(f"{here.name}: verify on {tier.name}", here.nbytes, chosen, progress) as bar,
    ):
        for result in run_tasks(_tasks(here), chosen):
            missing += result.missing
            corrupt += result.corrupt
            nbytes += result.nbytes
            bar.advance(result.nbytes)
    return VerifyReport(tuple(sorted(missing)), tuple(sorted(corrupt)), _extra(here, tier.store), nbytes)


def fetch_copy(corpus: Corpus, key: str, nbytes: int, expected: str) -> tuple[Tier, bytearray]:
    """A verified copy of one shard from another tier that is known to hold one.

    Raises:
        Corrupt: no other tier has a good copy; says what each of them answered.
    """
    answers = []
    for tier in corpus.others:
        try:
            return tier, read_verified(tier.store, corpus.key(key), nbytes, expected)
        except TieringError as error:
            answers.append(f"{tier.name}: {error.message}")
    told = "; ".join(answers) or "no other tier with a copy is known"
    raise Corrupt(
        f"no good copy of the shard ({told})",
        tier=corpus.tier.name,
        key=corpus.key(key),
        hint="Open the corpus with others=[tier], or move it here again",
    )


def heal(corpus: Corpus, key: str, nbytes: int, expected: str) -> tuple[bytearray, bool]:
    """Replace a damaged or missing shard by a verified copy from another tier.

    The damaged bytes are kept below ``.tiering/quarantine/``. A tier that is read-only, full or sick, or that
    gave up the corpus meanwhile, stays as it is: the good bytes are handed out all the same.

    Returns:
        The good bytes, and whether they are on the tier again.

    Raises:
        Corrupt: no other tier has a good copy; nothing was changed.
    """
    _source, data = fetch_copy(corpus, key, nbytes, expected)
    try:
        return data, _put_back(corpus, key, data, expected)
    except TieringError as error:
        log.warning("shard %s stays bad on tier %s: %s", corpus.key(key), corpus.tier.name, error)
        return data, False


def _put_back(corpus: Corpus, key: str, good: bytearray, expected: str) -> bool:
    """Put the bad copy of a shard into quarantine and the good one in its place."""
    store = corpus.tier.store
    if corpus.tier.read_only or not catalog.is_published(store, corpus.name, corpus.version):
        return False
    try:
        bad = store.read(corpus.key(key))
    except (NotFound, Corrupt):
        bad = bytearray()
    if bad and digest(bad) != expected:  # else it is missing, or somebody else healed it
        store.write(corpus.key(f"{INTERNAL}/quarantine/{digest(bad)}"), [bad])
    put_verified(store, corpus.key(key), [good], len(good), expected)
    return True


def _tasks(corpus: Corpus) -> Iterator[Delayed]:
    task = delayed(check_batch, pure=False)
    documents = corpus.contents.documents
    digests = [digest(text) for text in documents.values()]
    yield task(corpus.tier, corpus.name, list(documents), [len(text) for text in documents.values()], digests)
    keys, sizes, digests = (corpus.manifest[name].to_pylist() for name in ("key", "nbytes", "digest"))
    start = 0
    while start < len(keys):
        stop, nbytes = start + 1, sizes[start]
        while stop < len(keys) and nbytes + sizes[stop] <= _BATCH_BYTES:
            nbytes += sizes[stop]
            stop += 1
        yield task(corpus.tier, corpus.name, keys[start:stop], sizes[start:stop], digests[start:stop])
        start = stop


def _extra(corpus: Corpus, store: Store) -> tuple[str, ...]:
    named = {*corpus.manifest["key"].to_pylist(), *corpus.contents.documents}
    prefix = corpus.key("")
    found = (info.key.removeprefix(prefix) for info in store.list(corpus.name))
    return tuple(sorted(key for key in found if key not in named and not key.startswith(f"{INTERNAL}/")))
