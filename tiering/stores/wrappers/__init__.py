"""Wrappers add one behaviour to any store, so that no store carries flags.

Invariant: a wrapper is itself a `Store` and changes nothing but what its name says. Which of them a tier has,
and in what order, is decided in `tiering.stores.open` alone.
"""

from tiering.stores.wrappers.base import Guard, Wrapper
from tiering.stores.wrappers.breaker import Breaker, CircuitOpen
from tiering.stores.wrappers.counted import Counted
from tiering.stores.wrappers.deadline import Deadline
from tiering.stores.wrappers.read_only import ReadOnly
from tiering.stores.wrappers.retry import Retry, RetryBudget
from tiering.stores.wrappers.throttle import Throttle

__all__ = [
    "Breaker",
    "CircuitOpen",
    "Counted",
    "Deadline",
    "Guard",
    "ReadOnly",
    "Retry",
    "RetryBudget",
    "Throttle",
    "Wrapper",
]
