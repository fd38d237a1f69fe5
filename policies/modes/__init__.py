"""One module per mode of the sample order, and the table that names them."""

from collections.abc import Mapping
from types import MappingProxyType

from policies.modes.base import Layout, Mode, Window, Windows
from policies.modes.full import Full
from policies.modes.stored import Stored
from policies.modes.window import Windowed

__all__ = ["MODES", "Layout", "Mode", "Window", "Windows"]

MODES: Mapping[str, type[Mode]] = MappingProxyType({"full": Full, "none": Stored, "window": Windowed})
