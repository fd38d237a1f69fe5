"""The eviction algorithms by name."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from policies.eviction.arc import Arc
from policies.eviction.base import Algorithm, Eviction, Item
from policies.eviction.belady import Belady
from policies.eviction.belady_size import BeladySize
from policies.eviction.clock import Clock
from policies.eviction.fifo import Fifo
from policies.eviction.foretold import Foretold
from policies.eviction.gdsf import Gdsf
from policies.eviction.lfu import Lfu
from policies.eviction.lirs import Lirs
from policies.eviction.lru import Lru
from policies.eviction.pin import Pin
from policies.eviction.pin_smallest import PinSmallest
from policies.eviction.s3fifo import S3Fifo
from policies.eviction.sieve import Sieve
from policies.eviction.wtinylfu import WTinyLfu

__all__ = ["NAMES", "ONLINE", "make"]

_FORETOLD: Mapping[str, type[Foretold[Any]]] = MappingProxyType(
    {algorithm.name: algorithm for algorithm in (Belady, BeladySize)}
)
_ONLINE: Mapping[str, type[Algorithm[Any]]] = MappingProxyType(
    {
        algorithm.name: algorithm
        for algorithm in (
            Fifo, Lru, Clock, Lfu, Sieve, S3Fifo, Arc, Lirs, WTinyLfu, Gdsf, Pin, PinSmallest
        )
    }
)  # fmt: skip

ONLINE = tuple(_ONLINE)
"""Those that need not know the future."""
NAMES = (*ONLINE, *_FORETOLD)


def make(name: str, capacity_bytes: int, future: Sequence[Item] | None = None) -> Eviction[Item]:
    """Return an empty cache policy of this name for so many bytes.

    future: every request to come, for ``belady`` and ``belady-size``, which need it; the others do not look
    at it. Raises ValueError for a name not in `NAMES`, a capacity below 0, or a future that is needed and
    missing.
    """
    if name in _FORETOLD:
        if future is None:
            raise ValueError(f"policy {name!r} must know the future; use one of {', '.join(ONLINE)}")
        return _FORETOLD[name](capacity_bytes, future)
    if name not in _ONLINE:
        raise ValueError(f"policy must be one of {', '.join(NAMES)}, not {name!r}; for example policy='pin'")
    return _ONLINE[name](capacity_bytes)
