"""What a cache of bounded size keeps: one algorithm per module behind the interface of `base`."""

from policies.eviction.base import Eviction
from policies.eviction.registry import NAMES, ONLINE, make

__all__ = ["NAMES", "ONLINE", "Eviction", "make"]
