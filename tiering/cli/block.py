"""Commands on block volumes: format, check."""

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


@app.command("check")
def check_command(context: typer.Context, path: VolumeArgument, index: IndexOption = None) -> None:
    """Read every extent of a volume and compare it with its header and index. Exit code 1 on damage."""
    session = Session.of(context)
    with BlockStore(path.name, path, index_path=index) as store:
        problems = store.check()
        info = store.info()
    document = {"ok": not problems, **_facts(info), "problems": [asdict(problem) for problem in problems]}
    told = "\n".join(f"  [red]{escape(str(problem))}" for problem in problems) or "  no damage"
    session.result(document, f"{escape(str(path))}: {info.objects} objects, {_sizes(info)}\n{told}")
    if problems:
        raise typer.Exit(1)


def _facts(info: VolumeInfo) -> dict[str, Any]:
    return asdict(info)


def _sizes(info: VolumeInfo) -> str:
    return f"{format_bytes(info.nbytes)}, {format_bytes(info.free_bytes)} free"
