"""Commands on corpora: ingest, ls, show, move, release."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from dask.utils import format_bytes
from rich.console import Group
from rich.markup import escape
from rich.table import Column, Table

from tiering import catalog
from tiering.cli.session import Session
from tiering.corpus import Corpus, open_corpus
from tiering.encryption.lifecycle import encryption_of
from tiering.errors import NotFound, TieringError, UsageError
from tiering.ingest import DEFAULT_SHARD_SIZE, ingest
from tiering.plan import plan_move
from tiering.release import release
from tiering.tier import Tier

TierArgument = Annotated[str, typer.Argument(help="Tier: a name from the configuration, a path or a url.")]
NameArgument = Annotated[str, typer.Argument(help="Name of the corpus.")]
VersionOption = Annotated[
    int | None, typer.Option("--version", help="Number of a version; the newest by default.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("ingest")(ingest_command)
    app.command("ls")(ls_command)
    app.command("show")(show_command)
    app.command("move")(move_command)
    app.command("release")(release_command)


def ingest_command(
    context: typer.Context,
    paths: Annotated[list[str], typer.Argument(help="Files or folders.")],
    tier: Annotated[str, typer.Option("--to", help="Tier to write to.")],
    name: Annotated[str, typer.Option("--name", help="Name of the new corpus.")],
    reader: Annotated[
        str | None, typer.Option(help="text or parquet; by default from the file names.")
    ] = None,
    format_: Annotated[
        str | None, typer.Option("--format", help="zarr or arrow; by default what suits the input.")
    ] = None,
    shard_size: Annotated[str, typer.Option(help="Bytes of a shard.")] = DEFAULT_SHARD_SIZE,
    block_rows: Annotated[int | None, typer.Option(help="Rows of a block; by default about 1 MiB.")] = None,
    codec: Annotated[str | None, typer.Option(help="zstd:LEVEL; by default none. Zarr only.")] = None,
    row_tokens: Annotated[int | None, typer.Option(help="Tokens of a row; text only.")] = None,
) -> None:
    """Write files once as a corpus of verified shards.

    Text becomes byte-level tokens packed into rows (Zarr); a Parquet file becomes Arrow shards. Running it
    again finishes what was interrupted and skips what is there.

    Example: tiering ingest data.parquet --to /mnt/nvme/tier --name web-text
    """
    session = Session.of(context)
    with session.client() as client:
        corpus = ingest(
            paths,
            session.tier(tier),
            name,
            format=format_,
            shard_size=shard_size,
            block_rows=block_rows,
            codec=codec,
            reader=reader,
            reader_options={"row_tokens": row_tokens} if row_tokens is not None else None,
            client=client,
            progress=session.progress,
        )
    session.result({"ok": True, **_facts(corpus)})


def ls_command(
    context: typer.Context,
    tier: Annotated[str | None, typer.Argument(help="Tier; by default all of the configuration.")] = None,
) -> None:
    """List the corpora that a tier holds, or all tiers of the configuration.

    Exit codes: 0 all can be read, 3 some cannot, 1 none can; each with its problem.
    """
    session = Session.of(context)
    if tier is not None:
        place = session.source(tier)
        rows = _listed(place)
        document = {"tier": place.name, "corpora": rows}
        found = [(place.name, rows)]
    elif session.config.tiers:
        found = [(name, _listed_if_there(session, name)) for name in session.config.tiers]
        document = {"tiers": [{"tier": name, "corpora": rows} for name, rows in found]}
    else:
        raise UsageError("no tier is named, nor is one in the configuration", hint="Example: tiering ls lake")
    every = [row for _, rows in found for row in rows]
    bad = sum("problem" in row for row in every)
    empty = "No corpus here. 'tiering ingest' makes one."
    shown = Group(*(part for name, rows in found for part in _shown(name, rows)))
    session.result({"ok": not bad, **document}, shown if every else empty)
    if bad:
        raise typer.Exit(1 if bad == len(every) else 3)


def _listed(place: Tier) -> list[dict[str, Any]]:
    """The facts of each corpus on a tier, or its problem."""
    rows: list[dict[str, Any]] = []
    for name in catalog.corpora(place.store):
        try:
            rows.append(_facts(open_corpus(place, name)))
        except TieringError as error:
            rows.append({"name": name, "problem": str(error)})
    return rows


def _listed_if_there(session: Session, tier: str) -> list[dict[str, Any]]:
    """The same; a tier that is away, or not made yet, keeps no other one from being told."""
    try:
        return _listed(session.source(tier))
    except TieringError as error:
        return [{"name": "", "problem": str(error)}]


def _shown(tier: str, rows: Sequence[dict[str, Any]]) -> Iterator[Table | str]:
    """A table of what can be read, and a line for each problem."""
    table = Table(
        Column("name", overflow="fold"),
        "version",
        "format",
        "rows",
        "bytes",
        "shards",
        title=f"Corpora on {escape(tier)}",
    )
    for row in rows:
        if "problem" in row:
            continue
        table.add_row(
            escape(row["name"]),
            str(row["version"]),
            row["format"],
            f"{row['rows']:,}",
            format_bytes(row["bytes"]),
            str(row["shards"]),
        )
    if table.row_count:
        yield table
    for row in rows:
        if "problem" in row:
            what = f"{row['name']} on {tier}" if row["name"] else tier
            yield f"[red]{escape(what)}: {escape(row['problem'])}[/]"


def show_command(
    context: typer.Context, tier: TierArgument, name: NameArgument, version: VersionOption = None
) -> None:
    """Show one corpus: its columns, layout and versions."""
    session = Session.of(context)
    corpus = open_corpus(session.source(tier), name, version)
    encryption = encryption_of(corpus.tier, name)
    document = {
        **_facts(corpus),
        "columns": {field.name: str(field.type) for field in corpus.schema},
        "block_rows": corpus.contents.block_rows,
        "codec": corpus.contents.codec,
        "encryption": encryption.algorithm if encryption else "none",
        "manifest": corpus.record.manifest,
        "versions": catalog.versions(corpus.tier.store, name),
    }
    session.result(document)


def move_command(
    context: typer.Context,
    name: NameArgument,
    source: Annotated[str, typer.Option("--from", help="Tier that holds the corpus.")],
    target: Annotated[str, typer.Option("--to", help="Tier that shall hold it.")],
    version: VersionOption = None,
    release_source: Annotated[
        bool, typer.Option("--release", help="Give up the source's copy once the new one is proven.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
) -> None:
    """Make a verified copy of a corpus on another tier.

    Prints what it will cost first. Running it again skips what is there and right.
    """
    session = Session.of(context)
    place, other = session.source(source), session.tier(target)
    corpus = _open_on(place, [other] if release_source else [], name, version)
    if corpus.tier != place and not dry_run:  # all but the rest of a release was done by an earlier run
        freed = release(corpus, place)
        document = {"ok": True, "moved": 0, "skipped": corpus.manifest.num_rows, "bytes": 0, "freed": freed}
        session.result(document, f"It was there; {format_bytes(freed)} given back on {escape(place.name)}")
        return
    plan = plan_move(corpus, other, release=release_source)
    planned: dict[str, Any] = {
        "bytes": plan.nbytes,
        "requests": plan.requests,
        "seconds": plan.seconds,
        "dollars": plan.cost,
        "digest": plan.digest,
    }
    if dry_run:
        session.result({"plan": planned}, escape(str(plan)))
        return
    session.say(escape(str(plan)))
    with session.client() as client:
        report = plan.run(client, progress=session.progress)
    done = {
        "moved": report.moved,
        "skipped": report.skipped,
        "bytes": report.nbytes,
        "seconds": report.seconds,
    }
    session.result(
        {"ok": True, "plan": planned, **done},
        f"{report.moved} shards moved, {report.skipped} were there; {format_bytes(report.nbytes)}"
        f" in {report.seconds:.1f} s, verified",
    )


def release_command(
    context: typer.Context,
    tier: TierArgument,
    name: NameArgument,
    proof: Annotated[
        list[str] | None,
        typer.Option(help="Tier that holds another copy; by default all of the configuration."),
    ] = None,
    min_copies: Annotated[int, typer.Option(help="Verified copies that must remain elsewhere.")] = 1,
) -> None:
    """Give up a tier's copy of a corpus, after proof that enough others remain.

    The other copies are read back, whole, before anything is deleted.
    """
    session = Session.of(context)
    place = session.source(tier)
    others = [session.source(other) for other in proof] if proof else _others(session, place)
    if min_copies < 1:
        raise UsageError(f"min_copies = {min_copies} is below 1", hint="The last copy is never released")
    with session.client() as client:
        corpus = _open_on(place, others, name)
        freed = release(corpus, place, min_copies=min_copies, copies=others, client=client)
    session.result({"ok": True, "bytes": freed}, f"{format_bytes(freed)} given back on {escape(place.name)}")


def _open_on(place: Tier, others: Sequence[Tier], name: str, version: int | None = None) -> Corpus:
    """The corpus on `place` or, where a stopped release had begun to delete it, on one of `others`."""
    try:
        return open_corpus(place, name, version)
    except NotFound:
        for other in others:
            with contextlib.suppress(NotFound):
                return open_corpus(other, name, version)
        raise


def _others(session: Session, place: Tier) -> list[Tier]:
    return [tier for tier in session.config.tiers.values() if not tier.is_same(place)]


def _facts(corpus: Corpus) -> dict[str, Any]:
    return {
        "name": corpus.name,
        "tier": corpus.tier.name,
        "version": corpus.version,
        "format": corpus.format,
        "rows": corpus.rows,
        "bytes": corpus.nbytes,
        "shards": corpus.manifest.num_rows,
    }
