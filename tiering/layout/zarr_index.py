"""The index at the end of a Zarr shard, and the CRC32C that ends it and every block.

Invariant: a span that `read_index` returns is one whose index passed its CRC32C and that lies in the shard.
Source: Zarr v3 codec sharding_indexed 1.0, "Binary shard format"; codec crc32c 1.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from tiering.digest import CRC_BYTES, Buffer, crc32c
from tiering.errors import Corrupt
from tiering.layout.base import BlockSpan

_MAX_INT: Final = 2**63 - 1
_MISSING: Final = 2**64 - 1
_PAIR: Final = np.dtype("<u8")


def index_bytes(nblocks: int) -> int:
    """Length of a shard's index: two uint64 a block, and a CRC."""
    return 2 * _PAIR.itemsize * nblocks + CRC_BYTES


def read_index(tail: Buffer, nblocks: int, shard_bytes: int | None = None) -> list[BlockSpan | None]:
    """Where each block of a shard lies; None for a block that is absent.

    Args:
        tail: the last ``index_bytes(nblocks)`` bytes of the shard.
        nblocks: `ZarrLayout.nblocks`.
        shard_bytes: length of the shard, where it is known, to bound the spans by.

    Raises:
        Corrupt: the index has another length, fails its CRC, or points out of the shard.

    Source: Zarr v3 codec sharding_indexed 1.0, "Binary shard format".
    """
    view = memoryview(tail)
    if len(view) != index_bytes(nblocks):
        raise Corrupt(f"shard index has {len(view)} bytes, not {index_bytes(nblocks)}")
    end = _MAX_INT if shard_bytes is None else shard_bytes - len(view)
    spans: list[BlockSpan | None] = []
    for offset, nbytes in np.frombuffer(check_block(view), _PAIR).reshape(-1, 2).tolist():
        if offset == nbytes == _MISSING:
            spans.append(None)
        elif nbytes >= CRC_BYTES and offset + nbytes <= end:
            spans.append(BlockSpan(offset, nbytes))
        else:
            raise Corrupt(f"shard index has a block of {nbytes} bytes at {offset}, outside of the shard")
    return spans


def check_block(stored: memoryview, expected: int | None = None) -> memoryview:
    """Return what precedes the CRC32C at the end of `stored`, or raise `Corrupt` where that is wrong.

    With `expected`, it must be that one too: another block of the same form has a right CRC of its own.
    """
    payload = stored[:-CRC_BYTES]
    if len(stored) < CRC_BYTES or stored[-CRC_BYTES:] != crc_bytes(payload):
        raise Corrupt(f"CRC32C over {len(payload)} stored bytes is wrong")
    if expected is not None and int.from_bytes(stored[-CRC_BYTES:], "little") != expected:
        raise Corrupt(f"the {len(payload)} stored bytes are those of another block")
    return payload


def encode_index(spans: Sequence[BlockSpan], nblocks: int) -> bytes:
    """The index of a shard whose first blocks lie at `spans`; the rest of its `nblocks` are absent."""
    table = np.full((nblocks, 2), _MISSING, _PAIR)
    table[: len(spans)] = [(span.offset, span.nbytes) for span in spans]
    data = table.tobytes()
    return data + crc_bytes(data)


def crc_bytes(data: Buffer) -> bytes:
    """CRC32C as the Zarr codec of that name stores it: 4 little-endian bytes."""
    return crc32c(data).to_bytes(CRC_BYTES, "little")
