"""Commands on node caches: status, cache clear, cache verify, cache resize."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from dask.utils import format_bytes
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from tiering.cache import CacheStatus
from tiering.cache.readers import ReaderStatus
from tiering.cache.upkeep import Upkeep
from tiering.cli.session import Session, lines
from tiering.errors import NotFound, TieringError, UsageError

PARTIAL: Final = 3

app = typer.Typer(no_args_is_help=True, help="Look after node caches, while training uses them.")

CacheArgument = Annotated[
    str, typer.Argument(help="Node cache: a name from the configuration, or its folder.")
]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("status")(status_command)


def status_command(
    context: typer.Context,
    caches: Annotated[
        list[str] | None,
        typer.Argument(help="Node caches: names or folders; by default all of the configuration."),
    ] = None,
) -> None:
    """Show what node caches hold, how often they hit, which policy they follow and why, and who reads.

    Exit codes: 0 all were looked at, 1 none, 3 some.

    Example: tiering status /mnt/nvme/cache
    """
    session = Session.of(context)
    named = caches or list(session.config.caches)
    if not named:
        hint = "Give its folder, or a configuration with a table [caches.NAME] of path and capacity"
        raise UsageError("no node cache is named", hint=hint)
    documents: list[dict[str, Any]] = []
    tables: list[Any] = []
    failed = 0
    for name in named:
        path = _path(session, name)
        try:
            with Upkeep(path) as upkeep:
                status = upkeep.status()
        except NotFound:
            if caches:
                raise
            documents.append({"name": name, "path": str(path), "used_bytes": 0, "shards": 0, "readers": []})
            tables.append(f"[bold]{escape(name)}[/]: nobody has used it yet")
        except TieringError as error:
            failed += 1
            documents.append({"name": name, "path": str(path), "problem": str(error)})
            tables.append(f"[bold]{escape(name)}[/]: [red]{escape(str(error))}")
        else:
            documents.append({"name": name, **_document(status)})
            tables += _told(name, status)
    session.result({"ok": not failed, "caches": documents}, Group(*tables))
    if failed:
        raise typer.Exit(PARTIAL if failed < len(named) else 1)


@app.command("clear")
def clear_command(context: typer.Context, cache: CacheArgument) -> None:
    """Drop all copies but those being filled; who has one open reads on, and counts begin anew.

    Example: tiering cache clear /mnt/nvme/cache
    """
    session = Session.of(context)
    with Upkeep(_path(session, cache)) as upkeep:
        shards, nbytes = upkeep.clear()
    session.result(
        {"ok": True, "shards": shards, "bytes": nbytes}, f"{shards} shards dropped, {format_bytes(nbytes)}"
    )


@app.command("verify")
def verify_command(
    context: typer.Context,
    cache: CacheArgument,
    subset: Annotated[
        str | None, typer.Option(help="Part k/n: day k of n reads its share, n days read all.")
    ] = None,
) -> None:
    """Read copies back and drop those that have not their digests; they are fetched anew when needed.

    Exit codes: 0 all right, 1 some were bad and dropped: look at the disk.

    Example: tiering cache verify /mnt/nvme/cache --subset 1/7
    """
    session = Session.of(context)
    with Upkeep(_path(session, cache)) as upkeep:
        report = upkeep.verify(subset)
    text = [
        f"{report.checked} shards, {format_bytes(report.nbytes)} verified, {report.share:.1%} of all:"
        f" {'[green]all right' if report.ok else f'[bold red]{len(report.corrupt)} bad, dropped'}"
    ]
    text += [f"  corrupt: {name}" for name in report.corrupt]
    session.result({"ok": report.ok, **asdict(report)}, "\n".join(text))
    if not report.ok:
        raise typer.Exit(1)


@app.command("resize")
def resize_command(
    context: typer.Context,
    cache: CacheArgument,
    size: Annotated[str | None, typer.Argument(help="The new capacity: 500GB, 2TiB.")] = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Let the capacity of NodeCache(...) count again.")
    ] = False,
) -> None:
    """Set the capacity for all processes, those that run already too, and evict down to it at once.

    It counts until it is set or forgotten, whatever capacity NodeCache(...) is given.

    Example: tiering cache resize /mnt/nvme/cache 300GB
    """
    session = Session.of(context)
    if (size is None) != forget:
        wrong = "either a size or --forget, not both" if forget else "a size or --forget"
        raise UsageError(f"resize needs {wrong}", hint="Example: tiering cache resize /mnt/nvme/cache 300GB")
    with Upkeep(_path(session, cache)) as upkeep:
        status = upkeep.resize(size)
    capacity = _size(status.capacity_bytes)
    text = f"{capacity} from now on; {format_bytes(status.used_bytes)} are used"
    session.result(
        {"ok": True, "capacity_bytes": status.capacity_bytes, "used_bytes": status.used_bytes}, text
    )


def _path(session: Session, cache: str) -> Path:
    with suppress(KeyError):
        return session.config.caches[cache].path
    return Path(cache)


def _document(status: CacheStatus) -> dict[str, Any]:
    return {**asdict(status), "path": str(status.path), "hit_ratio": status.counts.hit_ratio}


def _told(name: str, status: CacheStatus) -> list[Any]:
    counts, bound = status.counts, status.bound
    used = f"{format_bytes(status.used_bytes)} of {_size(status.capacity_bytes)}"
    if status.capacity_bytes:
        used += f" ({status.used_bytes / status.capacity_bytes:.0%})"
    filling = f", {status.filling} being filled" if status.filling else ""
    facts = {
        "content": f"{used}, {status.shards} shards{filling}",
        "capacity": "set by tiering cache resize" if status.resized else "as NodeCache(...) says",
        "hits": f"{counts.hit_ratio:.3f} of the bytes asked for so far: {counts.hits:,} hits,"
        f" {counts.misses:,} misses",
        "bound": "not known while nobody is registered" if bound is None else f"{bound:.3f}, of any policy",
        "policy": status.policy
        if status.decision == status.policy
        else f"{status.policy}: {status.decision}",
        "why": status.reason,
        "readers": "" if status.readers else "none",
    }
    shown = [f"[bold]{escape(name)}[/]  {escape(str(status.path))}", lines(facts)]
    return [*shown, _readers(status.readers)] if status.readers else shown


def _readers(readers: Sequence[ReaderStatus]) -> Table:
    table = Table("pid", "corpus", "version", "rank", "epoch", "shards of the epoch", "shards/s", "idle")
    for one in readers:
        table.add_row(
            str(one.pid),
            escape(one.corpus),
            str(one.version),
            f"{one.rank} of {one.world_size}",
            str(one.epoch),
            f"{one.position} of {one.uses}",
            f"{one.uses_per_second:.2f}",
            f"{one.idle_seconds:.0f} s",
        )
    return table


def _size(nbytes: int | None) -> str:
    return "an unknown capacity" if nbytes is None else str(format_bytes(nbytes))
