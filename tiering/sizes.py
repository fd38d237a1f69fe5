"""Sizes as people write them: ``"64MiB"``, ``"2TB"``, or a number of bytes.

Invariant: what is parsed is a whole, positive number of bytes.
"""

from __future__ import annotations

import contextlib
import operator

from dask.utils import parse_bytes

from tiering.errors import ConfigError


def parse_size(value: str | float, what: str, example: str | None = None) -> int:
    """Bytes of ``"64MiB"``, ``"2TB"`` or a number; positive.

    Raises:
        ConfigError: it is not a size; names `what`, the value and a right example.
    """
    nbytes = 0
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        if isinstance(value, str):
            nbytes = parse_bytes(value) if value.strip()[:1].isdigit() else 0  # it takes "MiB" for "1MiB"
        elif not isinstance(value, bool):
            nbytes = operator.index(value)  # type: ignore[arg-type]  # an integer of any kind; no float
    if nbytes <= 0:
        right = example or f'{what} = "64MiB"'
        raise ConfigError(f"{what} = {value!r} is not a size", hint=f"Example: {right}")
    return nbytes
