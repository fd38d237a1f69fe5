"""Shards a source once into a corpus on a tier.

Invariant: a corpus becomes visible only after all its shards were written and read back with the digest the
manifest names. An ingest that was killed leaves no corpus; the next one of the same source finishes it and
skips the shards that are there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa
from dask.delayed import Delayed, delayed
from distributed import Client

from tiering import catalog
from tiering.arguments import need
from tiering.claim import Claim, check_held, claimed
from tiering.corpus import Corpus, open_corpus
from tiering.digest import CRC_BYTES, digest
from tiering.errors import Conflict, NotFound, UsageError
from tiering.graph import choose_client, need_client, run_tasks
from tiering.keys import validate_name
from tiering.layout import arrow
from tiering.layout.base import PAGE_BYTES, EncodedShard
from tiering.layout.zarr import ZarrColumn, ZarrLayout, encode_shard, index_bytes
from tiering.ledger import Ledger
from tiering.manifest import FORMATS, MANIFEST_SCHEMA, Manifest
from tiering.progress import track
from tiering.room import check_room, refuse_foreign, room_held
from tiering.schema import as_told, columns_of, to_arrays, to_table
from tiering.sizes import parse_size
from tiering.sources.base import Source, Values
from tiering.sources.open import open_source
from tiering.tier import Tier, need_tier
from tiering.transfer import put_verified

DEFAULT_SHARD_SIZE: Final = "64MiB"
BLOCK_BYTES: Final = 1 << 20
MAX_BLOCK_ROWS: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Target:
    """Where and how the shards of one ingest are written; travels with each task."""

    tier: Tier
    name: str
    schema_bytes: bytes
    """The schema as a message: pickled by pyarrow, fixed-size lists forget that their items are not null."""
    rows: int
    shard_rows: int
    block_rows: int
    layout: ZarrLayout | None
    """Layout of a Zarr corpus; None for Arrow."""
    claim: Claim | None = None
    """Under which it is written."""
    digests: Mapping[str, str] | None = None
    """By key, what the corpus has already and must not be written over by anything else."""

    @property
    def schema(self) -> pa.Schema:
        """Columns and their types."""
        return arrow.schema_from_bytes(self.schema_bytes)

    @property
    def shards(self) -> int:
        """How many shard numbers there will be."""
        return -(-self.rows // self.shard_rows)

    @property
    def objects(self) -> int:
        """How many objects there will be: one a shard and column."""
        return self.shards * (len(self.layout.columns) if self.layout else 1)

    def shard_range(self, number: int) -> tuple[int, int]:
        """Rows [start, stop) of a shard."""
        start = number * self.shard_rows
        return start, min(self.rows, start + self.shard_rows)

    def stored_bytes(self, row_bytes: float) -> int:
        """Bytes of all shards as stored, before compression; for Arrow estimated from the bytes of a row."""
        blocks = -(-self.rows // self.block_rows)
        if self.layout is None:
            return int(self.rows * row_bytes) + blocks * PAGE_BYTES
        total = 0
        for column in self.layout.columns:  # all blocks begin on a page, and a shard ends with its last one
            stored = self.layout.block_bytes(column) + CRC_BYTES
            padded = -(-stored // PAGE_BYTES) * PAGE_BYTES
            last = stored + index_bytes(self.layout.nblocks)
            total += (blocks - self.shards) * padded + self.shards * last
        return total


Entry = dict[str, Any]
"""One line of a manifest."""


def ingest(
    source: Any,
    tier: Tier,
    name: str,
    *,
    format: str | None = None,  # noqa: A002  # the field's word
    shard_size: str | int = DEFAULT_SHARD_SIZE,
    block_rows: int | None = None,
    codec: str | None = None,
    reader: str | None = None,
    reader_options: dict[str, Any] | None = None,
    client: Client | None = None,
    progress: bool | None = None,
) -> Corpus:
    """Write a source as a new corpus `name` on a tier.

    Args:
        source: ``{column: array}`` of numpy or Dask arrays of equal length, a pyarrow Table or Dataset, or
            paths with a `reader`.
        tier: where to.
        name: of the corpus; one key segment.
        format: ``zarr`` for columns of fixed shape, ``arrow`` for any; by default what suits the source.
        shard_size: bytes of a shard, uncompressed: the unit of moving and caching.
        block_rows: rows of a block, the unit of reading; by default about 1 MiB of them.
        codec: None or ``zstd:LEVEL``; Zarr only.
        reader: ``text`` or ``parquet``, for paths.
        reader_options: of the reader.
        client: Dask client; by default the current one, else threads for small work or a local cluster.
            Sources in this process's memory are written by threads of this process.
        progress: show a progress bar; by default when standard error is a terminal.

    Returns:
        The corpus. Where the same source was ingested under this name before, that corpus.

    Raises:
        UsageError: the source is empty, ragged for Zarr, or an argument is wrong.
        Conflict: the name is taken by other content, or a source file changed meanwhile.
        Locked: a living process ingests the same right now.
        CapacityExceeded: the tier has no room; nothing was written.
    """
    need_tier(tier)
    need(name, str, "name", "name='web-text'")
    need_client(client)
    validate_name(name)
    if tier.read_only:
        raise UsageError("the tier is read-only", tier=tier.name, hint="Choose another tier")
    rows = open_source(source, reader, reader_options)
    target = _target(rows, tier, name, format, parse_size(shard_size, "shard_size"), block_rows, codec)
    intent = _intent(rows, target)
    done = _published(target, intent)
    if done is not None and rows.is_certain and not done.absent():
        return done
    nbytes = int(rows.rows * rows.row_bytes)
    refuse_foreign(tier, name, [info.key for info in tier.store.list(name)])
    ledger = Ledger(target, rows.row_bytes)
    check_room(tier, name, ledger.final, ledger.shard_bytes)
    with claimed(tier.store, name, intent, shared=False) as claim:
        done = _published(target, intent)  # by a process that was at work when we first looked
        if done is not None and rows.is_certain and not done.absent():
            return done
        target = replace(target, claim=claim, digests=_digests(done))
        with (
            room_held(tier, name, ledger.final) as hold,
            choose_client(client, 0 if rows.in_memory else nbytes, [tier]) as chosen,
            track(f"{name}: ingest to {tier.name}", nbytes, chosen, progress) as bar,
        ):
            entries: list[Entry] = []
            tasks = _tasks(rows, target)
            while len(entries) < target.objects:  # more than once only where the room is scarce
                admitted = ledger.admitted(tasks, hold)
                for written in run_tasks(admitted, None if rows.in_memory else chosen):
                    entries += written
                    ledger.wrote(written)
                    bar.advance(int(written[0]["rows"] * rows.row_bytes))
            manifest = _manifest(target, entries, intent)
            if done is None:
                encoded = manifest.encode()
                ledger.finish(len(encoded), hold)
                catalog.publish(tier.store, name, 1, manifest, encoded)
        return open_corpus(tier, name, 1)


def write_shard(part: Any, target: Target, number: int) -> list[Entry]:
    """Encode, write and verify one shard of every column; the task of an ingest."""
    start, stop = target.shard_range(number)
    values: Values = part() if callable(part) else part
    counts = {values.num_rows} if isinstance(values, pa.Table) else {len(array) for array in values.values()}
    if counts != {stop - start}:
        raise Conflict(
            f"the source gave {sorted(counts)} rows for the {stop - start} of shard {number}",
            hint="It changed meanwhile, or its lengths are not what it says; ingest again",
        )
    entries = []
    for column, key, shard in _encode(values, target, number):
        expected = digest(shard.buffers)
        if target.digests is not None and target.digests.get(key) != expected:
            raise Conflict(
                f"the source of corpus {target.name!r} gives other rows than it did",
                tier=target.tier.name,
                key=f"{target.name}/{key}",
                hint="Choose another name, or release that corpus first",
            )
        if target.claim is not None:
            check_held(target.tier.store, target.name, target.claim)
        put_verified(target.tier.store, f"{target.name}/{key}", shard.buffers, shard.nbytes, expected)
        entries.append(
            {
                "key": key,
                "column": column,
                "shard": number,
                "rows": stop - start,
                "nbytes": shard.nbytes,
                "digest": expected,
                "row_start": start,
                "block_offsets": shard.block_offsets,
                "block_crcs": shard.block_crcs,
            }
        )
    return entries


def _encode(values: Values, target: Target, number: int) -> Iterator[tuple[str, str, EncodedShard]]:
    """Column, key and bytes of each object of a shard, one at a time."""
    if target.layout is None:
        table = values if isinstance(values, pa.Table) else to_table(as_told(values, target.schema))
        yield "", f"part-{number:06d}.arrow", arrow.encode_shard(table.cast(target.schema), target.block_rows)
        return
    arrays = to_arrays(values) if isinstance(values, pa.Table) else values
    for column in target.layout.columns:
        yield (
            column.name,
            target.layout.key(column, number),
            encode_shard(target.layout, column, arrays[column.name]),
        )


def _tasks(source: Source, target: Target) -> Iterator[Delayed]:
    task = delayed(write_shard, pure=False)
    for number in range(target.shards):
        # traverse=False: rows in memory are passed as they are, not searched for Dask values.
        part = source.part(*target.shard_range(number))
        yield task(part if isinstance(part, Delayed) else delayed(part, traverse=False), target, number)


def _target(
    source: Source,
    tier: Tier,
    name: str,
    format_: str | None,
    shard_bytes: int,
    block_rows: int | None,
    codec: str | None,
) -> Target:
    format_ = format_ or source.format
    if format_ not in FORMATS:
        raise UsageError(f"no format {format_!r}", hint=f"Formats: {', '.join(FORMATS)}")
    if block_rows is not None and (type(block_rows) is not int or not 0 < block_rows <= 1 << 30):
        raise UsageError(
            f"block_rows = {block_rows!r} is not a number of rows", hint="Example: block_rows=256"
        )
    columns: tuple[ZarrColumn, ...] = columns_of(source.schema) if format_ == "zarr" else ()
    if format_ == "arrow" and codec is not None:
        raise UsageError(f"codec {codec!r} is for Zarr; Arrow corpora are stored plain", hint="Leave it out")
    row_bytes = max((column.row_bytes for column in columns), default=source.row_bytes)
    block_rows, shard_rows = _rows(source.rows, row_bytes, shard_bytes, block_rows)
    layout = ZarrLayout(columns, source.rows, shard_rows, block_rows, codec) if format_ == "zarr" else None
    schema = arrow.schema_to_bytes(source.schema)
    return Target(tier, name, schema, source.rows, shard_rows, block_rows, layout)


def _rows(rows: int, row_bytes: float, shard_bytes: int, block_rows: int | None) -> tuple[int, int]:
    """Rows of a block and of a shard; a shard is a whole number of blocks."""
    if row_bytes > shard_bytes:
        raise UsageError(
            f"shard_size {shard_bytes} is smaller than a row of {int(row_bytes)} bytes",
            hint=f"Example: shard_size='{max(1, int(row_bytes * 64) >> 20)}MiB'",
        )
    if block_rows is None:
        block_rows = 1 << max(0, round(math.log2(min(BLOCK_BYTES, shard_bytes / 4) / row_bytes)))
        block_rows = min(block_rows, MAX_BLOCK_ROWS, rows)
    block_bytes = int(block_rows * row_bytes)
    if block_bytes > shard_bytes:
        raise UsageError(
            f"a block of {block_rows} rows has {block_bytes} bytes, more than shard_size {shard_bytes}",
            hint="Give fewer block_rows or a larger shard_size",
        )
    stored_block = -(-(block_bytes + CRC_BYTES) // PAGE_BYTES) * PAGE_BYTES
    blocks = max(1, min(shard_bytes // stored_block, -(-rows // block_rows)))
    return block_rows, blocks * block_rows


def _intent(source: Source, target: Target) -> str:
    """Digest of all that decides which bytes are written."""
    codec = target.layout.codec if target.layout else "arrow"
    numbers = f"{target.rows} {target.shard_rows} {target.block_rows} {codec}"
    return digest([source.fingerprint.encode(), target.schema_bytes, numbers.encode()])


def _published(target: Target, intent: str) -> Corpus | None:
    """The corpus of this name where it is there already and was made from the same; else None."""
    try:
        record, manifest = catalog.load(target.tier.store, target.name)
    except NotFound:
        return None
    if manifest.intent != intent:
        raise Conflict(
            f"corpus {target.name!r} exists already, made from another source or with another layout",
            tier=target.tier.name,
            hint="Choose another name, or release that corpus first. A file that was written anew is another"
            " source, also with the same bytes",
        )
    return Corpus(target.name, target.tier, record, manifest)


def _digests(done: Corpus | None) -> dict[str, str] | None:
    """By key, those of the shards of a corpus that is there."""
    if done is None:
        return None
    return dict(zip(done.manifest["key"].to_pylist(), done.manifest["digest"].to_pylist(), strict=True))


def _manifest(target: Target, entries: list[Entry], intent: str) -> Manifest:
    order = (
        {column.name: number for number, column in enumerate(target.layout.columns)} if target.layout else {}
    )
    entries.sort(key=lambda entry: (order.get(entry["column"], 0), entry["shard"]))
    return Manifest(
        table=pa.Table.from_pylist(entries, schema=MANIFEST_SCHEMA),
        format="zarr" if target.layout else "arrow",
        schema=target.schema,
        rows=target.rows,
        block_rows=target.block_rows,
        intent=intent,
        codec=target.layout.codec if target.layout else None,
        shard_rows=target.shard_rows,
        documents=target.layout.documents() if target.layout else {},
    )
