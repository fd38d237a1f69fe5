"""Which rows of a corpus a loader hands out, and the order they come in.

Invariant: the name of a subset is a function of its rows alone, so that a state fits no other subset.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from policies import Order
from policies.bounds import bound
from policies.order import Keep
from tiering.cache import NodeCache
from tiering.corpus import Corpus
from tiering.digest import digest
from tiering.errors import UsageError
from tiering.reader import BlockReader
from tiering.rows import RowReader

_NAME_CHARS: Final = 16
_NUMBER: Final = "/row"  # no column is called so

Rows: TypeAlias = "Keep | pc.Expression"
"""A bool mask, shape ``[corpus.rows]``; row numbers, ascending; half-open ranges of them, ``[k, 2]``; or an
expression of columns, such as ``pyarrow.compute.field("label") == 3``."""


def make_order(corpus: Corpus, rows: Rows | None, cache: NodeCache | None = None, **options: Any) -> Order:
    """The order of some rows of a corpus; `options` are those of `Order`.

    Raises:
        UsageError: an option or `rows` does not fit. And what reading columns raises, for an expression.
    """
    if isinstance(rows, pc.Expression):
        rows = rows_that_match(corpus, rows, cache)
    try:
        order = Order(corpus.shard_rows, block_rows=corpus.contents.block_rows, keep=rows, **options)
    except ValueError as error:
        raise UsageError(str(error).replace("keep", "rows")) from error
    if not len(order):
        raise UsageError(f"rows names none of the {corpus.rows} rows of corpus {corpus.name!r}")
    return order


def rows_that_match(corpus: Corpus, wanted: pc.Expression, cache: NodeCache | None) -> Keep:
    """Numbers of the rows for which an expression of columns is true, int64 ``[k]``, ascending.

    The columns it names are read once, shard by shard; of a Zarr corpus no others.

    Raises:
        UsageError: it names no columns of the corpus, or is not true or false for a row of them.
    """
    names = _columns_of(wanted, corpus)
    reader = RowReader(corpus, names, cache)
    found = [np.empty(0, np.int64)]
    ends = np.cumsum(corpus.shard_rows).tolist()
    for first, end in zip([0, *ends], ends, strict=False):
        rows = pa.array(np.arange(first, end))
        table = reader.to_arrow(slice(first, end)).append_column(_NUMBER, rows)
        found.append(table.filter(wanted)[_NUMBER].to_numpy())
    return np.concatenate(found)


def _columns_of(wanted: pc.Expression, corpus: Corpus) -> list[str]:
    """The columns that an expression names: those it cannot be evaluated without."""
    nothing = corpus.schema.empty_table()
    try:
        nothing.filter(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise UsageError(
            f"rows cannot be chosen by {wanted}: {error}",
            hint=f"The columns of corpus {corpus.name!r} are {', '.join(corpus.schema.names)}",
        ) from error
    needed = []
    for name in corpus.schema.names:
        try:
            nothing.drop_columns(name).filter(wanted)
        except pa.ArrowInvalid:
            needed.append(name)
    if not needed:
        raise UsageError(f"rows = {wanted} names no column", hint="Example: pc.field('label') == 3")
    return needed


def name_of(order: Order) -> str:
    """What tells the rows that take part from any others; empty for all rows."""
    if order.kept is None or len(order) == int(order.shard_rows.sum()):
        return ""
    parts = [memoryview(np.ascontiguousarray(part).astype("<u8")).cast("B") for part in order.kept.parts]
    return digest(parts)[:_NAME_CHARS]


def shards_needed(reader: BlockReader, order: Order) -> tuple[int, list[str]]:
    """Bytes and digests of the shards that have rows which take part."""
    shards = list(reader.shards.values())
    if order.kept is not None:
        before = order.kept.rank(np.concatenate([[0], np.cumsum(order.shard_rows)]))
        chosen = np.flatnonzero(np.diff(before))
        shards = [one.take(chosen.tolist()) for one in shards]
    return sum(one.nbytes for one in shards), [digest for one in shards for digest in one.digests]


def hit_bound(cache: NodeCache | None, reader: BlockReader, order: Order, rows: int, *, alone: bool) -> float:
    """Largest hit ratio that any policy could reach while this reader reads so many rows of an order.

    alone: whether what is in the cache now is all it can have of them; else it may be filled meanwhile.
    """
    if cache is None:
        return 0.0
    stored_bytes, digests = shards_needed(reader, order)
    held_bytes = cache.resident_bytes(digests) if alone else cache.capacity_bytes
    limit = bound(held_bytes, stored_bytes * rows // len(order), 1)
    # In mode "full" a block is read for each of its rows, and need be fetched for one of them alone.
    return limit if order.mode != "full" else 1 - (1 - limit) / order.block_rows


def called(name: str) -> str:
    """What a subset is called in messages, by its name."""
    return f"the subset of rows {name}" if name else "all rows"
