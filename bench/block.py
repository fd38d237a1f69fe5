"""Fragmentation of a block volume after 10^5 writes and deletes at 90% fill: best fit against first fit.

Both see the same requests in the same run: objects of 4 KiB to 64 MiB, sizes spread evenly by logarithm,
half of them shards of 64 MiB. Objects are deleted at random while the volume is fuller than 90%.
"""

from __future__ import annotations

import random
import time
from typing import Final

from tiering.stores.block_index import span_of
from tiering.stores.block_space import FreeSpace

VOLUME_BYTES: Final = 64 << 30
SHARD_BYTES: Final = 64 << 20
CHANGES: Final = 100_000
FILL: Final = 0.9


class FirstFit(FreeSpace):
    """The run with the lowest offset that is large enough."""

    def take(self, length: int) -> int | None:
        """Like `FreeSpace.take`."""
        for offset in self._starts:
            if (run_bytes := self._lengths[offset]) >= length:
                self._remove(offset)
                self._add(offset + length, run_bytes - length)
                return offset
        return None


def run() -> dict[str, object]:
    """The figures of both."""
    return {
        "changes": CHANGES,
        "volume_bytes": VOLUME_BYTES,
        "best_fit": churn(FreeSpace(0, VOLUME_BYTES, [])),
        "first_fit": churn(FirstFit(0, VOLUME_BYTES, [])),
    }


def churn(space: FreeSpace) -> dict[str, object]:
    """What becomes of `space`."""
    dice = random.Random(7)
    held: list[tuple[int, int]] = []
    allocations = failed = 0
    seconds = 0.0
    for _ in range(CHANGES):
        while held and space.nbytes < (1 - FILL) * VOLUME_BYTES:
            place = dice.randrange(len(held))
            held[place], held[-1] = held[-1], held[place]
            space.give(*held.pop())
        nbytes = SHARD_BYTES if dice.random() < 0.5 else int(2 ** dice.uniform(12, 26))
        span = span_of(nbytes)
        begun = time.perf_counter()
        offset = space.take(span)
        seconds += time.perf_counter() - begun
        allocations += 1
        if offset is None:
            failed += 1
        else:
            held.append((offset, span))
    return {
        "largest_free_share": round(space.largest_bytes / space.nbytes, 4),
        "failed_allocations": failed,
        "free_extents": space.runs,
        "allocations_per_second": round(allocations / seconds),
    }
