"""What a reader knows: where a shard object lies, what reads it, which blocks are proven; and what it cost.

Invariant: a block is proven for the very file it was found right in, never for another or a changed one.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from tiering.layout.base import BlockSpan
from tiering.shards import Shard
from tiering.stores.base import Extent, Reader
from tiering.tier import Tier


@dataclass(slots=True)
class ReadCounts:
    """What reading cost so far."""

    bytes_needed: int = 0
    """Bytes of the blocks that were asked for, as stored."""
    bytes_fetched: int = 0
    """Bytes that came from beyond the node cache."""
    bytes_read: dict[str, int] = field(default_factory=dict)
    """Bytes read from each tier, and from the node cache, under its name as a store."""
    damaged: list[tuple[str, str]] = field(default_factory=list)
    """Tier and key of each bad copy that was met."""

    def reset(self) -> None:
        """Begin to count anew."""
        self.bytes_needed = self.bytes_fetched = 0
        self.bytes_read, self.damaged = {}, []


@dataclass(frozen=True, slots=True)
class RawBlock:
    """Rows of one block that lie in a file as they lie in memory, not yet verified."""

    shard: Shard
    tier: str
    """Whose copy it is; where `cached`, whose copy was cached."""
    file: Extent
    """Where the whole shard lies."""
    offset: int
    """Where the rows begin in that file."""
    nbytes: int
    """Length of the rows; the block's CRC, behind them, is left out."""
    cached: bool
    """Whether the file is the node cache's."""


@dataclass(slots=True)
class ShardState:
    """What one reader of this process knows."""

    shard: Shard
    tier: Tier
    """Where it is read: the corpus's tier, or another one that took its place for this shard."""
    spans: Sequence[BlockSpan] | None = None
    cached: bool | None = None
    """Whether the node cache had it when last asked; None before that."""
    refetched: bool = False
    """Whether the cache was asked again in this epoch, because its copy was bad."""
    in_cache: Reader | None = None
    """Reads the cached copy, since it was read last; None before that."""
    on_tier: Reader | None = None
    """Reads the tier's copy, likewise."""
    proven: tuple[Hashable | None, set[int]] = (None, set())
    """Which blocks were found right, of which unchanged file."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def is_proven(self, identity: Hashable | None, block: int) -> bool:
        """Whether a block of this very file was found right before."""
        known, blocks = self.proven
        return identity is not None and identity == known and block in blocks

    def prove(self, identity: Hashable | None, block: int) -> None:
        """Remember that a block of this file was found right."""
        if identity is None:
            return
        if identity != self.proven[0]:
            self.proven = (identity, set())
        known, blocks = self.proven
        if identity == known:  # else another thread read another file meanwhile
            blocks.add(block)
