"""Commands that keep tiers sound: usage, gc, forget, unlock."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer
from dask.utils import format_bytes
from rich.markup import escape
from rich.table import Table

from policies.lifecycle.units import duration_seconds
from tiering import catalog
from tiering.claim import claims
from tiering.cli.session import Session
from tiering.cli.verify import NameArgument, OnOption, others_of
from tiering.encryption.lifecycle import shred
from tiering.errors import NotFound, UsageError
from tiering.forget import forget
from tiering.gc import gc
from tiering.reservation import reservations, unlock_reservations
from tiering.room import usage
from tiering.tickets import UNKNOWN, holder
from tiering.tier import Tier

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
    if report.strays.count:
        text.append(
            f"{report.strays.count} unfinished writes ({format_bytes(report.strays.nbytes)}) were left: their"
            " writers may live on other machines. When nobody writes here:\n"
            f"  {escape(report.strays.command)}"
        )
    if report.strays.unlisted:
        text.append(escape(report.strays.unlisted))
    document = {
        "ok": True,
        "dry_run": dry_run,
        "bytes": report.nbytes,
        "unfinished": report.unfinished,
        "garbage": [{"key": one.key, "bytes": one.nbytes, "reason": one.reason} for one in report.garbage],
        "kept": [{"name": name, "reason": why} for name, why in report.kept],
        "strays": asdict(report.strays),
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
    destroy: Annotated[
        bool, typer.Option("--shred", help="On an encrypted tier: destroy the corpus's key as well.")
    ] = False,
    yes: YesOption = False,
) -> None:
    """Delete an old version of a corpus on a tier, or the whole corpus.

    What other versions share stays. The newest version goes only after proof that it is elsewhere.
    """
    session = Session.of(context)
    place = session.source(tier)
    if min_copies < 1:
        raise UsageError(f"min_copies = {min_copies} is below 1", hint="Or say --last-copy")
    if destroy:
        _check_shreds(place, version)
    what = f"version {version}" if version is not None else "all versions"
    versions = catalog.versions(place.store, name)
    if not versions and not destroy:  # a killed --shred goes on where it was
        raise NotFound(
            f"no corpus {name!r}", tier=place.name, hint="'tiering gc' collects what dead work left"
        )
    if not yes:
        _confirm(f"Delete {what} of {name} on {place.name} (there: {', '.join(map(str, versions))})?")
    freed = 0
    if versions:
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
    if destroy:
        freed += shred(place, name)
    session.result({"ok": True, "bytes": freed}, f"{format_bytes(freed)} given back on {escape(place.name)}")


def _check_shreds(place: Tier, version: int | None) -> None:
    if not place.encrypted:
        hint = "Forget it without --shred; what lies on a tier without encryption_key has no key to destroy"
        raise UsageError("the tier is not encrypted", tier=place.name, hint=hint)
    if version is not None:
        hint = "Leave --version away to forget and shred the whole corpus"
        raise UsageError("all versions of a corpus have one key", tier=place.name, hint=hint)


def unlock_command(
    context: typer.Context,
    name: NameArgument,
    tier: OnOption,
    claim: Annotated[int | None, typer.Option(help="Number of the claim.")] = None,
    reservation: Annotated[int | None, typer.Option(help="Number of the reservation of room.")] = None,
    held_by: Annotated[
        str | None, typer.Option("--holder", help="Who holds it, as shown; asked for otherwise.")
    ] = None,
) -> None:
    """Release what a process holds that ended on another machine, which cannot be known from here.

    Shows who holds the name and room for it, unless --claim or --reservation says what to release. A process
    of this machine that lives is never unlocked. With a claim, the room that its process had reserved for the
    corpus is released too.
    """
    session = Session.of(context)
    store = session.source(tier).store
    sound_claims, damaged_claims = claims(store, name).look()
    sound_room, damaged_room = reservations(store).look()
    held = [one for one in sound_claims if one.counts]
    room = [one for one in sound_room if one.counts and one.corpus == name]
    if (claim is None) == (reservation is None):
        if claim is not None:
            raise UsageError("both a claim and a reservation are named", hint="Release one after the other")
        shown = {
            "claims": [{"claim": o.number, "holder": holder(o.owner), "purpose": o.purpose} for o in held],
            "reservations": [
                {"reservation": o.number, "holder": holder(o.owner), "bytes": o.nbytes} for o in room
            ],
        }
        shown["claims"] += [{"claim": number, "holder": UNKNOWN} for number in damaged_claims]
        shown["reservations"] += [{"reservation": number, "holder": UNKNOWN} for number in damaged_room]
        text = [f"claim {o.number}: being {o.purpose} by {holder(o.owner)}" for o in held]
        text += [f"claim {number}: damaged, by {UNKNOWN}" for number in damaged_claims]
        text += [f"reservation {number}: damaged, by {UNKNOWN}" for number in damaged_room]
        text += [f"reservation {o.number}: {format_bytes(o.nbytes)} by {holder(o.owner)}" for o in room]
        session.result({"ok": True, **shown}, "\n".join(text) or f"Nobody holds {escape(name)}")
        return
    if held_by is None:
        told = [holder(one.owner) for one in held if one.number == claim]
        told += [holder(one.owner) for one in room if one.number == reservation]
        told += [UNKNOWN] * ((claim in damaged_claims) or (reservation in damaged_room))
        question = f"Held by {', '.join(told) or 'nobody'}. Type who it is to release it"
        held_by = _ask(question, "Name it: --holder NAME")
    if claim is not None:
        owner = claims(store, name).unlock(claim, held_by).owner
        freed = unlock_reservations(store, name, owner)
    else:
        reservations(store).unlock(reservation or 0, held_by)
        freed = 1
    what = "" if claim is None else f"Claim {claim} released, and "
    session.result(
        {"ok": True, "claim": claim, "reservations": freed}, f"{what}{freed} reservations released"
    )


def _seconds(text: str, option: str) -> float:
    try:
        return duration_seconds(option, text)
    except ValueError:
        raise UsageError(f"{option} {text!r} is no time", hint="Example: 30m, 24h, 7d or 2w") from None


def _confirm(question: str) -> None:
    if _ask(f"{question} Type yes", "Say --yes") != "yes":
        raise UsageError("not confirmed; nothing was done", hint="Type yes, or say --yes")


def _ask(question: str, without: str) -> str:
    """The answer of whoever sits there; where nobody does, an error that says what to do `without`."""
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to answer", hint=without)
    return str(typer.prompt(question, err=True))
