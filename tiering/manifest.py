"""The manifest: the immutable table of one version's shards, named by its own digest.

Invariant: what `decode` returns has been proven to be the bytes its name promises, of a format this engine
reads, within limits, and consistent in itself (see `tiering.consistency`).

A manifest is one Parquet file. Its columns are `MANIFEST_SCHEMA`; its key-value metadata holds one JSON
document (`tiering`) with the format version, the corpus format, the layout and the small documents
(``zarr.json``) that make the copy readable by other tools. Everything needed to make a new copy of a
corpus, except the shards, is in it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tiering.consistency import check_format, check_key, check_table
from tiering.digest import Buffer, check_digest_form, digest
from tiering.encryption.frames import MAGIC
from tiering.errors import ConfigError, Corrupt, FormatError, UnsupportedVersion
from tiering.layout.arrow import schema_from_bytes, schema_to_bytes

FORMAT_VERSION: Final = 1
_GIVE_KEY: Final = 'Open the tier with options = {encryption_key = "file:/path/to/key"}, or "env:NAME"'
FORMATS: Final = ("zarr", "arrow")
MAX_MANIFEST_BYTES: Final = 1 << 30
MAX_SHARDS: Final = 20_000_000
MAX_DECODED_BYTES: Final = 8 << 30
MAX_META_BYTES: Final = 64 << 20
ROW_GROUP_SHARDS: Final = 1 << 15

MANIFEST_SCHEMA: Final = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # relative to the corpus
        pa.field("column", pa.string(), nullable=False),  # "" where a shard holds all columns
        pa.field("shard", pa.int64(), nullable=False),  # shards of one number hold the same rows
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("nbytes", pa.int64(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),  # BLAKE3
        pa.field("row_start", pa.int64(), nullable=False),
        pa.field("block_offsets", pa.list_(pa.int64())),  # block starts and the last one's end; Arrow only
        pa.field("block_crcs", pa.list_(pa.uint32()), nullable=False),  # CRC32C of each block
    ]
)
_FILLED: Final = [field.name for field in MANIFEST_SCHEMA if not field.nullable]


@dataclass(frozen=True, slots=True)
class Manifest:
    """One version of a corpus; a stored one is read by `decode`."""

    table: pa.Table
    format: str
    schema: pa.Schema
    rows: int
    block_rows: int
    intent: str
    """Digest of what was asked of the ingest: the source's fingerprint and the layout."""
    codec: str | None = None
    shard_rows: int | None = None
    """Rows of every shard but the last, where they are equal."""
    documents: Mapping[str, bytes] = field(default_factory=dict)
    """Small objects beside the shards, by key: ``zarr.json`` and the like."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The schema as a message: pickled by pyarrow, fixed-size lists forget that their items are not null.
        schema = schema_to_bytes(self.schema)
        values = {name.name: getattr(self, name.name) for name in fields(self) if name.name != "schema"}
        return _unpickle, (schema, values)

    @property
    def nbytes(self) -> int:
        """Bytes of all shards."""
        return int(pc.sum(self.table["nbytes"]).as_py() or 0)

    @property
    def shards(self) -> int:
        """How many shard numbers there are."""
        return int(pc.max(self.table["shard"]).as_py()) + 1

    def named(self) -> set[str]:
        """Keys of all objects that this version consists of, relative to the corpus."""
        return {*self.table["key"].to_pylist(), *self.documents}

    def encode(self) -> bytes:
        """The Parquet file."""
        meta = {
            "format_version": FORMAT_VERSION,
            "format": self.format,
            "rows": self.rows,
            "block_rows": self.block_rows,
            "shard_rows": self.shard_rows,
            "codec": self.codec,
            "intent": self.intent,
            "schema": base64.b64encode(schema_to_bytes(self.schema)).decode(),
            "documents": {key: text.decode() for key, text in sorted(self.documents.items())},
        }
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(
            sink, MANIFEST_SCHEMA, compression="zstd", write_page_checksum=True, use_dictionary=["column"]
        ) as writer:
            writer.write_table(self.table.cast(MANIFEST_SCHEMA), ROW_GROUP_SHARDS)
            # Not as the schema's metadata, which is stored twice.
            writer.add_key_value_metadata({"tiering": json.dumps(meta, sort_keys=True)})
        return bytes(sink.getvalue())


def _unpickle(schema: bytes, values: dict[str, Any]) -> Manifest:
    return Manifest(schema=schema_from_bytes(schema), **values)


def decode(data: Buffer, name: str) -> Manifest:
    """Read a manifest whose digest must be `name`.

    Raises:
        Corrupt: the bytes are not those that were named.
        UnsupportedVersion: written by a newer engine.
        FormatError: it is not a consistent manifest.
    """
    if digest(data) != check_digest_form(name, "the name of a manifest"):
        raise Corrupt(f"manifest {name} has other bytes than its name says")
    try:
        with pq.ParquetFile(pa.BufferReader(pa.py_buffer(data)), page_checksum_verification=True) as file:
            meta = _read_meta(file)
            _check_counts(file.metadata)
            # Group by group: all at once takes twice the memory of the table beside it.
            groups = [file.read_row_group(number) for number in range(file.num_row_groups)]
            table = pa.concat_tables(groups).replace_schema_metadata(None).cast(MANIFEST_SCHEMA)
    except FormatError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise FormatError(f"the manifest is not one of this engine: {error}") from error
    if any(chunked.null_count for chunked in table.select(_FILLED).columns):
        raise FormatError("a manifest has empty cells")
    check_table(table, _natural(meta, "rows"))
    manifest = _build(table, meta)
    check_format(manifest)
    return manifest


def check_version(found: object, what: str) -> None:
    """Refuse a format version of the future by name.

    Raises:
        UnsupportedVersion: `found` is larger than `FORMAT_VERSION`.
        FormatError: it is no version.
    """
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise FormatError(f"{what} has the format version {found!r}")
    if found > FORMAT_VERSION:
        raise UnsupportedVersion(
            f"{what} is of format version {found}, this engine reads up to {FORMAT_VERSION}",
            hint="Upgrade corpus-tiering",
        )


def parse_json(data: Buffer, what: str, limit_bytes: int) -> dict[str, Any]:
    """A JSON object of bounded size and depth.

    Raises:
        FormatError: it is too large, too deep or not a JSON object.
        ConfigError: it is encrypted, and the tier was opened without its key.
    """
    if bytes(data[: len(MAGIC)]) == MAGIC:
        raise ConfigError(f"{what} is encrypted, and the tier has no encryption_key", hint=_GIVE_KEY)
    if memoryview(data).nbytes > limit_bytes:
        raise FormatError(f"{what} is over {limit_bytes} bytes")
    try:
        value = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{what} is not a JSON object")
    return value


def _check_counts(file: pq.FileMetaData) -> None:
    """Refuse what would take too much memory before it is read."""
    nbytes = sum(file.row_group(number).total_byte_size for number in range(file.num_row_groups))
    if not file.num_row_groups:
        raise FormatError("a manifest names no shard")
    if file.num_rows > MAX_SHARDS or nbytes > MAX_DECODED_BYTES:
        raise FormatError(f"a manifest of {file.num_rows} shards and {nbytes} bytes is too large")


def _read_meta(file: pq.ParquetFile) -> dict[str, Any]:
    raw = (file.metadata.metadata or {}).get(b"tiering")
    if raw is None:
        raise FormatError("a Parquet file without the metadata of a manifest")
    meta = parse_json(raw, "the metadata of a manifest", MAX_META_BYTES)
    check_version(meta.get("format_version"), "the manifest")
    return meta


def _build(table: pa.Table, meta: dict[str, Any]) -> Manifest:
    documents = meta.get("documents")
    if meta.get("format") not in FORMATS or not isinstance(documents, dict):
        raise FormatError(f"a manifest of the format {meta.get('format')!r}")
    codec = meta.get("codec")
    if codec is not None and not isinstance(codec, str):
        raise FormatError(f"a manifest with the codec {codec!r}")
    try:
        schema = schema_from_bytes(base64.b64decode(str(meta.get("schema")), validate=True))
    except ValueError as error:
        raise FormatError(f"a manifest without a readable schema: {error}") from error
    return Manifest(
        table=table,
        format=meta["format"],
        schema=schema,
        rows=_natural(meta, "rows"),
        block_rows=_natural(meta, "block_rows"),
        intent=check_digest_form(meta.get("intent"), "the intent of a manifest"),
        codec=codec,
        shard_rows=None if meta.get("shard_rows") is None else _natural(meta, "shard_rows"),
        documents=_documents(documents),
    )


def _documents(found: dict[str, Any]) -> dict[str, bytes]:
    for key, text in found.items():
        check_key(key)
        if not isinstance(text, str) or not text.isascii():
            raise FormatError(f"the document {key!r} of a manifest is not ASCII text")
    return {key: text.encode() for key, text in found.items()}


def _natural(meta: dict[str, Any], key: str) -> int:
    value = meta.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 62:
        raise FormatError(f"a manifest with {key} = {value!r}")
    return value
