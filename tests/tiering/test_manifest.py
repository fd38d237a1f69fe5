from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiering.corpora import small, small_arrow
from tiering import Tier, manifest
from tiering.digest import digest
from tiering.errors import Corrupt, FormatError, UnsupportedVersion
from tiering.layout.arrow import schema_to_bytes
from tiering.layout.zarr import ZarrColumn, ZarrLayout
from tiering.manifest import MANIFEST_SCHEMA, Manifest, check_version, decode, parse_json
from tiering.schema import schema_of


def zarr_manifest(
    rows: int, shard_blocks: int, block_rows: int, columns: tuple[ZarrColumn, ...], codec: str | None
) -> Manifest:
    layout = ZarrLayout(columns, rows, shard_blocks * block_rows, block_rows, codec)
    entries = [
        {
            "key": layout.key(column, shard),
            "column": column.name,
            "shard": shard,
            "rows": layout.shard_range(shard)[1] - layout.shard_range(shard)[0],
            "nbytes": 7 + shard,
            "digest": digest(f"{column.name} {shard}".encode()),
            "row_start": layout.shard_range(shard)[0],
            "block_crcs": list(range(layout.shard_blocks(shard))),
        }
        for column in columns
        for shard in range(layout.shards)
    ]
    return Manifest(
        pa.Table.from_pylist(entries, schema=MANIFEST_SCHEMA),
        "zarr",
        schema_of(columns),
        rows,
        block_rows,
        digest(b"intent"),
        layout.codec,
        layout.shard_rows,
        layout.documents(),
    )


TOKENS = ZarrColumn("tokens", np.dtype("u2"), (3,))
LABEL = ZarrColumn("label", np.dtype("c8"))
manifests = st.builds(
    zarr_manifest,
    st.integers(1, 60),
    st.integers(1, 5),
    st.integers(1, 7),
    st.sampled_from([(TOKENS,), (TOKENS, LABEL), (LABEL, TOKENS)]),
    st.sampled_from([None, "zstd:3"]),
)


@settings(deadline=None)
@given(manifests)
def test_manifest_round_trip(made: Manifest) -> None:
    data = made.encode()
    found = decode(data, digest(data))
    assert found.table.equals(made.table)
    assert found.schema.equals(made.schema, check_metadata=True)
    assert (found.format, found.rows, found.block_rows, found.shard_rows) == (
        made.format,
        made.rows,
        made.block_rows,
        made.shard_rows,
    )
    assert (found.intent, found.codec, dict(found.documents)) == (
        made.intent,
        made.codec,
        dict(made.documents),
    )
    assert found.encode() == data
    assert found.nbytes == sum(made.table["nbytes"].to_pylist())
    assert found.shards == -(-made.rows // (made.shard_rows or 1))


def test_manifest_of_arrow_round_trip(lake: Tier) -> None:
    corpus = small_arrow(lake)
    data = corpus.contents.encode()
    assert digest(data) == corpus.record.manifest
    assert decode(data, digest(data)).table.equals(corpus.manifest)


def test_manifest_bit_flips_are_all_found() -> None:
    data = zarr_manifest(10, 1, 3, (TOKENS,), None).encode()
    name = digest(data)
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        with pytest.raises(Corrupt, match="other bytes than its name says"):
            decode(flipped, name)


def test_manifest_bit_flips_under_a_right_name_never_leave_the_error_tree() -> None:
    data = zarr_manifest(10, 1, 3, (TOKENS,), None).encode()
    for position in range(0, len(data), 5):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        with contextlib.suppress(FormatError):
            decode(flipped, digest(flipped))


def test_manifest_that_is_cut_or_garbage_is_a_format_error() -> None:
    data = zarr_manifest(10, 1, 3, (TOKENS,), None).encode()
    for bad in (b"", b"PAR1", data[:-1], data[:100], b"x" * 1000, b"PAR1" + b"\xff" * 100 + b"PAR1"):
        with pytest.raises(FormatError):
            decode(bad, digest(bad))
    with pytest.raises(FormatError, match="the name of a manifest"):
        decode(data, "HEAD")


def rewritten(made: Manifest, table: pa.Table | None = None, **meta: Any) -> bytes:
    """The manifest with another table, and with other metadata: what somebody else could have stored."""
    sink = pa.BufferOutputStream()
    with pq.ParquetFile(pa.BufferReader(made.encode())) as file:
        found = json.loads(file.metadata.metadata[b"tiering"])
    table = made.table if table is None else table
    text = json.dumps({key: value for key, value in {**found, **meta}.items() if value is not ...})
    pq.write_table(table.replace_schema_metadata({"tiering": text}), sink)
    return bytes(sink.getvalue())


def refused(data: bytes, kind: type[FormatError] = FormatError) -> str:
    with pytest.raises(FormatError) as caught:
        decode(data, digest(data))
    assert type(caught.value) is kind
    return str(caught.value)


def with_cell(made: Manifest, row: int, column: str, value: Any) -> pa.Table:
    entries = made.table.to_pylist()
    entries[row][column] = value
    schema = pa.schema([field.with_nullable(True) for field in MANIFEST_SCHEMA])
    return pa.Table.from_pylist(entries, schema=schema)


@pytest.mark.parametrize(
    ("row", "column", "value"),
    [
        (0, "key", "../../etc/passwd"),
        (0, "key", "/tokens/c/0/0"),
        (0, "key", "tokens//c/0/0"),
        (0, "key", "tokens/c/0/0\n"),
        (0, "key", "tokens\\c"),
        (0, "key", ""),
        (0, "key", "x" * 256),
        (0, "key", "e\u0301"),
        (0, "key", ".tmp-1"),
        (0, "key", ".tiering/HEAD"),
        (0, "key", "zarr.json"),
        (0, "key", "tokens/c/1/0"),
        (0, "key", "tokens/c/9/0"),
        (0, "column", "label"),
        (1, "column", "label"),
        (0, "column", ""),
        (0, "shard", 1),
        (2, "shard", -1),
        (0, "rows", 2),
        (0, "rows", 0),
        (0, "rows", -3),
        (1, "rows", 1 << 62),
        (3, "rows", 2),
        (0, "nbytes", 0),
        (0, "nbytes", -1),
        (0, "row_start", 1),
        (2, "row_start", 3),
        (2, "row_start", -1),
        (0, "digest", "0" * 63),
        (0, "digest", "G" * 64),
        (0, "digest", "0" * 64 + "\n"),
        (0, "block_crcs", None),
        (0, "block_crcs", []),
        (0, "block_crcs", [1, 2]),
        (0, "block_crcs", [None]),
        (0, "key", None),
        (0, "rows", None),
        (0, "digest", None),
    ],
)
def test_manifest_with_one_wrong_cell_is_refused(row: int, column: str, value: Any) -> None:
    made = zarr_manifest(10, 1, 3, (TOKENS,), None)
    refused(rewritten(made, with_cell(made, row, column, value)))


def test_manifest_whose_table_lacks_or_repeats_shards_is_refused() -> None:
    made = zarr_manifest(10, 1, 3, (TOKENS, LABEL), None)
    table = made.table
    for bad in (
        table.slice(0, 0),
        table.slice(1),
        table.slice(0, 3),
        table.slice(0, 4),
        table.take([1, 0, 2, 3, 4, 5, 6, 7]),
        table.take([4, 5, 6, 7, 0, 1, 2, 3]),
        table.take([0, 4, 1, 5, 2, 6, 3, 7]),
        pa.concat_tables([table, table]),
        table.drop_columns(["digest"]),
        table.append_column("more", table["key"]),
        table.rename_columns(["kez", *table.column_names[1:]]),
        pa.table({"key": ["a"]}),
    ):
        refused(rewritten(made, bad))


@pytest.mark.parametrize(
    "meta",
    [
        {"format": "tar"},
        {"format": "arrow"},
        {"format": None},
        {"rows": 11},
        {"rows": 0},
        {"rows": "10"},
        {"rows": True},
        {"rows": 1 << 80},
        {"rows": ...},
        {"block_rows": 2},
        {"block_rows": 0},
        {"shard_rows": 6},
        {"shard_rows": None},
        {"codec": "zstd:1"},
        {"codec": 7},
        {"intent": "none"},
        {"intent": ...},
        {"schema": "####"},
        {"schema": "\u20ac"},
        {"schema": base64.b64encode(b"junk").decode()},
        {"schema": base64.b64encode(schema_to_bytes(pa.schema([("tokens", pa.string())]))).decode()},
        {"schema": base64.b64encode(schema_to_bytes(schema_of([LABEL]))).decode()},
        {"documents": []},
        {"documents": {}},
        {"documents": {"zarr.json": "{}"}},
        {"documents": {"zarr.json": 7}},
        {"documents": {"../zarr.json": "{}"}},
        {"documents": {".tiering/HEAD": "{}"}},
        {"documents": {"zarr.json": "\ud800"}},
        {"documents": {"zarr.json": "[" * 100_000}},
        {"format_version": 0},
        {"format_version": "1"},
        {"format_version": True},
        {"format_version": ...},
    ],
    ids=str,
)
def test_manifest_with_wrong_metadata_is_refused(meta: dict[str, Any]) -> None:
    refused(rewritten(zarr_manifest(10, 1, 3, (TOKENS,), None), **meta))


def test_manifest_of_arrow_with_wrong_blocks_is_refused(lake: Tier) -> None:
    made = small_arrow(lake).contents
    offsets, crcs = made.table["block_offsets"][0].as_py(), made.table["block_crcs"][0].as_py()
    for column, value in [
        ("block_offsets", None),
        ("block_offsets", []),
        ("block_offsets", offsets[:-1]),
        ("block_offsets", [*offsets, offsets[-1] + 1]),
        ("block_offsets", offsets[::-1]),
        ("block_offsets", [-1, *offsets[1:]]),
        ("block_offsets", [*offsets[:-1], 1 << 40]),
        ("block_offsets", [None, *offsets[1:]]),
        ("block_crcs", None),
        ("block_crcs", [*crcs, 1]),
        ("column", "text"),
    ]:
        refused(rewritten(made, with_cell(made, 0, column, value)))


def test_manifest_without_its_metadata_or_with_deep_json_is_refused() -> None:
    made = zarr_manifest(10, 1, 3, (TOKENS,), None)
    for metadata in (None, {"tiering": "[" * 200_000}, {"tiering": "[]"}, {"tiering": b"\xff"}):
        sink = pa.BufferOutputStream()
        pq.write_table(made.table.replace_schema_metadata(metadata), sink)
        refused(bytes(sink.getvalue()))


def test_manifest_of_the_future_is_refused_by_name() -> None:
    made = zarr_manifest(10, 1, 3, (TOKENS,), None)
    told = refused(rewritten(made, pa.table({"new": [1]}), format_version=2), UnsupportedVersion)
    assert "format version 2" in told
    assert "Upgrade corpus-tiering" in told


@pytest.mark.parametrize("limit", ["MAX_SHARDS", "MAX_DECODED_BYTES"])
def test_manifest_over_a_limit_is_refused(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(manifest, limit, 3)
    assert "too large" in refused(zarr_manifest(10, 1, 3, (TOKENS,), None).encode())


def test_parse_json_is_bounded() -> None:
    assert parse_json(b'{"a": 1}', "it", 8) == {"a": 1}
    for bad in (b'{"a": 12}', b"[1]", b"{", b"\xff", b"[" * 8, b"1e999", b""):
        with pytest.raises(FormatError, match="it is"):
            parse_json(bad, "it", 8)
    with pytest.raises(FormatError, match="it is not JSON"):
        parse_json(b"[" * 100_000, "it", 1 << 20)


def test_check_version_refuses_by_name() -> None:
    check_version(1, "it")
    with pytest.raises(UnsupportedVersion, match="it is of format version 2, this engine reads up to 1"):
        check_version(2, "it")


def test_manifest_of_a_corpus_has_what_a_copy_needs(lake: Tier) -> None:
    corpus = small(lake)
    assert sorted(corpus.contents.documents) == ["tokens/zarr.json", "zarr.json"]
    assert (corpus.contents.shards, corpus.contents.nbytes) == (6, corpus.nbytes)
