"""Bytes to write, and a way to read them back, for the conformance suite."""

from __future__ import annotations

from tiering.stores.base import Store


def pattern(nbytes: int, seed: int = 1) -> bytes:
    """`nbytes` bytes whose period, a prime, fits no page, piece or part."""
    return (bytes((seed * 37 + i * 11) % 251 for i in range(251)) * (nbytes // 251 + 1))[:nbytes]


def read_range(store: Store, key: str, offset: int, nbytes: int) -> bytes:
    buffer = bytearray(nbytes)
    store.read_into(key, offset, memoryview(buffer))
    return bytes(buffer)
