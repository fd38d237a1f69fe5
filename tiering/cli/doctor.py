"""The command doctor: what is installed and usable."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.markup import escape
from rich.table import Table

from tiering.cli.session import Session
from tiering.doctor import examine
from tiering.errors import NotFound

_COLOURS: Final = {"ok": "green", "optional": "yellow", "bad": "bold red"}


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("doctor")(doctor_command)


def doctor_command(
    context: typer.Context,
    tiers: Annotated[
        list[str] | None, typer.Argument(help="Tiers to try; by default all of the configuration.")
    ] = None,
    folder: Annotated[Path, typer.Option("--dir", help="Folder where files would be staged.")] = Path(),
) -> None:
    """Say what this machine can do: packages, GPU path, direct I/O, space, and every tier.

    Exit code 1 when something that is needed does not work.
    """
    session = Session.of(context)
    if not folder.is_dir():
        raise NotFound(f"no folder {str(folder)!r}", hint="Give one that exists with --dir")
    places = [session.source(name) for name in tiers] if tiers else list(session.config.tiers.values())
    checks = examine(folder.absolute(), places)
    table = Table("what", "", "detail")
    for check in checks:
        table.add_row(escape(check.name), f"[{_COLOURS[check.verdict]}]{check.verdict}", escape(check.detail))
    bad = [check for check in checks if check.verdict == "bad"]
    session.result({"ok": not bad, "checks": [asdict(check) for check in checks]}, table)
    if bad:
        raise typer.Exit(1)
