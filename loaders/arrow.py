"""Batches as Arrow record batches and polars frames. Give either to a loader as `transform`.

Invariant: values and shapes are those of the batch; fixed shapes become nested fixed-size lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from tiering.errors import UsageError
from tiering.schema import to_table

Arrays = Mapping[str, np.ndarray[Any, Any]]


def to_record_batch(batch: Arrays, schema: pa.Schema | None = None) -> pa.RecordBatch:
    """A batch of arrays ``[rows, *shape]`` as a record batch of as many rows, sharing all memory but bools'.

    Args:
        batch: arrays by column, of one length.
        schema: types, nullability, metadata and order of the columns, for example ``corpus.schema``; its
            columns that are not in the batch are left out. By default not nullable, in the batch's order.

    Raises:
        UsageError: a column is not in the schema, or does not fit its type there; arrays differ in length.
    """
    try:
        table = to_table(batch)
        if schema is not None:
            unknown = sorted(set(batch) - set(schema.names))
            if unknown:
                raise UsageError(
                    f"the schema has no column {unknown[0]!r}", hint=f"It has {', '.join(schema.names)}"
                )
            fields = [field for field in schema if field.name in batch]
            table = table.select([field.name for field in fields]).cast(pa.schema(fields, schema.metadata))
    except (pa.ArrowException, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"the batch is no record batch of that schema: {error}") from error
    arrays = [column.chunk(0) if column.num_chunks else pa.array([], column.type) for column in table.columns]
    return pa.RecordBatch.from_arrays(arrays, schema=table.schema)


def to_polars(batch: Arrays) -> Any:
    """A batch as a `polars.DataFrame`; columns of fixed shape have polars' dtype Array.

    Raises:
        UsageError: polars is not installed, or as `to_record_batch`.
    """
    try:
        import polars
    except ImportError as error:
        raise UsageError("to_polars needs polars", hint="pip install 'corpus-tiering[polars]'") from error
    return polars.from_arrow(to_record_batch(batch))
