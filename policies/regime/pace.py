"""How fast bytes come and how fast they are needed, and the lookahead to begin with that follows."""

import math
from dataclasses import dataclass

from policies.checks import number, whole

__all__ = ["Pace", "lookahead_shards"]


@dataclass(frozen=True, slots=True)
class Pace:
    """What a tier gives and a training takes.

    latency_seconds: from asking to the first byte. fetch_bytes_per_second: of all fetches together.
    need_bytes_per_second: what the readers use when they never wait.
    Raises ValueError for a latency below 0 and for rates that are not above 0 and finite.
    """

    latency_seconds: float
    fetch_bytes_per_second: float
    need_bytes_per_second: float

    def __post_init__(self) -> None:
        number("latency_seconds", self.latency_seconds, example=0.05)
        number("fetch_bytes_per_second", self.fetch_bytes_per_second, above=0, example=2e9)
        number("need_bytes_per_second", self.need_bytes_per_second, above=0, example=4e8)


def lookahead_shards(pace: Pace, shard_bytes: int) -> int:
    """Return how many shards before their need fetches should begin: twice the bandwidth-delay product.

    A shard is there latency_seconds + shard_bytes / fetch_bytes_per_second after it was asked for. Meanwhile
    the readers use need_bytes_per_second, or what can be fetched at all. Twice that, for once leaves no slack
    for a fetch that takes longer; at least 1. Raises ValueError for shard_bytes below 1.
    """
    whole("shard_bytes", shard_bytes, least=1, example=67_108_864)
    delay_seconds = pace.latency_seconds + shard_bytes / pace.fetch_bytes_per_second
    used_bytes = delay_seconds * min(pace.fetch_bytes_per_second, pace.need_bytes_per_second)
    return max(1, math.ceil(2 * used_bytes / shard_bytes))
