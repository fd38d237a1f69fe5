"""Copies of shards: which one is read, in the node cache or on a tier, and what becomes of a bad one.

Invariant: a damaged or missing copy is reported and healed from another tier that holds one; where it cannot
be, the other tier is read instead. While a tier does not answer, others are read. Nothing here says that
bytes are right but of whole shards: blocks are checked by whoever reads them, who calls `Copies.replace`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Hashable
from typing import TypeVar

from tiering.cache import STORE_NAME, NodeCache, Registration
from tiering.corpus import Corpus
from tiering.digest import Buffer
from tiering.errors import Corrupt, DeadlineExceeded, NotFound, TieringError, Unavailable
from tiering.repair import heal
from tiering.shard_state import ReadCounts, ShardState
from tiering.stores.base import Extent
from tiering.stores.scatter import Scatter
from tiering.transfer import is_verified, read_verified

log = logging.getLogger("tiering.copies")

T = TypeVar("T")


class Copies:
    """The copies of a corpus's shards that one reader has to do with; usable from many threads.

    Args:
        corpus: the corpus, on the tier to read from; its other tiers come after that.
        cache: the node's cache, or None to read the tiers alone.
    """

    def __init__(self, corpus: Corpus, cache: NodeCache | None) -> None:
        self._corpus, self.cache = corpus, cache
        self.counts = ReadCounts()
        self.registration: Registration | None = None
        """By which the cache knows this reader, where it was foretold what will be read."""
        self._lock = threading.Lock()
        self._tiers = (corpus.tier, *corpus.others)
        self._attempts = 3 + len(self._tiers)  # in the cache, on each tier, a healed one, one to spare
        self._can_heal = True

    def good(self, state: ShardState, read: Callable[[ShardState], T]) -> T:
        """What `read` makes of whichever copy is good."""
        left = self._attempts
        while True:
            left -= 1
            try:
                return read(state)
            except (Corrupt, NotFound) as error:
                error.tier, error.key = error.tier or state.tier.name, error.key or state.shard.key
                if not left:
                    raise
                self.replace(state, error, again=left < self._attempts - 1)
            except (Unavailable, DeadlineExceeded) as error:
                return self.elsewhere(state, read, error)

    def elsewhere(self, state: ShardState, read: Callable[[ShardState], T], error: TieringError) -> T:
        """What `read` makes of the next tier that answers; the next block is again asked of the first."""
        for tier in self._tiers[self._tiers.index(state.tier) + 1 :]:
            other = ShardState(state.shard, tier, state.spans, cached=False)
            with contextlib.suppress(TieringError):  # the first error is the one to tell
                return read(other)
        raise error

    def file(self, state: ShardState) -> Extent | None:
        """The file that holds a shard, in the cache or on the tier."""
        if self._in_cache(state) and self.cache is not None:
            try:
                return self.cache.locate(state.shard.digest)
            except (TieringError, OSError):  # evicted meanwhile, or the cache is sick
                state.cached = False
        # A block tier's extents have addresses too, but are given to other objects after a delete.
        return state.tier.store.locate(state.shard.key) if state.tier.kind == "file" else None

    def read(self, state: ShardState, offset: int, buffer: memoryview | Scatter) -> Hashable | None:
        """Bytes of a shard, from the cache where it has or takes the shard, else from the tier.

        Returns what tells the file they come from, as it is now, from any other; None where nothing does.
        """
        if self._in_cache(state) and self.cache is not None:
            try:
                if (read := state.in_cache) is None:
                    read = state.in_cache = self.cache.reader(state.shard.digest)
                identity = read(offset, buffer)
            except Corrupt:  # truncated
                raise
            except (TieringError, OSError):  # evicted meanwhile, or the cache is sick
                state.cached = False
            else:
                self.was_read(STORE_NAME, buffer.nbytes)
                return identity
        if (read := state.on_tier) is None:
            read = state.on_tier = state.tier.store.reader(state.shard.key)
        identity = read(offset, buffer)
        self.was_read(state.tier.name, buffer.nbytes)
        return identity

    def _in_cache(self, state: ShardState) -> bool:
        if self.cache is None:
            return False
        if state.cached is None:
            with state.lock:
                if state.cached is None:
                    shard = state.shard
                    state.cached = self.cache.get(
                        shard.digest,
                        shard.nbytes,
                        lambda: [self._whole(state)],
                        self.registration,
                        verified=True,
                    )
        return bool(state.cached)

    def _whole(self, state: ShardState) -> Buffer:
        """A whole shard, verified, to be kept in the cache; `state.lock` is held."""
        shard = state.shard
        for left in reversed(range(self._attempts)):
            try:
                data = read_verified(state.tier.store, shard.key, shard.nbytes, shard.digest)
            except (Corrupt, NotFound) as error:
                if not left:
                    raise
                self._repair(state, error)
            else:
                break
        self.was_read(state.tier.name, shard.nbytes)
        return data

    def replace(self, state: ShardState, error: TieringError, *, again: bool = False) -> None:
        """After a bad or missing block: drop the cached copy, or repair the tier's if that is the bad one.

        Another thread may have done it already. With `again` it helped the caller nothing.
        """
        shard = state.shard
        with state.lock:
            if self.cache is not None and state.cached is None:
                return  # a bad copy was just discarded
            if self.cache is not None and state.cached:
                if not self.cache.verify(shard.digest, shard.nbytes):
                    self._report(STORE_NAME, state, error)
                    state.cached = False if state.refetched else None
                    state.refetched = True
                elif again:  # its disk gives other bytes each time
                    state.cached = False
            else:
                self._repair(state, error)
            state.in_cache = state.on_tier = None
            state.proven = (None, set())
            if state.shard.block_offsets is None:
                state.spans = None  # its index may be from the bad copy

    def _repair(self, state: ShardState, error: TieringError) -> None:
        """Have a good copy on the shard's tier again, or else read another tier from now on.

        Raises:
            Corrupt: no other tier has a good copy.
        """
        shard, tier = state.shard, state.tier
        if is_verified(tier.store, shard.key, shard.nbytes, shard.digest):
            self.was_read(tier.name, shard.nbytes)
            return  # another thread healed it, or the bad bytes were the cache's
        self._report(tier.name, state, error)
        behind = self._tiers[self._tiers.index(tier) + 1 :]
        if tier == self._corpus.tier and (self._can_heal or not behind):
            try:
                _data, self._can_heal = heal(self._corpus, shard.relative_key, shard.nbytes, shard.digest)
            except TieringError as failure:
                if not behind:
                    raise
                log.warning("shard %s cannot be healed: %s", shard.key, failure)
            else:
                self.was_read(tier.name, shard.nbytes)
                if self._can_heal:
                    return
        if not behind:
            hint = "'tiering verify' lists all such objects; move the corpus here again from a good tier"
            raise Corrupt(
                f"no good copy of the shard: {error.message}", tier=tier.name, key=shard.key, hint=hint
            )
        state.tier, state.on_tier = behind[0], None
        log.warning("shard %s is read from tier %s from now on", shard.key, state.tier.name)

    def _report(self, tier: str, state: ShardState, error: TieringError) -> None:
        log.warning("bad copy of shard %s on tier %s: %s", state.shard.key, tier, error.message)
        with self._lock:
            self.counts.damaged.append((tier, state.shard.key))

    def needed(self, nbytes: int) -> None:
        """Count bytes of blocks that were asked for, as stored."""
        with self._lock:
            self.counts.bytes_needed += nbytes

    def was_read(self, store: str, nbytes: int) -> None:
        """Count bytes that were read from a tier or the node cache."""
        with self._lock:
            self.counts.bytes_read[store] = self.counts.bytes_read.get(store, 0) + nbytes
            self.counts.bytes_fetched += nbytes if store != STORE_NAME else 0
