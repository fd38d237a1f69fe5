"""The command bench-loader."""

from __future__ import annotations

import os
import resource
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from dask.utils import format_bytes
from rich.markup import escape
from rich.table import Table

from loaders.collate import choose_collate
from loaders.loader import Loader
from loaders.measure.epochs import Epoch, gather_from_ram, run_epoch
from tiering.cache import NodeCache
from tiering.cli.session import Session
from tiering.corpus import open_corpus
from tiering.errors import UsageError
from tiering.schema import choose
from tiering.sizes import parse_size


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("bench-loader")(bench_loader)


def bench_loader(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the corpus.")],
    on: Annotated[str, typer.Option(help="Tier to read it from: a name, a path or a url.")],
    version: Annotated[int | None, typer.Option(help="Version; the newest by default.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows of a batch.")] = 256,
    epochs: Annotated[int, typer.Option(min=1, help="How many epochs.")] = 2,
    columns: Annotated[str | None, typer.Option(help="Columns, with commas between; all by default.")] = None,
    shuffle: Annotated[str, typer.Option(help="window, none or full.")] = "window",
    lanes: Annotated[int | None, typer.Option(help="Slices of an epoch; see docs/order.md.")] = None,
    window_blocks: Annotated[
        int | None, typer.Option(help="Blocks whose rows are shuffled together.")
    ] = None,
    collate: Annotated[
        str | None, typer.Option(help="arrow, pad or pack; arrow by default where columns are ragged.")
    ] = None,
    prefetch: Annotated[str, typer.Option(help="Blocks read at a time at most, or auto.")] = "auto",
    cache: Annotated[Path | None, typer.Option(help="Folder of a node cache; none by default.")] = None,
    cache_size: Annotated[str, typer.Option(help="What that cache may hold.")] = "10GB",
    max_seconds: Annotated[float, typer.Option(help="Longest time for one epoch.")] = 60.0,
    sample: Annotated[
        str, typer.Option(help="The most RAM for the gather that is compared with.")
    ] = "256MiB",
) -> None:
    """Measure how fast the loader gives batches of a corpus, beside a gather of its rows from RAM.

    The first epoch is cold only if nothing of the corpus is in the page cache and the node cache.
    """
    session = Session.of(context)
    if not max_seconds > 0:
        raise UsageError(f"--max-seconds {max_seconds} is no time", hint="Example: --max-seconds 60")
    corpus = open_corpus(session.source(on), name, version)
    chosen = [column.strip() for column in columns.split(",")] if columns else None
    sample_bytes = parse_size(sample, "sample")
    node_cache = NodeCache(cache, cache_size) if cache else None
    try:
        loader = Loader(
            corpus,
            batch_size,
            columns=chosen,
            shuffle=shuffle,
            lanes=lanes,
            window_blocks=window_blocks,
            collate=collate or _collate(choose(corpus.schema, chosen, f"corpus {name!r}")),
            prefetch=int(prefetch) if prefetch.isdigit() else prefetch,
            cache=node_cache,
        )
        found = []
        for number in range(epochs):
            loader.set_epoch(number)
            found.append(run_epoch(loader, max_seconds))
        peak_rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        ram = gather_from_ram(loader, sample_bytes) if collate not in ("pad", "pack") else None
    finally:
        if node_cache is not None:
            node_cache.close()
    best = max(epoch.rows_per_second for epoch in found)
    document: dict[str, Any] = {
        "ok": True,
        "corpus": name,
        "version": corpus.version,
        "tier": corpus.tier.name,
        "format": corpus.format,
        "corpus_rows": corpus.rows,
        "corpus_bytes": corpus.nbytes,
        "batch_size": batch_size,
        "lanes": loader.order.lanes,
        "window_blocks": loader.order.window_blocks,
        "shuffle": shuffle,
        "epochs": [asdict(epoch) for epoch in found],
        "gather_from_ram": asdict(ram) if ram else None,
        "ratio_to_gather_from_ram": best / ram.rows_per_second if ram else None,
        "peak_rss_bytes": peak_rss_bytes,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
    }
    session.result(document, _table(document, found))


def _collate(schema: Any) -> str | None:
    """What gives batches of these columns where nothing was said."""
    try:
        choose_collate(None, schema)
    except UsageError:
        return "arrow"
    return None


def _table(document: dict[str, Any], epochs: list[Epoch]) -> Table:
    ram = document["gather_from_ram"]
    caption = f"Peak memory {format_bytes(document['peak_rss_bytes'])}. "
    if ram:
        caption += (
            f"A gather from {format_bytes(ram['nbytes'])} in RAM gives {ram['rows_per_second']:,.0f} rows/s: "
            f"the best epoch has {document['ratio_to_gather_from_ram']:.2f} of that."
        )
    title = f"{document['corpus']} on {document['tier']}, batches of {document['batch_size']}"
    table = Table(title=escape(title), caption=escape(caption), caption_justify="left")
    for heading in ("epoch", "rows", "rows/s", "MB/s", "first batch", "stalls", "hits", "bound", "read"):
        table.add_column(heading, justify="left" if heading == "read" else "right")
    for epoch in epochs:
        read = ", ".join(f"{tier} {format_bytes(nbytes)}" for tier, nbytes in epoch.bytes_read.items())
        table.add_row(
            str(epoch.epoch),
            f"{epoch.rows:,}" + ("" if epoch.whole else " (cut)"),
            f"{epoch.rows_per_second:,.0f}",
            f"{epoch.bytes_per_second / 1e6:,.1f}",
            f"{epoch.first_batch_seconds * 1e3:.1f} ms",
            f"{epoch.stall_share:.1%}",
            f"{epoch.hit_ratio:.3f}",
            f"{epoch.bound:.3f}",
            escape(read),
        )
    return table
