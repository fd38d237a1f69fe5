"""Digests and checksums: what proves that bytes are the same from ingest to the batch.

BLAKE3 (256 bit) names a shard and a manifest; CRC32C (Castagnoli) guards one block.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

import google_crc32c
import numpy as np
from blake3 import blake3

from tiering.errors import FormatError

Buffer = bytes | bytearray | memoryview
"""Contiguous bytes. A memoryview must have format ``B``."""

DIGEST_CHARS: Final = 64
CRC_BYTES: Final = 4


class Hasher:
    """Streaming BLAKE3.

    Args:
        threads: of how many cores large updates make use, at most.
    """

    def __init__(self, threads: int = 1) -> None:
        self._state = _state(min(threads, len(os.sched_getaffinity(0))))

    def update(self, data: Buffer) -> None:
        """Add bytes; the GIL is released for large ones."""
        self._state.update(data)

    def hexdigest(self) -> str:
        """64 lower-case hexadecimal digits."""
        text: str = self._state.hexdigest()
        return text


def _state(threads: int) -> blake3:
    try:
        return blake3(max_threads=threads)
    except BaseException as error:
        # The library panics where it can start no thread, and a panic is no Exception.
        if threads == 1 or type(error).__name__ != "PanicException":
            raise
    return blake3()


def digest(buffers: Buffer | Iterable[Buffer]) -> str:
    """BLAKE3 of the concatenation of `buffers`, as 64 hexadecimal digits."""
    hasher = Hasher()
    for buffer in (buffers,) if isinstance(buffers, bytes | bytearray | memoryview) else buffers:
        hasher.update(buffer)
    return hasher.hexdigest()


def crc32c(data: Buffer, value: int = 0) -> int:
    """CRC32C of `data`, continuing from `value`."""
    crc: int = google_crc32c.extend(value, np.frombuffer(data, np.uint8))  # it takes no memoryview
    return crc


def check_digest_form(text: object, what: str) -> str:
    """Return `text` when it looks like a digest, else raise `FormatError` that names `what`."""
    if isinstance(text, str) and len(text) == DIGEST_CHARS and set(text) <= set("0123456789abcdef"):
        return text
    raise FormatError(f"{what} is not a BLAKE3 digest: {str(text)[:80]!r}")
