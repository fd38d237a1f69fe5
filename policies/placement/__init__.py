"""Which shard or corpus should lie on which tier, for the least money; told with reasons and a proven gap."""

from policies.placement.model import Item, Run, TierSpec
from policies.placement.placement import Cost, Placed, Placement
from policies.placement.shortage import Infeasible, Shortage
from policies.placement.solver import place

__all__ = ["Cost", "Infeasible", "Item", "Placed", "Placement", "Run", "Shortage", "TierSpec", "place"]
