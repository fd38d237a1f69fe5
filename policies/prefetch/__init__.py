"""What to fetch before it is asked for, where the order of requests is known."""

from policies.prefetch.base import Prefetcher
from policies.prefetch.fetch import Fetch, PrefetchStats
from policies.prefetch.integrated import Integrated
from policies.prefetch.lookahead import Lookahead, bandwidth_delay_bytes
from policies.prefetch.ring import Ring

__all__ = [
    "Fetch",
    "Integrated",
    "Lookahead",
    "PrefetchStats",
    "Prefetcher",
    "Ring",
    "bandwidth_delay_bytes",
]
