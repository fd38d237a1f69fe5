"""Decides: sample order, eviction, which policy suits which reader, simulation of them all. Pure, no I/O."""

from policies.order import Mixture, Order
from policies.regime import choose
from policies.replay import replay
from policies.simulation import simulate

__all__ = ["Mixture", "Order", "choose", "replay", "simulate"]
