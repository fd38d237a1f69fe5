"""Reads blocks of an Arrow corpus as record batches, whatever its columns are.

Invariant: that of `BlockReader`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from tiering.digest import Buffer
from tiering.layout import arrow
from tiering.layout.zarr import ZarrColumn
from tiering.reader import BlockReader


class BatchReader(BlockReader):
    """Reads whole blocks of an Arrow corpus; usable from many threads."""

    def read_batch(self, shard: int, block: int) -> pa.RecordBatch:
        """One block with all its columns, ragged ones too.

        Args:
            shard: its number.
            block: number of the block within the shard.

        Raises:
            Corrupt: it is damaged, and no other tier has a good copy.
            Unavailable, DeadlineExceeded: the tier does not answer.
        """
        found: list[pa.RecordBatch] = []
        into: Mapping[str, Any] = {"": found}
        self._read_good("", self._state("", shard), block, into)
        return found[-1]

    def _chosen(self, columns: Sequence[str] | None) -> tuple[ZarrColumn, ...]:  # noqa: ARG002
        return ()  # none goes to a slot

    def _scatter(self, message: Buffer, crc: int, slots: Mapping[str, Any]) -> None:
        slots[""].append(arrow.decode_block(message, crc, self.corpus.schema))
