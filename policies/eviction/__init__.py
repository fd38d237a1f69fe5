"""What a cache of bounded size keeps: one algorithm per module behind the interface of `base`.

`Expiring` and `Pinning` go around any of them, and around each other; `Merged` is for several readers.
"""

from policies.eviction.base import Eviction
from policies.eviction.expiring import Expiring
from policies.eviction.merged import Merged
from policies.eviction.pinning import Pinning
from policies.eviction.registry import NAMES, ONLINE, make

__all__ = ["NAMES", "ONLINE", "Eviction", "Expiring", "Merged", "Pinning", "make"]
