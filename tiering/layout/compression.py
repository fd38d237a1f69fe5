"""Compression of blocks: zstd, bounded.

Invariant: `decompress` writes exactly as many bytes as its caller expects, into memory the caller made; a
frame that states another size is refused before anything is decompressed, so no frame is a bomb.
"""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np
from numcodecs import zstd

from tiering.digest import Buffer
from tiering.errors import Corrupt, UsageError

_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_CODEC: Final = re.compile(r"zstd(?::([1-9]|1[0-9]|2[0-2]))?")


def zstd_level(codec: str) -> int:
    """The level of a codec written "zstd" (1) or "zstd:LEVEL" (1 to 22), else `UsageError`."""
    match = _CODEC.fullmatch(codec) if isinstance(codec, str) else None
    if match is None:
        raise UsageError(f"codec {codec!r} is not known", hint="Use None or 'zstd:3' (levels 1 to 22)")
    return int(match[1] or 1)


def compress(data: Buffer, level: int) -> bytes:
    """One zstd frame that states its content size."""
    frame: bytes = zstd.compress(data, level)
    return frame


def decompress(frame: memoryview, out: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """Decompress `frame` into `out`, shape [bytes], at least 1, contiguous.

    Raises:
        Corrupt: it is no zstd frame, or does not hold exactly ``out.nbytes`` bytes.
    """
    stated = _content_bytes(frame)
    if stated != out.nbytes:
        raise Corrupt(f"compressed block states {stated} bytes of content, not {out.nbytes}")
    try:
        zstd.decompress(frame, out)
    except (RuntimeError, ValueError) as error:
        raise Corrupt(f"compressed block cannot be read: {error}") from error


def _content_bytes(frame: memoryview) -> int | None:
    """The content size a zstd frame states; None where it states none (RFC 8878, section 3.1.1.1)."""
    if len(frame) < 5 or bytes(frame[:4]) != _MAGIC:
        return None
    descriptor = frame[4]
    single_segment = descriptor >> 5 & 1
    size_flag = descriptor >> 6
    field_bytes = 1 << size_flag if size_flag else single_segment
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    if field_bytes == 0 or start + field_bytes > len(frame):
        return None
    value = int.from_bytes(frame[start : start + field_bytes], "little")
    return value + 256 if field_bytes == 2 else value
