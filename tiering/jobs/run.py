"""Runs jobs one after the other.

Invariant: a job that fails stops neither the next one nor harms what is there; running the file again goes
on where it stopped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from distributed import Client

from tiering import catalog
from tiering.corpus import Corpus, open_corpus
from tiering.errors import LastCopy, NotFound, TieringError
from tiering.jobs.lifecycle import run_lifecycle
from tiering.jobs.result import JobResult, Status
from tiering.jobs.spec import Job, LifecycleJob
from tiering.plan import plan_move
from tiering.release import IN_MEMORY, is_lasting_beside, release
from tiering.tier import Tier


def run_jobs(
    jobs: Sequence[Job | LifecycleJob],
    client: Client | None = None,
    *,
    dry_run: bool = False,
    progress: bool | None = None,
    announce: Callable[[str], None] | None = None,
) -> Iterator[JobResult]:
    """Run the jobs in their order; yields each result as it is known, of a lifecycle job one for each action.

    Args:
        jobs: from `tiering.jobs.spec.load_jobs`.
        client: Dask client.
        dry_run: plan everything, change nothing.
        progress: show progress bars.
        announce: called with each plan before it runs, and with why rules act as they do in a dry run.
    """
    for job in jobs:
        try:
            if isinstance(job, LifecycleJob):
                yield from run_lifecycle(job, client, dry_run=dry_run, progress=progress, announce=announce)
            else:
                yield _run(job, client, dry_run, progress, announce)
        except TieringError as error:
            yield JobResult(job.name, "failed", error=error)


def _run(
    job: Job,
    client: Client | None,
    dry_run: bool,
    progress: bool | None,
    announce: Callable[[str], None] | None,
) -> JobResult:
    try:
        corpus = open_corpus(job.source, job.corpus, job.version)
    except NotFound:
        if job.kind != "demote":
            raise
        corpus = open_corpus(job.target, job.corpus, job.version)  # an earlier run came so far, or to the end
        freed = 0
        if not dry_run:
            freed = _release(job, corpus, client)
        return JobResult(job.name, "done" if freed else "nothing to do", freed_bytes=freed)
    if job.kind == "demote":
        _check_copies(job, corpus)
    plan = plan_move(corpus, job.target)
    if announce is not None:
        announce(str(plan))
    if dry_run:
        freed = corpus.nbytes if job.kind == "demote" else 0
        return JobResult(
            job.name, "planned", nbytes=plan.nbytes, skipped=0, freed_bytes=freed, dollars=plan.cost
        )
    report = plan.run(client, progress=progress)
    freed = 0
    if job.kind == "demote":
        freed = _release(job, corpus, client)
    status: Status = "done" if report.moved or freed else "nothing to do"
    return JobResult(job.name, status, report.moved, report.skipped, report.nbytes, freed, plan.cost)


def _release(job: Job, corpus: Corpus, client: Client | None) -> int:
    copies = _holders(job, corpus)
    return release(corpus, job.source, min_copies=job.min_copies, copies=copies, client=client)


def _holders(job: Job, corpus: Corpus) -> list[Tier]:
    """The target, and where its copy is not enough other tiers that have one; none that lasts less long."""
    holders = [job.target] if is_lasting_beside(job.target, job.source) else []
    for tier in job.others if job.min_copies > 1 else ():
        with contextlib.suppress(TieringError):  # what cannot be asked proves nothing
            lasting = is_lasting_beside(tier, job.source) and not tier.is_same(job.target)
            if lasting and catalog.is_published(tier.store, corpus.name, corpus.version):
                holders.append(tier)
    return holders


def _check_copies(job: Job, corpus: Corpus) -> None:
    """Raise before anything is copied where too few copies would be there in the end."""
    holders = _holders(job, corpus)
    if len(holders) < job.min_copies:
        raise LastCopy(
            f"corpus {corpus.name!r} would have {len(holders)} copies elsewhere, {job.min_copies} needed"
            f" ({', '.join(tier.name for tier in holders) or f'{job.target.name}: {IN_MEMORY}'})",
            tier=job.source.name,
            hint="Move it to another tier of the configuration first, or lower min_copies",
        )
