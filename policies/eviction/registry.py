"""The eviction algorithms by name."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from policies.eviction.base import Eviction, Item
from policies.eviction.fifo import Fifo
from policies.eviction.lru import Lru
from policies.eviction.pin import Pin

__all__ = ["NAMES", "make"]

_ALGORITHMS: Mapping[str, type[Eviction[Any]]] = MappingProxyType({c.name: c for c in (Fifo, Lru, Pin)})
NAMES = tuple(_ALGORITHMS)


def make(name: str, capacity_bytes: int) -> Eviction[Item]:
    """Return an empty cache policy of this name for so many bytes.

    Raises ValueError for a name not in `NAMES` or a capacity below 0.
    """
    if name not in _ALGORITHMS:
        raise ValueError(f"policy must be one of {', '.join(NAMES)}, not {name!r}; for example policy='pin'")
    return _ALGORITHMS[name](capacity_bytes)
