"""The shards of a column as a sequence, made from the manifest's table as they are asked for.

Invariant: nothing is kept but the table: a corpus of a million shards costs no million objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard object as the manifest has it."""

    key: str
    """Below the tier."""
    relative_key: str
    """Below the corpus."""
    column: str
    """``""`` where it holds all columns."""
    number: int
    rows: int
    nbytes: int
    digest: str
    block_crcs: tuple[int, ...]
    """CRC32C of each block."""
    block_offsets: tuple[int, ...] | None
    """Where the blocks start, and the last one's end; None where the shard itself says so."""


class Shards(Sequence[Shard]):
    """The shards of one column (``""`` for an Arrow corpus), in order of their rows."""

    def __init__(self, table: pa.Table, corpus: str, column: str = "") -> None:
        self._table = table.filter(pc.equal(table["column"], column)).combine_chunks()
        self._corpus, self._column = corpus, column

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, number: int) -> Shard: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Shard]: ...
    def __getitem__(self, number: int | slice) -> Shard | Sequence[Shard]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        (row,) = self._table.slice(range(len(self))[number], 1).to_pylist()
        offsets = row["block_offsets"]
        return Shard(
            key=f"{self._corpus}/{row['key']}",
            relative_key=row["key"],
            column=row["column"],
            number=row["shard"],
            rows=row["rows"],
            nbytes=row["nbytes"],
            digest=row["digest"],
            block_crcs=tuple(row["block_crcs"]),
            block_offsets=None if offsets is None else tuple(offsets),
        )

    def take(self, numbers: Sequence[int]) -> Shards:
        """Those with these numbers."""
        return Shards(self._table.take(pa.array(numbers, pa.int64())), self._corpus, self._column)

    @property
    def digests(self) -> list[str]:
        """Digests of all of them."""
        digests: list[str] = self._table["digest"].to_pylist()
        return digests

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return int(pc.sum(self._table["nbytes"]).as_py() or 0)

    @property
    def largest_block_bytes(self) -> int:
        """Of an Arrow corpus: bytes of the largest block of all."""
        # Within a shard offsets grow; from one to the next they fall, which is no block.
        chunks = (lists.flatten().to_numpy() for lists in self._table["block_offsets"].chunks)
        return max(int(np.diff(offsets).max()) for offsets in chunks)
