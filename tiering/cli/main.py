"""Entry point of the command: global options, exit codes, and errors as people want to read them.

Exit codes: 0 done or nothing to do, 1 failed, 2 wrong usage or specification, 3 partly done, 11 locked,
130 interrupted.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import entry_points
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from tiering import __version__
from tiering.cli import block, caches, corpora, doctor, encryption, jobs, simulate, upkeep, verify
from tiering.cli.session import make_session
from tiering.errors import TieringError
from tiering.tier import close_stores

INTERRUPTED: Final = 130
COMMANDS: Final = "tiering.commands"
"""Entry points by which other packages, such as `loaders`, add commands."""

_WrongCommand: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""Typer brings a click of its own; this is its class for wrong command lines, by a public road."""

_FLAGS: Final = ("--json", "--quiet", "-q", "--insecure")
_VALUES: Final = ("--config", "--scheduler")

app = typer.Typer(
    name="tiering",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Move training corpora between object, block, file and memory tiers, verified end to end.",
    epilog=(
        "A TIER is a name from the configuration, a path, or a url: /mnt/nvme/tier, s3://bucket/prefix, "
        "block:///mnt/nvme/volume.img. These options may stand behind the command too. "
        "Try [bold]tiering demo[/bold] first."
    ),
)
app.add_typer(block.app, name="block")
app.add_typer(caches.app, name="cache")
caches.register(app)
corpora.register(app)
upkeep.register(app)
verify.register(app)
doctor.register(app)
encryption.register(app)
jobs.register(app)
simulate.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="Configuration; by default tiering.toml in this folder, if there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors alone.")] = False,
    scheduler: Annotated[
        str | None, typer.Option(help="Work on the Dask scheduler at this address, such as 127.0.0.1:8786.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow a scheduler off this machine without TLS.")
    ] = False,
    version: Annotated[  # noqa: ARG001  # handled by its callback
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Read the options that all commands share."""
    context.obj = make_session(config, json=as_json, quiet=quiet, scheduler=scheduler, insecure=insecure)


def main() -> None:
    """Run the command line of this process and exit."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # of its own cache and fonts
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns its exit code."""
    try:
        return _run(arguments)
    except OSError as error:
        if error.filename is not None:  # not the output, whose errors name no file
            raise
        _complain("OSError", f"the output cannot be written: {error.strerror or error}")
        return 1


def _run(arguments: Sequence[str]) -> int:
    as_json = "--json" in arguments
    try:
        code = _command(helps=not as_json).main(
            _options_first(arguments), prog_name="tiering", standalone_mode=False
        )
    except _WrongCommand as error:
        if as_json:
            _print_error("UsageError", error.format_message())
        error.show()
        return int(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except TieringError as error:
        _show(error, as_json=as_json)
        return error.exit_code
    finally:
        close_stores()
    if code == INTERRUPTED:  # typer itself makes this of a KeyboardInterrupt inside of a command
        Console(stderr=True).print("Interrupted. Nothing is half done: run the same command again to go on.")
    return code if isinstance(code, int) else 0


@cache
def _command(*, helps: bool) -> Any:
    """The command with those that other packages add, made once; whether a group alone prints its help."""
    _add_commands()
    command: Any = typer.main.get_command(app)
    for group in command.commands.values():
        if hasattr(group, "commands"):
            group.no_args_is_help = helps
    return command


@cache
def _add_commands() -> None:
    for entry in entry_points(group=COMMANDS):
        entry.load()(app)


def _options_first(arguments: Sequence[str]) -> list[str]:
    """The global options before the command, wherever they stood: ``tiering demo --json`` works too."""
    first: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word in _FLAGS or word.startswith(tuple(f"{option}=" for option in _VALUES)):
            first.append(word)
        elif word in _VALUES:
            first += [word, *islice(words, 1)]
        else:
            rest.append(word)
    return first + rest


def _show(error: TieringError, *, as_json: bool) -> None:
    if as_json:
        _print_error(type(error).__name__, error.message, error.tier, error.key, error.hint)
    _complain(type(error).__name__, str(error))


def _complain(error: str, told: str) -> None:
    console = Console(stderr=True)
    console.print(f"[bold red]{error}[/]: ", end="")
    console.print(told, markup=False, highlight=False, soft_wrap=True)


def _print_error(
    error: str, message: str, tier: str | None = None, key: str | None = None, hint: str | None = None
) -> None:
    fields = {"error": error, "message": message, "tier": tier, "key": key, "hint": hint}
    typer.echo(json.dumps({"ok": False, **fields}, indent=2))
