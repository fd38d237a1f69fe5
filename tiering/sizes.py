"""Sizes as people write them: ``"64MiB"``, ``"2TB"``, or a number of bytes.

Invariant: what is parsed is a whole, positive number of bytes, below `MOST_BYTES`.
"""

from __future__ import annotations

import contextlib
import operator
from typing import Final

from dask.utils import parse_bytes

from tiering.errors import ConfigError

MOST_BYTES: Final = 1 << 60
"""More is a slip of the pen, and sums of such sizes would not fit 64 bits."""


def parse_size(value: str | float, what: str, example: str | None = None) -> int:
    """Bytes of ``"64MiB"``, ``"2TB"`` or a number; positive, and below an EiB.

    Raises:
        ConfigError: it is not a size; names `what`, the value and a right example.
    """
    nbytes = 0
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        if isinstance(value, str):
            nbytes = parse_bytes(value) if value.strip()[:1].isdigit() else 0  # it takes "MiB" for "1MiB"
        elif not isinstance(value, bool):
            nbytes = operator.index(value)  # type: ignore[arg-type]  # an integer of any kind; no float
    if not 0 < nbytes < MOST_BYTES:
        right = example or f'{what} = "64MiB"'
        wrong = "is not below 1 EiB" if nbytes > 0 else "is not a size"
        raise ConfigError(f"{what} = {value!r} {wrong}", hint=f"Example: {right}")
    return nbytes
