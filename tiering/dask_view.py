"""A corpus as Dask collections, for work that is not training."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pyarrow as pa
from dask.delayed import delayed

from tiering.corpus import Corpus, Shard, shards_of
from tiering.errors import Corrupt, UsageError
from tiering.layout.zarr import ZarrColumn, ZarrLayout, decode_block, index_bytes, read_index
from tiering.tier import Tier
from tiering.transfer import read_verified


def arrays(corpus: Corpus) -> dict[str, da.Array]:
    """``{column: dask.array}`` of a Zarr corpus, one chunk a shard, verified when read."""
    layout = corpus.layout
    return {column.name: _array(corpus, layout, column) for column in layout.columns}


def dataframe(corpus: Corpus) -> Any:
    """A Dask DataFrame of an Arrow corpus, one partition a shard, verified when read. Needs pandas."""
    try:
        import dask.dataframe as dd
    except ImportError as error:
        raise UsageError("a Dask DataFrame needs pandas", hint="pip install 'dask[dataframe]'") from error
    meta = corpus.schema.empty_table().to_pandas()
    parts = [delayed(_frame)(corpus.tier, shard) for shard in shards_of(corpus)]
    return dd.from_delayed(parts, meta=meta)


def _array(corpus: Corpus, layout: ZarrLayout, column: ZarrColumn) -> da.Array:
    # A task gets only the manifest's entry of its shard: the whole corpus would travel with every chunk.
    chunks = [
        da.from_delayed(
            delayed(_shard)(corpus.tier, layout, column, shard),
            (shard.rows, *column.shape),
            column.dtype,
        )
        for shard in shards_of(corpus, column.name)
    ]
    whole: da.Array = da.concatenate(chunks)
    return whole


def _shard(tier: Tier, layout: ZarrLayout, column: ZarrColumn, shard: Shard) -> np.ndarray[Any, Any]:
    data = memoryview(read_verified(tier.store, shard.key, shard.nbytes, shard.digest))
    spans = read_index(data[-index_bytes(layout.nblocks) :], layout.nblocks, len(data))
    rows = np.empty((shard.rows, *column.shape), column.dtype)
    for number in range(layout.shard_blocks(shard.number)):
        span = spans[number]
        if span is None:
            raise Corrupt(f"block {number} is missing", tier=tier.name, key=shard.key)
        out = rows[number * layout.block_rows : (number + 1) * layout.block_rows]
        decode_block(layout, column, data[span.offset : span.offset + span.nbytes], out)
    return rows


def _frame(tier: Tier, shard: Shard) -> Any:
    data = read_verified(tier.store, shard.key, shard.nbytes, shard.digest)
    return pa.ipc.open_file(pa.BufferReader(data)).read_all().to_pandas()
