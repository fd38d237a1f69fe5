"""Commands on block volumes: format, info, check, rebuild, grow."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from dask.utils import format_bytes
from rich.markup import escape

from tiering.cli.session import Session
from tiering.sizes import parse_size
from tiering.stores.block import BlockStore
from tiering.stores.block_check import rebuild_index
from tiering.stores.block_format import VolumeInfo, format_volume

app = typer.Typer(help="Block volumes: raw devices, or images that act as one.", no_args_is_help=True)

VolumeArgument = Annotated[Path, typer.Argument(help="The image or device.")]
IndexOption = Annotated[
    Path | None,
    typer.Option("--index", help="Index database; beside an image by default, required for a device."),
]


@app.command("format")
def format_command(
    context: typer.Context,
    path: VolumeArgument,
    size: Annotated[
        str | None, typer.Option(help='Size of a new image, such as "10GiB"; a device is used whole.')
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Format although something is on it. It is lost.")
    ] = False,
    index: IndexOption = None,
) -> None:
    """Make an image or device a block tier. Refuses what carries data, unless --force.

    Example: tiering block format /mnt/nvme/volume.img --size 100GiB, then use block:///mnt/nvme/volume.img
    """
    session = Session.of(context)
    nbytes = None if size is None else parse_size(size, "size")
    info = format_volume(path, nbytes, force=force, index_path=index)
    session.result({"ok": True, **_facts(info)}, f"{escape(str(path))} is a block tier of {_sizes(info)}")


@app.command("info")
def info_command(context: typer.Context, path: VolumeArgument, index: IndexOption = None) -> None:
    """Say what a volume is, how full, and into how many pieces its free space is cut. Changes nothing."""
    session = Session.of(context)
    with BlockStore(path.name, path, index_path=index, read_only=True) as store:
        session.result(_facts(store.info()))


@app.command("check")
def check_command(
    context: typer.Context,
    path: VolumeArgument,
    deep: Annotated[bool, typer.Option("--deep", help="Read all data too, against their digests.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Write damaged headers anew where the data prove them.")
    ] = False,
    index: IndexOption = None,
) -> None:
    """Compare the header of every object with the index. Exit code 1 on damage that is not repaired."""
    session = Session.of(context)
    with BlockStore(path.name, path, index_path=index, read_only=not repair) as store:
        problems = store.check(deep=deep, repair=repair)
        info = store.info()
    damaged = not all(problem.repaired for problem in problems)
    document = {"ok": not damaged, **_facts(info), "problems": [asdict(problem) for problem in problems]}
    told = "\n".join(f"  [red]{escape(str(problem))}" for problem in problems) or "  no damage"
    session.result(document, f"{escape(str(path))}: {info.objects} objects, {_sizes(info)}\n{told}")
    if damaged:
        raise typer.Exit(1)


@app.command("rebuild")
def rebuild_command(context: typer.Context, path: VolumeArgument, index: IndexOption = None) -> None:
    """Make the index anew from all bytes of the volume. Exit code 1 when an object is lost or damaged."""
    session = Session.of(context)
    rebuilt = rebuild_index(path, index)
    ok = not (rebuilt.lost or rebuilt.damaged)
    document = {"ok": ok, **asdict(rebuilt)}
    told = f"{escape(str(path))}: {rebuilt.info.objects} objects found, {rebuilt.outdated} outdated headers"
    for what, keys in (("lost", rebuilt.lost), ("damaged", rebuilt.damaged)):
        told += "".join(f"\n  [red]{what}: {escape(key)}" for key in keys)
    session.result(document, told)
    if not ok:
        raise typer.Exit(1)


@app.command("grow")
def grow_command(
    context: typer.Context,
    path: VolumeArgument,
    size: Annotated[
        str | None, typer.Option(help='New size, such as "20GiB"; a device is used whole without it.')
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Erase what lies behind the volume.")] = False,
    index: IndexOption = None,
) -> None:
    """Make a volume larger, in place. A kill or power cut leaves the old size or the new one."""
    session = Session.of(context)
    nbytes = None if size is None else parse_size(size, "size")
    with BlockStore(path.name, path, index_path=index) as store:
        info = store.grow(nbytes, force=force)
    session.result({"ok": True, **_facts(info)}, f"{escape(str(path))} has {_sizes(info)}")


def _facts(info: VolumeInfo) -> dict[str, Any]:
    return asdict(info)


def _sizes(info: VolumeInfo) -> str:
    return f"{format_bytes(info.nbytes)}, {format_bytes(info.free_bytes)} free"
