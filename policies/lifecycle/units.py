"""Durations and sizes as people write them in rules: ``"30d"``, ``"12h"``, ``"64MiB"``.

Rules are checked where they are decided upon, and nothing here may import Dask, whose parser `tiering` uses
for sizes; so this one takes the same units, and any number of bytes.
"""

import re
from typing import Final

__all__ = ["duration_seconds", "duration_text", "size_bytes", "size_text"]

_SECONDS: Final = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}
_BYTES: Final[dict[str, int]] = {
    "": 1,
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgtp", 1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgtp", 1)},
}
_NUMBER: Final = re.compile(r"(\d{1,18}(?:\.\d{1,9})?) ?([a-zA-Z]*)")


def duration_seconds(name: str, value: object) -> float:
    """Seconds of ``"2w"``, ``"30d"``, ``"12h"``, ``"90m"`` or ``"45s"``; 0 and more.

    Raises ValueError for anything else, bare numbers too: nobody could tell their unit.
    """
    found = _NUMBER.fullmatch(value) if isinstance(value, str) else None
    if found is None or found[2].lower() not in _SECONDS:
        raise ValueError(f"{name} = {value!r} is not a duration; e.g. '30d' or '12h'")
    return float(found[1]) * _SECONDS[found[2].lower()]


def size_bytes(name: str, value: object) -> int:
    """Bytes of ``"64MiB"``, ``"2TB"`` or a whole number of bytes; 0 and more.

    Raises ValueError for anything else.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 60:
        return value
    found = _NUMBER.fullmatch(value) if isinstance(value, str) else None
    if found is None or found[2].lower() not in _BYTES:
        raise ValueError(f"{name} = {value!r} is not a size; e.g. '64MiB'")
    return int(float(found[1]) * _BYTES[found[2].lower()])


def duration_text(seconds: float) -> str:
    """The duration in its largest unit that is whole, or that makes it at least 1."""
    for unit, length in _SECONDS.items():
        if unit != "w" and seconds >= length:
            return f"{seconds / length:.4g}{unit}"
    return f"{seconds:.4g}s"


def size_text(nbytes: float) -> str:
    """The size in its largest binary unit."""
    for power, prefix in reversed(list(enumerate("KMGTP", 1))):
        if nbytes >= 1024**power:
            return f"{nbytes / 1024**power:.4g}{prefix}iB"
    return f"{nbytes:.4g} bytes"
