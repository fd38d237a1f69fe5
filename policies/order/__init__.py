"""Which row stands where: `Order` of one corpus, `Mixture` of several, `Forecast` of the shards needed.

`modes` has one module for each mode; what they are made of stands in the other modules.
"""

from policies.order.forecast import NEVER, Forecast
from policies.order.mixture import Mixture
from policies.order.modes import MODES, Window
from policies.order.order import Order
from policies.order.rowset import Keep

__all__ = ["MODES", "NEVER", "Forecast", "Keep", "Mixture", "Order", "Window"]
