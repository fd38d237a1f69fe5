"""Options of the wrappers: what a tier may ask for besides its store's own options.

Invariant: an instance is right in every value, and knows which options are the store's own.

==============================  =====================================================  ===============
option                          meaning                                                default
==============================  =====================================================  ===============
``retry_attempts``              attempts at a call, with the first; 1 for no retries   5 on object, 1
``retry_seconds``               no attempt begins later than this after the first      60
``breaker_failures``            failures in a row that stop calls; 0 for never         10 on object, 0
``breaker_seconds``             how long they must have lasted, and until a probe      15
``operation_deadline_seconds``  a call is given up after so long, even one that hangs  none
``max_bytes_per_second``        rate of this user on this node, such as ``"200MB"``    none
``max_requests_per_second``     the same for requests                                  none
==============================  =====================================================  ===============

With retries a call ends within ``retry_seconds`` and once ``operation_deadline_seconds``, besides what it
waits for a throttle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from tiering.credentials import OptionValue
from tiering.errors import ConfigError
from tiering.sizes import parse_size

_COUNTS: Final = {"retry_attempts": (1, 100), "breaker_failures": (0, 1_000_000)}
_LONGEST_SECONDS: Final = 86_400.0
_OBJECT_DEFAULTS: Final[Mapping[str, OptionValue]] = {"retry_attempts": 5, "breaker_failures": 10}
_EXAMPLES: Final = {
    "retry_attempts": "5",
    "retry_seconds": "60",
    "breaker_failures": "10",
    "breaker_seconds": "15",
    "operation_deadline_seconds": "120",
    "max_bytes_per_second": '"200MB"',
    "max_requests_per_second": "50",
}


@dataclass(frozen=True, slots=True)
class WrapperOptions:
    """Numbers of the wrappers of one tier; see the module."""

    retry_attempts: int = 1
    retry_seconds: float = 60.0
    breaker_failures: int = 0
    breaker_seconds: float = 15.0
    operation_deadline_seconds: float | None = None
    max_bytes_per_second: int | None = None
    max_requests_per_second: float | None = None

    @classmethod
    def parse(cls, options: Mapping[str, OptionValue], kind: str, where: str) -> Self:
        """The options of wrappers among `options`, with the defaults of a tier of `kind`.

        Raises:
            ConfigError: a wrong value; shows it and a right one.
        """
        given = {name: _checked(name, options[name], where) for name in _EXAMPLES if name in options}
        return cls(**{**(_OBJECT_DEFAULTS if kind == "object" else {}), **given})

    @staticmethod
    def names() -> list[str]:
        """All of them."""
        return list(_EXAMPLES)

    @staticmethod
    def strip(options: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
        """`options` without those of wrappers: the store's own."""
        return {name: value for name, value in options.items() if name not in _EXAMPLES}


def _checked(name: str, value: OptionValue, where: str) -> Any:
    if name == "max_bytes_per_second":
        return parse_size(value, f"option {name} of {where}", example=f"{name} = {_EXAMPLES[name]}")
    if name in _COUNTS:
        low, high = _COUNTS[name]
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        high_seconds = _LONGEST_SECONDS if name.endswith("_seconds") else 1e9
        if 0 < value <= high_seconds:
            return float(value)
    raise ConfigError(f"option {name} of {where} is {value!r}", hint=f"Example: {name} = {_EXAMPLES[name]}")
