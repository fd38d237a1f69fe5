"""Verifies copies against their manifest.

Invariant: nothing is called whole that was not read back and found to have its digest.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dask.delayed import Delayed, delayed
from distributed import Client

from tiering import catalog
from tiering.corpus import Corpus, need_corpus
from tiering.digest import digest
from tiering.errors import Corrupt, FormatError, NotFound, TieringError, UsageError
from tiering.graph import choose_client, run_tasks
from tiering.keys import INTERNAL
from tiering.progress import track
from tiering.repair import Repaired, repair_catalog
from tiering.repair import repair as repair_objects
from tiering.tier import Tier, need_tier, need_tiers
from tiering.transfer import read_verified

_BATCH_BYTES = 256 << 20
_BUCKET_DIGITS = 8
_MOST_PARTS = 16**_BUCKET_DIGITS


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a verification found; keys are relative to the corpus, sorted."""

    missing: tuple[str, ...]
    corrupt: tuple[str, ...]
    extra: tuple[str, ...]
    """Objects below the corpus that no version's manifest names; they do no harm. `tiering.gc` takes those of
    dead work."""
    nbytes: int
    """Bytes read and found right, before any repair."""
    unreadable: tuple[str, ...] = ()
    """Objects that the tier cannot give, though it answers: a bad sector, say."""
    checked: int = 0
    """Objects looked at."""
    share: float = 1.0
    """Of the corpus's objects, how many were looked at."""
    repaired: tuple[Repaired, ...] = ()
    """What became of each damaged object, where a repair was asked for."""

    @property
    def damaged(self) -> tuple[str, ...]:
        """All that is missing, corrupt or unreadable."""
        return tuple(sorted({*self.missing, *self.corrupt, *self.unreadable}))

    @property
    def failed(self) -> tuple[Repaired, ...]:
        """What could not be repaired, with the reason."""
        return tuple(one for one in self.repaired if one.problem is not None)

    @property
    def ok(self) -> bool:
        """Whether every object that was looked at is there and right, now at the end."""
        mended = {one.key for one in self.repaired if one.problem is None}
        return mended.issuperset(self.damaged)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What one task found."""

    missing: tuple[str, ...]
    corrupt: tuple[str, ...]
    unreadable: tuple[str, ...]
    nbytes: int


def check_batch(
    tier: Tier, name: str, version: int, keys: Sequence[str], sizes: Sequence[int], digests: Sequence[str]
) -> CheckResult:
    """Read some objects of corpus `name` back; the task of a verification."""
    missing, corrupt, unreadable, nbytes = [], [], [], 0
    for key, size, expected in zip(keys, sizes, digests, strict=True):
        try:
            read_verified(tier.store, f"{name}/{key}", size, expected)
            nbytes += size
        except NotFound:
            missing.append(key)
        except Corrupt:
            corrupt.append(key)
        except TieringError as error:
            if not error.retryable:
                raise
            catalog.record(tier.store, name, version)  # does the tier still answer? Else this raises
            unreadable.append(key)
    return CheckResult(tuple(missing), tuple(corrupt), tuple(unreadable), nbytes)


def verify(
    corpus: Corpus,
    tier: Tier | None = None,
    *,
    subset: str | tuple[int, int] | None = None,
    repair: bool = False,
    others: Sequence[Tier] = (),
    client: Client | None = None,
    progress: bool | None = None,
) -> VerifyReport:
    """Read a copy back and compare it with the manifest; and repair it, if asked.

    Args:
        corpus: the corpus.
        tier: whose copy; by default the one that `corpus` is seen on.
        subset: ``(k, n)`` or ``"k/n"``: only the k-th of n parts, k from 1. The part of an object is
            decided by its digest alone: the n parts are disjoint, together they are everything, and an
            object keeps its part in later versions. Run part ``weekday/7`` daily, and every week reads
            all. The manifest and the listing are always looked at.
        repair: replace what is missing, corrupt or unreadable by verified copies from `others`; bad bytes go
            to quarantine first. A damaged manifest, version record or ``HEAD`` is repaired too.
        others: tiers that hold copies, besides those that `corpus` knows of.
        client: Dask client; by default the current one, else threads for small work or a local cluster.
        progress: show a progress bar; by default when standard error is a terminal.

    Raises:
        NotFound: the corpus is not published on `tier`. Conflict: another corpus has its name there.
        Corrupt: the manifest itself is missing or damaged there, and not repaired.
        Unavailable, DeadlineExceeded: the tier does not answer at all.
        UsageError: `subset` is no part of anything, or a repair of a read-only tier.
    """
    need_corpus(corpus)
    part = parse_subset(subset)
    tier = tier or corpus.tier
    need_tier(tier)
    need_tiers(others, "others")
    sources = [other for other in dict.fromkeys((*others, corpus.tier, *corpus.others)) if other != tier]
    mended: list[Repaired] = []
    if repair:
        keys = repair_catalog(corpus.name, corpus.record, tier, sources)
        mended = [Repaired(key, "another tier") for key in keys]
    here = corpus.at(tier)
    catalog.load(tier.store, here.name, here.version)  # reads the manifest back too
    items = _items(here)
    chosen_items = [item for item in items if in_part(item[2], part)]
    missing: list[str] = []
    corrupt: list[str] = []
    unreadable: list[str] = []
    nbytes, total_bytes = 0, sum(size for _key, size, _digest in chosen_items)
    with (
        choose_client(client, total_bytes, [tier]) as chosen,
        track(f"{here.name}: verify on {tier.name}", total_bytes, chosen, progress) as bar,
    ):
        for result in run_tasks(_tasks(here, chosen_items), chosen):
            missing += result.missing
            corrupt += result.corrupt
            unreadable += result.unreadable
            nbytes += result.nbytes
            bar.advance(result.nbytes)
    report = VerifyReport(
        missing=tuple(sorted(missing)),
        corrupt=tuple(sorted(corrupt)),
        extra=_extra(here),
        nbytes=nbytes,
        unreadable=tuple(sorted(unreadable)),
        checked=len(chosen_items),
        share=len(chosen_items) / len(items),
    )
    if repair and report.damaged:
        mended += repair_objects(here, report.damaged, sources, client)
    return replace(report, repaired=tuple(mended))


def parse_subset(subset: str | tuple[int, int] | None) -> tuple[int, int] | None:
    """``"2/7"`` as ``(2, 7)``.

    Raises:
        UsageError: it is no part of anything.
    """
    if subset is None:
        return None
    try:
        parts = map(int, subset.split("/")) if isinstance(subset, str) else map(operator.index, subset)
        k, n = parts
    except (TypeError, ValueError):
        k, n = 0, 0
    if not 1 <= k <= n <= _MOST_PARTS:
        raise UsageError(
            f"subset {subset!r} is no part of anything", hint="Example: 2/7, the second of seven"
        )
    return k, n


def in_part(digest: str, part: tuple[int, int] | None) -> bool:
    """Whether what has this digest is in the k-th of n parts; None is all."""
    return part is None or int(digest[:_BUCKET_DIGITS], 16) % part[1] + 1 == part[0]


Item = tuple[str, int, str]
"""Key relative to the corpus, bytes, digest."""


def _items(corpus: Corpus) -> list[Item]:
    documents = corpus.contents.documents.items()
    columns = (corpus.manifest[name].to_pylist() for name in ("key", "nbytes", "digest"))
    return [(key, len(text), digest(text)) for key, text in documents] + list(zip(*columns, strict=True))


def _tasks(corpus: Corpus, items: Sequence[Item]) -> Iterator[Delayed]:
    task = delayed(check_batch, pure=False)
    start = 0
    while start < len(items):
        stop, nbytes = start + 1, items[start][1]
        while stop < len(items) and nbytes + items[stop][1] <= _BATCH_BYTES:
            nbytes += items[stop][1]
            stop += 1
        keys, sizes, digests = zip(*items[start:stop], strict=True)
        yield task(corpus.tier, corpus.name, corpus.version, keys, sizes, digests)
        start = stop


def _extra(corpus: Corpus) -> tuple[str, ...]:
    store = corpus.tier.store
    named = set(corpus.contents.named())
    for version in catalog.versions(store, corpus.name):
        if version != corpus.version:
            try:
                named |= set(catalog.load(store, corpus.name, version)[1].named())
            except (Corrupt, FormatError):
                continue  # that version's own verification tells
    prefix = corpus.key("")
    found = (info.key.removeprefix(prefix) for info in store.list(corpus.name))
    return tuple(sorted(key for key in found if key not in named and not key.startswith(f"{INTERNAL}/")))
