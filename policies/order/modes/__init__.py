"""One module per mode of the sample order, and the table that names them."""

from collections.abc import Mapping
from types import MappingProxyType

from policies.order.modes.base import Layout, Mode, Window, Windows
from policies.order.modes.full import Full
from policies.order.modes.stored import Stored
from policies.order.modes.window import Windowed

__all__ = ["MODES", "Layout", "Mode", "Window", "Windows"]

MODES: Mapping[str, type[Mode]] = MappingProxyType({"full": Full, "none": Stored, "window": Windowed})
