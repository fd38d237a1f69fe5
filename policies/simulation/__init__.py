"""Replay an order or a trace with time: what a tier, a cache and a lookahead cost before a byte is moved."""

from policies.simulation.engine import simulate_order, simulate_trace
from policies.simulation.epochs import simulate
from policies.simulation.models import POLICIES, CacheModel, TierModel
from policies.simulation.outcome import Outcome
from policies.simulation.pareto import front, pareto

__all__ = [
    "POLICIES",
    "CacheModel",
    "Outcome",
    "TierModel",
    "front",
    "pareto",
    "simulate",
    "simulate_order",
    "simulate_trace",
]
