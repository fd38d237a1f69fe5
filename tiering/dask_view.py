"""A corpus as Dask collections, for work that is not training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dask.array as da
import numpy as np
import pyarrow as pa
from dask.delayed import delayed

from tiering.errors import Corrupt, UsageError
from tiering.layout.zarr import ZarrColumn, ZarrLayout, decode_block, index_bytes, read_index
from tiering.shards import Shard
from tiering.tier import Tier
from tiering.transfer import read_verified


def arrays(tier: Tier, layout: ZarrLayout, shards: Mapping[str, Sequence[Shard]]) -> dict[str, da.Array]:
    """``{column: dask.array}`` of a Zarr corpus, one chunk a shard, verified when read."""
    return {column.name: _array(tier, layout, column, shards[column.name]) for column in layout.columns}


def dataframe(tier: Tier, schema: pa.Schema, shards: Sequence[Shard]) -> Any:
    """A Dask DataFrame of an Arrow corpus, one partition a shard, verified when read. Needs pandas."""
    try:
        import dask.dataframe as dd
    except ImportError as error:
        raise UsageError("a Dask DataFrame needs pandas", hint="pip install 'dask[dataframe]'") from error
    meta = schema.empty_table().to_pandas()
    return dd.from_delayed([delayed(_frame)(tier, shard) for shard in shards], meta=meta)


def _array(tier: Tier, layout: ZarrLayout, column: ZarrColumn, shards: Sequence[Shard]) -> da.Array:
    # A task gets only the manifest's entry of its shard: the whole corpus would travel with every chunk.
    chunks = [
        da.from_delayed(
            delayed(_shard)(tier, layout, column, shard), (shard.rows, *column.shape), column.dtype
        )
        for shard in shards
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
