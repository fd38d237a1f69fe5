"""Lifecycle jobs: rules over all corpora of some tiers, done by the guarded moves and releases of every day.

Invariant: a copy goes only by `tiering.release`, after proof of the copies that the rules want to remain; but
a rule that forgets old versions with ``min_copies = 0`` may give up a last copy, never of a newest version.

What the tiers record of a version: its bytes, and when its record was written on each of them, of which the
earliest counts. So a copy is as old as the oldest that remains. When a corpus was read, and how often, the
access logs of node caches tell that the job names; what none of them has counts as read when they began.
Where none is named, a corpus counts as last used when it was written. Tags are not recorded. A rule that
needs what is not known is refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from distributed import Client

from policies.lifecycle import Catalogue, Outcome, Step, apply_rules
from tiering import catalog
from tiering.catalog import Record
from tiering.corpus import Corpus, open_corpus
from tiering.errors import ConfigError, Conflict, LastCopy, TieringError
from tiering.forget import forget
from tiering.jobs.reads import Reads, read_logs
from tiering.jobs.result import JobResult
from tiering.jobs.spec import LifecycleJob
from tiering.plan import plan_move
from tiering.release import IN_MEMORY, is_lasting_beside, release
from tiering.tier import Tier

_NOTE = "no access_logs are named: a corpus counts as last used when it was written"


@dataclass(frozen=True, slots=True)
class Holding:
    """A version of a corpus: the tiers that hold it, its bytes, and when it was first written, if known.

    last_read_seconds, reads: of its shards, by the access logs; None without these.
    """

    record: Record
    tiers: tuple[Tier, ...]
    nbytes: int
    created_seconds: float | None
    last_read_seconds: float | None = None
    reads: int | None = None

    @property
    def last_used_seconds(self) -> float | None:
        """When it was read last or, if that is later or all that is known, written."""
        known = (self.created_seconds, self.last_read_seconds)
        return max((seconds for seconds in known if seconds is not None), default=None)


Stock = dict[tuple[str, int], Holding]


def take_stock(tiers: tuple[Tier, ...], reads: Reads | None = None) -> tuple[Stock, dict[str, TieringError]]:
    """All versions of all corpora on the tiers, by name and number, in that order; and what is wrong.

    A corpus of which anything cannot be read, or under whose name and number tiers hold different ones, is
    in no part in the stock: its error is told by its name.
    """
    found: Stock = {}
    problems: dict[str, TieringError] = {}
    for tier in tiers:
        for name in catalog.corpora(tier.store):
            try:
                for version in catalog.versions(tier.store, name):
                    found[name, version] = _held(tier, name, version, found.get((name, version)), reads)
            except TieringError as error:
                problems.setdefault(name, error)
    return {key: found[key] for key in sorted(found) if key[0] not in problems}, problems


def _held(tier: Tier, name: str, version: int, known: Holding | None, reads: Reads | None) -> Holding:
    """A version on one more tier."""
    record = catalog.record(tier.store, name, version)
    if known is not None and known.record != record:
        raise Conflict(
            f"another corpus is called {name!r} on tier {known.tiers[0].name!r}",
            tier=tier.name,
            hint="Rename one: ingest it under another name and forget the old one",
        )
    written = tier.store.stat(catalog.record_key(name, version)).modified_seconds
    times = [known.created_seconds if known else None, written]
    created = min((one for one in times if one is not None), default=None)
    if known is not None:
        return replace(known, tiers=(*known.tiers, tier), created_seconds=created)
    manifest = catalog.load(tier.store, name, version)[1]
    holding = Holding(record, (tier,), manifest.nbytes, created)
    if reads is None:
        return holding
    digests = manifest.table["digest"].to_pylist()
    return replace(holding, last_read_seconds=reads.last(digests), reads=reads.count(digests))


def catalogue_of(stock: Stock, tiers: tuple[Tier, ...]) -> Catalogue:
    """The table that rules are evaluated over."""
    held = [{tier.name for tier in holding.tiers} for holding in stock.values()]
    written = [holding.created_seconds for holding in stock.values()]
    used = [holding.last_used_seconds for holding in stock.values()]
    reads = [holding.reads for holding in stock.values()]
    return Catalogue(
        names=[name for name, _ in stock],
        tiers=[tier.name for tier in tiers],
        present=np.array([[tier.name in on for tier in tiers] for on in held], bool).reshape(-1, len(tiers)),
        nbytes=np.array([holding.nbytes for holding in stock.values()], np.int64),
        created_seconds=None if None in written else np.array(written, np.float64),
        last_access_seconds=None if None in used else np.array(used, np.float64),
        accesses=None if None in reads else np.array(reads, np.int64),
        versions=np.array([version for _, version in stock], np.int64),
        capacity_bytes={tier.name: tier.capacity_bytes for tier in tiers if tier.capacity_bytes is not None},
    )


def run_lifecycle(
    job: LifecycleJob,
    client: Client | None,
    *,
    dry_run: bool,
    progress: bool | None,
    announce: Callable[[str], None] | None,
) -> Iterator[JobResult]:
    """Do what the rules say; yields the result of each action. One that fails does not stop the next.

    Raises:
        ConfigError: a rule needs what the tiers do not record.
    """
    stock, problems = take_stock(job.tiers, read_logs(job.access_logs))
    for name, error in problems.items():
        yield JobResult(f"{job.name}: {name}", "failed", error=error)
    try:
        outcome = apply_rules(job.rules, catalogue_of(stock, job.tiers), time.time())
    except ValueError as error:
        message, _, example = str(error).rpartition("; e.g. ")
        raise ConfigError(message, hint=f"Example: {example}") from None
    if announce is not None:
        for text in _told(job, outcome, explain=dry_run):
            announce(text)
    tiers = {tier.name: tier for tier in job.tiers}
    keys = list(stock)
    places = {key: list(holding.tiers) for key, holding in stock.items()}  # and those that come to hold it
    idle = True
    for step in outcome.steps():
        idle = False
        name, version = keys[step.row]
        way = f"{step.source} to {step.target}" if step.target else f"from {step.source}"
        label = f"{job.name}: {step.kind} {name} v{version} {way}"
        try:
            corpus = open_corpus(tiers[step.source], name, version, others=tuple(places[name, version]))
            target = None if step.target is None else tiers[step.target]
            if step.min_copies == 0:
                _check_newer(corpus, places)
            yield _act(label, step, corpus, target, client, dry_run, progress)
            if target is not None:
                places[name, version].append(target)
        except TieringError as error:
            yield JobResult(label, "failed", error=error)
    if idle and not problems:
        yield JobResult(job.name, "nothing to do")


def _check_newer(corpus: Corpus, places: dict[tuple[str, int], list[Tier]]) -> None:
    """Raise `LastCopy` where a last copy would go and newer versions are in memory only."""
    newer = [
        held for (name, version), held in places.items() if name == corpus.name and version > corpus.version
    ]
    if not any(is_lasting_beside(tier, corpus.tier) for held in newer for tier in held):
        raise LastCopy(
            f"every newer version of corpus {corpus.name!r} is {IN_MEMORY}",
            tier=corpus.tier.name,
            hint="Move the newest version to a tier that lasts first",
        )


def _act(
    label: str,
    step: Step,
    corpus: Corpus,
    target: Tier | None,
    client: Client | None,
    dry_run: bool,
    progress: bool | None,
) -> JobResult:
    """One action, by the road that a person would take."""
    plan = None if target is None else plan_move(corpus, target)
    if dry_run:
        freed = 0 if step.kind == "copy" else corpus.nbytes
        nbytes, cost = (plan.nbytes, plan.cost) if plan is not None else (0, 0.0)
        return JobResult(label, "planned", nbytes=nbytes, freed_bytes=freed, dollars=cost)
    report = None if plan is None else plan.run(client, progress=progress)
    freed = 0
    if step.min_copies == 0 and step.kind == "forget":
        freed = forget(corpus.tier, corpus.name, corpus.version, last_copy=True, client=client)
    elif step.kind != "copy":
        copies = corpus.others if target is None else (target, *corpus.others)
        freed = release(corpus, corpus.tier, min_copies=step.min_copies, copies=copies, client=client)
    if report is None or plan is None:
        return JobResult(label, "done" if freed else "nothing to do", freed_bytes=freed)
    return JobResult(label, "done", report.moved, report.skipped, report.nbytes, freed, plan.cost)


def _told(job: LifecycleJob, outcome: Outcome, *, explain: bool) -> Iterator[str]:
    """What people should know before anything is done."""
    timed = ("idle_for", "used_within")
    if not job.access_logs and any(
        rule.order_by == "idlest" or any(getattr(rule, key) for key in timed) for rule in job.rules.rules
    ):
        yield f"{job.name}: {_NOTE}"
    if explain:
        stock = outcome.catalogue
        for row, name in enumerate(stock.names):
            version = int(stock.versions[row]) if stock.versions is not None else None
            lines = [f"  {verdict}" for verdict in outcome.explain(name, version)]
            yield "\n".join([stock.label(row), *lines])
    for rule, count in outcome.waiting.items():
        yield f"{job.name}: {count} wait for the next run: {rule!r} is at its limit, or its target full"
