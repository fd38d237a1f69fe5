"""What both layouts share: an encoded shard and the span of a stored block.

Invariant: blocks start on page boundaries of their shard, so that a direct read needs no bounce buffer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tiering.digest import Buffer

PAGE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class EncodedShard:
    """One shard, ready to be written as one object.

    Attributes:
        buffers: their concatenation is the object. They may be views of the caller's data, which must
            not change until they are written.
        nbytes: length of the concatenation.
        block_offsets: Arrow: the start of every block's message and, last, the end of the last one (one more
            than blocks). Zarr: None, its index is inside the shard.
        block_crcs: CRC32C of each block. Arrow: of the bytes [block_offsets[i], block_offsets[i + 1]). Zarr:
            of what precedes the same CRC in the shard; two shards of one form differ in nothing else.
    """

    buffers: list[Buffer]
    nbytes: int
    block_offsets: list[int] | None
    block_crcs: list[int]


@dataclass(frozen=True, slots=True)
class BlockSpan:
    """Where one stored block lies in its shard: the bytes [offset, offset + nbytes)."""

    offset: int
    nbytes: int


def pad_bytes(position: int) -> int:
    """How many bytes from `position` to the next page boundary: 0 to ``PAGE_BYTES - 1``."""
    return -position % PAGE_BYTES
