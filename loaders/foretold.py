"""Foretells to the node cache which shards a loader will use: a pure function of its order, no byte is read.

Invariant: what is foretold changes which shards a cache keeps, never what a training sees. It is worked out
beside the training, by a thread that ends with the loop, and until it is ready the cache goes by what it was
told before.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Final

import numpy as np

from policies import Order
from tiering.cache import Outlook, Registration, numbers_of
from tiering.cache.registration import HORIZON
from tiering.reader import BlockReader

Int64s = np.ndarray[Any, np.dtype[np.int64]]
UInt64s = np.ndarray[Any, np.dtype[np.uint64]]

EPOCHS: Final = 8
"""The most epochs that are foretold, the present one among them."""


class Foreteller:
    """Tells a cache what its reader will use as this rank; it is registered for as long as it is there."""

    def __init__(self, reader: BlockReader, rank: int, world_size: int) -> None:
        self._reader, self._rank, self._world_size = reader, rank, world_size
        self._known: dict[tuple[Order, int], tuple[Int64s, Int64s]] = {}
        if reader.cache is not None:
            reader.copies.registration = Registration()

    @contextmanager
    def loop(self, order: Order, epoch: int, position: int) -> Iterator[None]:
        """While this lasts, an epoch is read from a position of its lanes on."""
        if self._reader.copies.registration is None:
            yield
            return
        self._reader.copies.registration.begin(epoch)
        thread = threading.Thread(
            target=self.foretell, args=(order, epoch, position), name="tiering-foretell"
        )
        thread.start()
        try:
            yield
        finally:
            thread.join()

    def foretell(self, order: Order, epoch: int, position: int) -> None:
        """Tell what is used from there on."""
        cache, registration = self._reader.cache, self._reader.copies.registration
        if cache is None or registration is None:
            return
        corpus, numbers = self._reader.corpus, self._numbers
        epochs: list[UInt64s] = []
        until: list[Int64s] = []
        while len(epochs) < EPOCHS and sum(map(len, epochs)) < HORIZON:
            used, ends = self._used(order, epoch + len(epochs), 0 if epochs else position)
            epochs.append(numbers[:, used].T.reshape(-1))
            until.append(np.repeat(ends * len(numbers), len(numbers)))
        self._known = {key: used for key, used in self._known.items() if key[0] == order and key[1] >= epoch}
        cache.foretell(
            registration,
            Outlook(
                corpus=corpus.name,
                version=corpus.version,
                rank=self._rank,
                world_size=self._world_size,
                first_epoch=epoch,
                epochs=epochs,
                known=np.unique(numbers),
                shard_bytes=self._reader.stored_bytes // max(1, numbers.size),
                until=until,
            ),
        )

    @cached_property
    def _numbers(self) -> UInt64s:
        """What the cache knows the shard objects by: shape (columns, shards), as a block's are asked for."""
        return numbers_of(self._reader.digests).reshape(-1, self._reader.corpus.contents.shards)

    def _used(self, order: Order, epoch: int, position: int) -> tuple[Int64s, Int64s]:
        """Shards that this rank uses in an epoch from a position on, in the order of their need.

        And for each, how many of them it has begun when it is done with this one: with the piece of it that
        it comes to first, where several lanes have one.
        """
        if position or (order, epoch) not in self._known:
            coming = order.future(epoch, order.rank_lanes(self._rank, self._world_size), 1)
            left = np.flatnonzero(coming.stops > position)
            first = left[np.sort(np.unique(coming.shards[left], return_index=True)[1])]
            used = coming.shards[first], np.searchsorted(coming.starts[first], coming.stops[first])
            if position:
                return used
            self._known[order, epoch] = used
        return self._known[order, epoch]
