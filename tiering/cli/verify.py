"""The command verify: scrub a copy, and mend it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Final

import typer
from dask.utils import format_bytes
from rich.markup import escape

from tiering import catalog
from tiering.cli.session import Session
from tiering.corpus import Corpus, open_corpus
from tiering.errors import NotFound, TieringError
from tiering.scrub import VerifyReport, verify
from tiering.tier import Tier

PARTIAL: Final = 3

NameArgument = Annotated[str, typer.Argument(help="Name of the corpus.")]
OnOption = Annotated[str, typer.Option("--on", help="Tier: a name from the configuration, a path or a url.")]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("verify")(verify_command)


def verify_command(
    context: typer.Context,
    name: NameArgument,
    tier: OnOption,
    version: Annotated[
        int | None, typer.Option("--version", help="Number of a version; the newest by default.")
    ] = None,
    subset: Annotated[
        str | None, typer.Option(help="Part k/n: day k of n reads its share, n days read all.")
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Replace what is damaged by verified copies from other tiers.")
    ] = False,
    sources: Annotated[
        list[str] | None,
        typer.Option("--from", help="Tier that holds another copy; by default all of the configuration."),
    ] = None,
) -> None:
    """Read a copy back and compare it with its manifest; with --repair, mend it.

    Exit codes: 0 whole (or whole again), 1 damaged, 3 some of the damage was repaired.

    Example: tiering verify web-text --on disk --repair --subset 1/7
    """
    session = Session.of(context)
    place = session.source(tier)
    others = others_of(session, place, sources)
    with session.client() as client:
        corpus = _opened(place, others if repair else [], name, version)
        report = verify(
            corpus,
            place,
            subset=subset,
            repair=repair,
            others=others if repair else (),
            client=client,
            progress=session.progress,
        )
    session.result(_document(report), _told(report, name, place))
    if not report.ok:
        raise typer.Exit(PARTIAL if len(report.failed) < len(report.repaired) else 1)


def _opened(place: Tier, others: Sequence[Tier], name: str, version: int | None) -> Corpus:
    """The corpus on `place`; where its catalogue is damaged there, as one of `others` knows it."""
    try:
        return open_corpus(place, name, version)
    except NotFound:
        raise
    except TieringError:
        with contextlib.suppress(TieringError):
            version = version or max(catalog.versions(place.store, name), default=None)
        for other in others:
            with contextlib.suppress(TieringError):
                return open_corpus(other, name, version)
        raise


def others_of(session: Session, place: Tier, names: Sequence[str] | None) -> list[Tier]:
    """The tiers that were named, or all others of the configuration."""
    if names:
        return [session.source(name) for name in names]
    return [tier for tier in session.config.tiers.values() if not tier.is_same(place)]


def _document(report: VerifyReport) -> dict[str, Any]:
    return {
        "ok": report.ok,
        "bytes": report.nbytes,
        "checked": report.checked,
        "share": report.share,
        "missing": list(report.missing),
        "corrupt": list(report.corrupt),
        "unreadable": list(report.unreadable),
        "extra": list(report.extra),
        "repaired": [asdict(one) for one in report.repaired if one.problem is None],
        "failed": [asdict(one) for one in report.failed],
    }


def _told(report: VerifyReport, name: str, place: Tier) -> str:
    verdict = "[bold red]damaged"
    if report.ok:
        verdict = "[green]repaired" if report.repaired else "[green]whole"
        if report.share < 1 and not report.repaired:
            verdict += " in this part" if report.checked else ", as far as it is in this part: no object is"
    lines = [
        f"{escape(name)} on {escape(place.name)}: {verdict}[/], {format_bytes(report.nbytes)} verified,"
        f" {report.checked} objects, {report.share:.1%} of all"
    ]
    for kind in ("missing", "corrupt", "unreadable", "extra"):
        lines += [f"  {kind}: {escape(key)}" for key in getattr(report, kind)]
    for one in report.repaired:
        told = f"from {one.source}" if one.problem is None else f"not repairable: {one.problem}"
        lines.append(f"  {'repaired' if one.problem is None else 'left'}: {escape(one.key)} {escape(told)}")
    return "\n".join(lines)
