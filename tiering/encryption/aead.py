"""AES-256-GCM, from the package `cryptography`, which only those who encrypt need.

Invariant: nothing else of the engine imports `cryptography`, and the objects made here show and pickle no
key.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from tiering.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
WRAPPED_KEY_BYTES: Final = NONCE_BYTES + KEY_BYTES + TAG_BYTES


class Unauthentic(Exception):  # never leaves `tiering.encryption` and its store
    """Bytes that were not sealed under this key, nonce and associated data."""


def random_bytes(count: int) -> bytes:
    """Bytes of the system's generator for keys and nonces; golden tests put fixed ones in its place."""
    return os.urandom(count)


class Cipher:
    """AES-256-GCM under one key.

    Raises:
        ConfigError: the package `cryptography` is not installed.
    """

    __slots__ = ("_gcm",)

    def __init__(self, key: bytes) -> None:
        self._gcm: AESGCM = _aesgcm()(key)

    def seal_into(self, nonce: bytes, plain: memoryview, aad: bytes, out: memoryview) -> None:
        """Encrypt `plain` into `out`, which is `TAG_BYTES` longer."""
        self._gcm.encrypt_into(nonce, plain, aad, out)

    def open_into(self, nonce: bytes, sealed: memoryview, aad: bytes, out: memoryview) -> None:
        """The opposite; raises `Unauthentic`, after which `out` may hold anything."""
        from cryptography.exceptions import InvalidTag

        try:
            self._gcm.decrypt_into(nonce, sealed, aad, out)
        except InvalidTag:
            raise Unauthentic from None

    def wrap(self, key: bytes, aad: bytes) -> bytes:
        """A key of `KEY_BYTES`, sealed under a random nonce, which comes first."""
        nonce = random_bytes(NONCE_BYTES)
        return nonce + self._gcm.encrypt(nonce, key, aad)

    def unwrap(self, wrapped: bytes, aad: bytes) -> bytes:
        """The opposite; raises `Unauthentic`."""
        from cryptography.exceptions import InvalidTag

        if len(wrapped) != WRAPPED_KEY_BYTES:
            raise Unauthentic
        try:
            return self._gcm.decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], aad)
        except InvalidTag:
            raise Unauthentic from None

    def __reduce__(self) -> str:
        raise TypeError("a key is never pickled: each process resolves its reference")


def _aesgcm() -> type[AESGCM]:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise ConfigError(
            "encryption needs the package cryptography, which is not installed",
            hint="Run pip install 'corpus-tiering[crypto]'",
        ) from error
    return AESGCM
