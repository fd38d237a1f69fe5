"""The command run: scheduled tiering jobs from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer
from dask.utils import format_bytes
from rich.markup import escape
from rich.table import Table

from tiering.cli.session import Session
from tiering.jobs.lock import job_lock
from tiering.jobs.result import JobResult
from tiering.jobs.run import run_jobs
from tiering.jobs.spec import load_jobs

PARTIAL: Final = 3


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("run")(run_command)


def run_command(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Job file (TOML).")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plans and change nothing.")] = False,
) -> None:
    """Run the jobs of a file, one after the other; made for cron and systemd timers.

    A job is of the kind [bold]stage[/bold] (copy towards the GPU), [bold]demote[/bold] (copy away from it,
    then give up the source's copy) or [bold]lifecycle[/bold] (what its rules say of all corpora).
    Exit codes: 0 all done, 1 all failed, 3 some failed, 11 already running.
    """
    session = Session.of(context)
    with job_lock(file), session.client() as client:
        jobs = load_jobs(file, session.config)
        results = list(
            run_jobs(
                jobs,
                client,
                dry_run=dry_run,
                progress=session.progress,
                announce=lambda text: session.say(escape(text)),
            )
        )
    table = Table("job", "status", "shards moved", "were there", "bytes", "freed", "dollars")
    for result in results:
        status = escape(f"{result.status}: {result.error}" if result.error else result.status)
        table.add_row(
            escape(result.job),
            f"[red]{status}" if result.error else status,
            str(result.moved),
            str(result.skipped),
            format_bytes(result.nbytes),
            format_bytes(result.freed_bytes),
            f"{result.dollars:.4f}",
        )
    failed = sum(result.status == "failed" for result in results)
    session.result({"ok": not failed, "dry_run": dry_run, "jobs": [_document(r) for r in results]}, table)
    if failed:
        raise typer.Exit(1 if failed == len(results) else PARTIAL)


def _document(result: JobResult) -> dict[str, Any]:
    return {
        "job": result.job,
        "status": result.status,
        "moved": result.moved,
        "skipped": result.skipped,
        "bytes": result.nbytes,
        "freed_bytes": result.freed_bytes,
        "dollars": result.dollars,
        "error": str(result.error) if result.error else None,
    }
