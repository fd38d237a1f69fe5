"""Commands that keep tiers sound: usage, gc, forget, unlock."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from typing import Annotated, Final

import typer
from dask.utils import format_bytes
from rich.markup import escape
from rich.table import Table

from tiering import catalog
from tiering.claim import claims, unlock
from tiering.cli.session import Session
from tiering.cli.verify import NameArgument, OnOption, others_of
from tiering.errors import NotFound, UsageError
from tiering.forget import forget
from tiering.gc import gc
from tiering.reservation import unlock_reservations
from tiering.room import usage
from tiering.tickets import holder

_UNIT_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}

YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("usage")(usage_command)
    app.command("gc")(gc_command)
    app.command("forget")(forget_command)
    app.command("unlock")(unlock_command)


def usage_command(context: typer.Context, tier: Annotated[str, typer.Argument(help="Tier.")]) -> None:
    """Show how full a tier is, what is reserved on it, and what must go to come down to low water."""
    session = Session.of(context)
    found = usage(session.source(tier))
    table = Table(show_header=False, box=None, pad_edge=False)
    for field, value in asdict(found).items():
        told = "no limit is known" if value is None else str(value)
        if field.endswith("_bytes") and value is not None:
            told = format_bytes(value)
        table.add_row(f"[bold]{field.removesuffix('_bytes').replace('_', ' ')}", told)
    session.result(asdict(found), table)


def gc_command(
    context: typer.Context,
    tier: Annotated[str, typer.Argument(help="Tier.")],
    names: Annotated[list[str] | None, typer.Argument(help="Names of corpora; by default all.")] = None,
    older_than: Annotated[str, typer.Option(help="Leave younger objects alone: 30m, 24h, 7d.")] = "24h",
    quarantine: Annotated[
        str | None, typer.Option(help="Delete quarantined bytes older than this, too: 30d.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would go and delete nothing.")
    ] = False,
) -> None:
    """Delete what killed ingests, moves and releases left behind, and nothing else."""
    session = Session.of(context)
    report = gc(
        session.source(tier),
        names or None,
        older_than_seconds=_seconds(older_than, "--older-than"),
        quarantine_seconds=None if quarantine is None else _seconds(quarantine, "--quarantine"),
        dry_run=dry_run,
    )
    text = [f"  {escape(one.key)}  {format_bytes(one.nbytes)}  {one.reason}" for one in report.garbage]
    text += [f"  {escape(name)} was left alone: {escape(why)}" for name, why in report.kept]
    verb = "would go" if dry_run else "deleted"
    text.append(
        f"{len(report.garbage)} objects, {format_bytes(report.nbytes)} {verb}"
        + ("" if dry_run else f"; {report.unfinished} unfinished writes removed")
    )
    document = {
        "ok": True,
        "dry_run": dry_run,
        "bytes": report.nbytes,
        "unfinished": report.unfinished,
        "garbage": [{"key": one.key, "bytes": one.nbytes, "reason": one.reason} for one in report.garbage],
        "kept": [{"name": name, "reason": why} for name, why in report.kept],
    }
    session.result(document, "\n".join(text))


def forget_command(
    context: typer.Context,
    name: NameArgument,
    tier: OnOption,
    version: Annotated[int | None, typer.Option("--version", help="One version; by default all.")] = None,
    proof: Annotated[
        list[str] | None,
        typer.Option(help="Tier that holds another copy; by default all of the configuration."),
    ] = None,
    min_copies: Annotated[int, typer.Option(help="Verified copies that must remain elsewhere.")] = 1,
    last_copy: Annotated[
        bool, typer.Option("--last-copy", help="Delete it even where no other copy is proven.")
    ] = False,
    yes: YesOption = False,
) -> None:
    """Delete an old version of a corpus on a tier, or the whole corpus.

    What other versions share stays. The newest version goes only after proof that it is elsewhere.
    """
    session = Session.of(context)
    place = session.source(tier)
    what = f"version {version}" if version is not None else "all versions"
    versions = catalog.versions(place.store, name)
    if not versions:
        raise NotFound(
            f"no corpus {name!r}", tier=place.name, hint="'tiering gc' collects what dead work left"
        )
    if not yes:
        _confirm(f"Delete {what} of {name} on {place.name} (there: {', '.join(map(str, versions))})?")
    with session.client() as client:
        freed = forget(
            place,
            name,
            version,
            last_copy=last_copy,
            min_copies=min_copies,
            copies=others_of(session, place, proof),
            client=client,
        )
    session.result({"ok": True, "bytes": freed}, f"{format_bytes(freed)} given back on {escape(place.name)}")


def unlock_command(
    context: typer.Context,
    name: NameArgument,
    tier: OnOption,
    number: Annotated[int | None, typer.Option("--claim", help="Number of the claim.")] = None,
    held_by: Annotated[
        str | None, typer.Option("--holder", help="Who holds it, as shown; asked for otherwise.")
    ] = None,
) -> None:
    """Release a claim whose process ended on another machine, which cannot be known from here.

    Without --claim, shows who holds the name. A process of this machine that lives is never unlocked. The
    room that the same process had reserved for this corpus is released too.
    """
    session = Session.of(context)
    place = session.source(tier)
    held = [claim for claim in claims(place.store, name).all() if claim.counts]
    if number is None:
        shown = [
            {"claim": claim.number, "holder": holder(claim.owner), "purpose": claim.purpose} for claim in held
        ]
        text = [f"claim {one['claim']}: {one['purpose']} by {one['holder']}" for one in shown]
        session.result({"ok": True, "claims": shown}, "\n".join(text) or f"Nobody holds {escape(name)}")
        return
    if held_by is None:
        told = [f"{claim.purpose} by {holder(claim.owner)}" for claim in held if claim.number == number]
        held_by = _ask(
            f"Claim {number} on {name}: {', '.join(told) or 'nobody'}. Type its holder to release it"
        )
    claim = unlock(place.store, name, number, held_by)
    freed = unlock_reservations(place.store, name, claim.owner)
    session.result(
        {"ok": True, "claim": number, "reservations": freed},
        f"Claim {number} released, and {freed} reservations of the same process",
    )


def _seconds(text: str, option: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None:
        raise UsageError(f"{option} {text!r} is no time", hint="Example: 30m, 24h or 7d")
    return float(match[1]) * _UNIT_SECONDS[match[2]]


def _confirm(question: str) -> None:
    if _ask(f"{question} Type yes") != "yes":
        raise UsageError("not confirmed; nothing was done", hint="Type yes, or say --yes")


def _ask(question: str) -> str:
    if not sys.stdin.isatty():
        raise UsageError(
            "nobody is there to answer", hint="Say --yes, or name what is asked for as an option"
        )
    return str(typer.prompt(question, err=True))
