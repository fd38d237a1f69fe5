"""Key management services: where a key wraps and unwraps without ever being seen here.

Invariant: a provider is given what it is to wrap and the name of its key, and is kept nowhere but in its
registry. A package brings one by the entry point group ``tiering.kms``; ``kms:NAME/KEY-ID`` refers to it.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Final, Protocol

from tiering.errors import ConfigError

GROUP: Final = "tiering.kms"


class Kms(Protocol):
    """A key management service. Both calls may raise; a `TieringError` passes as it is."""

    def wrap(self, key_id: str, plaintext: bytes, aad: bytes) -> bytes:
        """Encrypt `plaintext` (32 bytes) under the key `key_id`, bound to `aad`."""

    def unwrap(self, key_id: str, ciphertext: bytes, aad: bytes) -> bytes:
        """The opposite; raises when the ciphertext or `aad` is another."""


_registered: Final[dict[str, Kms]] = {}


def register_kms(name: str, provider: Kms) -> None:
    """Let ``kms:NAME/...`` mean `provider` in this process, as a notebook or a test wants it.

    Worker processes do not see it: there the provider comes by the entry point group ``tiering.kms``.
    """
    _registered[name] = provider


def find_kms(name: str, where: str) -> Kms:
    """The provider called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in _registered:
        found = [entry for entry in entry_points(group=GROUP) if entry.name == name]
        if not found:
            raise ConfigError(
                f"{where} refers to the key management service {name!r}, which is not installed",
                hint=f"Install the package whose entry point {name!r} is in the group {GROUP!r}",
            )
        _registered[name] = found[0].load()
    return _registered[name]
