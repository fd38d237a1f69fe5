"""Whether a manifest agrees with itself: what its bytes' digest cannot tell, because anybody can name bytes.

Invariant: after `check_table` and `check_format` no reader meets a key that is none, a row that no shard or
two shards hold, or a block that its shard cannot hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiering.errors import FormatError, UsageError
from tiering.keys import INTERNAL, validate
from tiering.layout.zarr import ZarrLayout
from tiering.schema import columns_of

if TYPE_CHECKING:
    from tiering.manifest import Manifest

_PLAIN_KEY = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}){0,7}$"
"""Keys that are right beyond doubt; the others are looked at one by one."""

_Numbers = np.ndarray[Any, np.dtype[np.int64]]


def check_table(table: pa.Table, rows: int) -> None:
    """Keys are keys, digests are digests, and each column's shards cover ``[0, rows)`` in order.

    Raises:
        FormatError: says what is wrong.
    """
    if not table.num_rows:
        raise FormatError("a manifest names no shard")
    others = table["key"].filter(pc.invert(pc.match_substring_regex(table["key"], _PLAIN_KEY)))
    for key in others.to_pylist():
        check_key(key)
    if not pc.all(pc.match_substring_regex(table["digest"], "^[0-9a-f]{64}$")).as_py():
        raise FormatError("a manifest has something that is no digest")
    if pc.count_distinct(table["key"]).as_py() != table.num_rows:
        raise FormatError("a manifest names one key twice")
    counts, starts, shards, nbytes = (
        _numbers(table, name) for name in ("rows", "row_start", "shard", "nbytes")
    )
    if min(counts.min(), nbytes.min()) <= 0 or max(counts.max(), starts.max()) > rows or starts.min() < 0:
        raise FormatError("a manifest has a shard without rows or bytes, or beyond the last row")
    first = _first_of_column(table)
    ends = np.append(first[1:], True)  # a value, not a flag
    follows = ~first[1:]
    if (
        starts[first].any()
        or shards[first].any()
        or (starts[1:] != starts[:-1] + counts[:-1])[follows].any()
        or (shards[1:] != shards[:-1] + 1)[follows].any()
        or ((starts + counts)[ends] != rows).any()
    ):
        raise FormatError(f"a manifest does not cover its {rows} rows in order, once for each column")


def check_key(key: str) -> None:
    """Raise `FormatError` unless `key` names an object of a corpus, relative to it."""
    try:
        validate(key)
    except UsageError as error:
        raise FormatError(f"a manifest has a bad key: {error.message}") from None
    if key.split("/")[0] == INTERNAL:
        raise FormatError(f"a manifest names {key!r}, which is the engine's own")


def check_format(manifest: Manifest) -> None:
    """The table is what the corpus format makes of the schema, the layout and the documents.

    Raises:
        FormatError: says what is wrong.
    """
    overlap = set(manifest.documents).intersection(manifest.table["key"].to_pylist())
    if overlap:
        raise FormatError(f"a manifest has {min(overlap)!r} both as shard and as document")
    blocks = -(-_numbers(manifest.table, "rows") // manifest.block_rows)
    if (_lengths(manifest.table, "block_crcs") != blocks).any():
        raise FormatError("a manifest has another number of CRCs than blocks")
    if manifest.format == "zarr":
        _check_zarr(manifest)
    else:
        _check_arrow(manifest)


def _check_zarr(manifest: Manifest) -> None:
    layout = ZarrLayout.from_documents(manifest.documents)
    try:
        columns = columns_of(manifest.schema)
    except UsageError as error:
        raise FormatError(f"the schema of a manifest is not that of a Zarr corpus: {error.message}") from None
    found = (manifest.rows, manifest.shard_rows, manifest.block_rows, manifest.codec, columns)
    if found != (layout.rows, layout.shard_rows, layout.block_rows, layout.codec, layout.columns):
        raise FormatError("a manifest and its zarr.json differ in rows, layout or columns")
    expected = {
        column.name: "/".join([column.name, "c", "{}", *["0"] * len(column.shape)]) for column in columns
    }
    table = manifest.table
    names = pc.unique(table["column"]).to_pylist()
    if names != list(expected):
        raise FormatError(f"a manifest has shards of the columns {names[:8]}, not of those of its schema")
    numbers = pc.cast(table["shard"], pa.string())
    for name in names:
        mine = pc.equal(table["column"], name)
        before, after = expected[name].split("{}")
        keys = pc.binary_join_element_wise(before, numbers.filter(mine), after, "")
        if not table["key"].filter(mine).equals(keys):
            raise FormatError(f"a manifest has a shard of column {name!r} under a key that is not Zarr's")
    rows = np.minimum(layout.shard_rows, layout.rows - _numbers(table, "row_start"))
    if (_numbers(table, "rows") != rows).any():
        raise FormatError("a manifest has shards of other rows than its zarr.json")


def _check_arrow(manifest: Manifest) -> None:
    table = manifest.table
    if pc.unique(table["column"]).to_pylist() != [""]:
        raise FormatError("a manifest of an Arrow corpus has shards of single columns")
    if (_lengths(table, "block_offsets") != _lengths(table, "block_crcs") + 1).any():
        raise FormatError("a manifest has another number of block offsets than blocks")
    nbytes = _numbers(table, "nbytes")
    start = 0
    for lists in table["block_offsets"].chunks:  # they are many: no copy of all of them
        flat: _Numbers = lists.flatten().to_numpy()
        last = np.cumsum(lists.value_lengths().to_numpy().astype(np.int64)) - 1
        steps = np.diff(flat)
        steps[last[:-1]] = 1  # from one shard to the next
        if (flat < 0).any() or (steps <= 0).any() or (flat[last] > nbytes[start : start + len(lists)]).any():
            raise FormatError("a manifest has block offsets that do not ascend within their shard")
        start += len(lists)


def _first_of_column(table: pa.Table) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where each column's run of shards begins; every column has one run."""
    encoded = table["column"].combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy()
    first = np.append(True, codes[1:] != codes[:-1])
    if np.count_nonzero(first) != len(encoded.dictionary):
        raise FormatError("a manifest has the shards of a column in more than one place")
    return first


def _lengths(table: pa.Table, name: str) -> _Numbers:
    """How long the lists of a column are; none may be null, nor anything in them."""
    chunks = table[name].chunks
    if any(lists.null_count or lists.flatten().null_count for lists in chunks):
        raise FormatError(f"a manifest lacks {name}")
    return np.concatenate([lists.value_lengths().to_numpy().astype(np.int64) for lists in chunks])


def _numbers(table: pa.Table, name: str) -> _Numbers:
    numbers: _Numbers = table[name].to_numpy()
    return numbers
