"""Commands on the keys of encrypted tiers: keygen, rotate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from tiering.cli.session import Session
from tiering.encryption.kek import make_key_file
from tiering.encryption.lifecycle import encryption_of, rotate_key


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("keygen")(keygen_command)
    app.command("rotate")(rotate_command)


def keygen_command(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="The new file; never one that is there.")],
) -> None:
    """Make a random key that a tier's encryption_key can refer to, in a file that only you can read.

    Keep a copy of it elsewhere: without it, nothing that it encrypted can be read again.

    Example: tiering keygen ~/lake.key, then options = {encryption_key = "file:/home/me/lake.key"}
    """
    name = make_key_file(path)
    where = str(path.absolute())
    text = f'Key {name} made. A tier refers to it by encryption_key = "file:{escape(where)}"'
    Session.of(context).result({"ok": True, "path": where, "key": name}, text)


def rotate_command(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the corpus.")],
    tier: Annotated[str, typer.Option("--on", help="Encrypted tier that holds it.")],
) -> None:
    """Wrap a corpus's key by the tier's encryption_key instead of its encryption_previous_key.

    No data is rewritten. Readers that have the new key alone open the corpus from then on.
    """
    session = Session.of(context)
    place = session.source(tier)
    rotated = rotate_key(place, name)
    info = encryption_of(place, name)
    key = info.kek if info else ""
    told = "is now wrapped by" if rotated else "was wrapped already by"
    text = f"The key of {escape(name)} on {escape(place.name)} {told} {escape(key)}"
    session.result({"ok": True, "rotated": rotated, "key": key}, text)
