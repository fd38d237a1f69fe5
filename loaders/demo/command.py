"""The command demo."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from dask.utils import format_bytes
from rich.markup import escape
from rich.table import Table

from loaders.demo import tour
from tiering.cli.session import Session
from tiering.errors import UsageError
from tiering.graph import local_cluster
from tiering.monitor import plugin

_WORKERS = 2


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("demo")(demo_command)


def demo_command(
    context: typer.Context,
    folder: Annotated[Path, typer.Option("--dir", help="Where the demo puts its files.")] = Path(
        "tiering-demo"
    ),
    object_url: Annotated[
        str | None,
        typer.Option("--object", help="Object tier, such as s3://bucket/prefix; a folder by default."),
    ] = None,
    endpoint_url: Annotated[
        str | None, typer.Option(help="Address of an S3 server; credentials from the environment.")
    ] = None,
) -> None:
    """Run the main job on real text, end to end, in about a minute.

    Shards the standard library's source files into a Zarr corpus on an object tier, moves it to a file tier
    and a block volume and back, trains on it in pretence through a node cache, stops and resumes, and
    verifies every step. Running it again skips what is there.
    """
    session = Session.of(context)
    begun = time.monotonic()
    if endpoint_url and not object_url:
        raise UsageError("--endpoint-url has no bucket to be for", hint="Add --object s3://bucket/prefix")
    where = tour.places(folder, object_url, endpoint_url)
    try:
        where.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"no folder can be made at {str(where.folder)!r}: {error.strerror}", hint="Give another --dir"
        ) from error

    def say(text: str) -> None:
        session.say(escape(text))

    def step(number: int, title: str) -> None:
        session.say(f"\n[bold cyan]{number}. {title}")

    with local_cluster(processes=True, workers=_WORKERS) as client:
        link = plugin.install(client)
        session.say(f"dashboard: [link]{link}[/link]")
        step(1, "Ingest text into a Zarr corpus on the object tier")
        source, corpus = tour.ingest_text(where, client, say)
        step(2, "Move it to the NVMe tier, verified")
        staged, report, dollars = tour.stage(corpus, where, client, say)
        tour.watch(client, where)
        step(3, f"Train {tour.EPOCHS} epochs through a node cache of {tour.CACHE_SHARE:.0%}")
        cache, epochs = tour.train_epochs(corpus, where, client, say)
        step(4, "Stop in mid-epoch, resume in a fresh process with two ranks")
        identical, rest = tour.resume_identically(corpus, cache, where, say)
        step(5, "On to a block volume and back; compare with plain zarr")
        tour.round_trip(staged, where, client, say)
        compared = tour.compare_with_zarr(source, staged, say)
        tour.watch(client, where)
        cache.close()
    document = tour.summary(
        where,
        corpus,
        source,
        epochs,
        ok=identical and compared == corpus.rows,
        moved=report.moved,
        skipped=report.skipped,
        move_dollars=round(dollars, 6),
        resume_identical=identical,
        resume_digest=rest,
        zarr_rows_equal=compared,
        seconds=round(time.monotonic() - begun, 2),
        dashboard=link,
    )
    session.say("")
    session.result(document, _table(document))
    if not document["ok"]:
        raise typer.Exit(1)


def _table(document: dict[str, Any]) -> Table:
    last = document["epochs"][-1]
    table = Table(title="What happened", show_header=False)
    size = format_bytes(document["corpus_bytes"])
    hits = f"hit ratio {last['hit_ratio']:.3f}, {last['distance_from_bound']:.3f} below the bound"
    rows = {
        "corpus": f"{document['rows']:,} rows, {document['shards']} shards, {size}",
        "moved to nvme": f"{document['moved']} shards, {document['skipped']} were there, verified",
        "last epoch": f"{last['rows_per_second']:,.0f} rows/s, {hits}",
        "resume": "the same rows" if document["resume_identical"] else "OTHER ROWS",
        "plain zarr": f"{document['zarr_rows_equal']:,} rows equal to the text",
        "object tier": document["object_path"],
        "file tier": document["staged_path"],
        "block tier": document["volume_path"],
        "and back": document["returned_path"],
        "node cache": document["cache_path"],
        "time": f"{document['seconds']:.1f} s",
    }
    for name, value in rows.items():
        table.add_row(f"[bold]{name}", escape(value))
    return table
