"""Which cache policy suits which readers: `choose`, and what it is told of them."""

from policies.regime.choice import Choice, choose
from policies.regime.pace import Pace, lookahead_shards
from policies.regime.readers import Reader, Requests

__all__ = ["Choice", "Pace", "Reader", "Requests", "choose", "lookahead_shards"]
