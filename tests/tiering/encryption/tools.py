"""Keys, and stores and tiers that encrypt with them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tests.tiering.corpora import Killed
from tiering.encryption.keyring import Keyring
from tiering.stores.base import Store
from tiering.stores.encrypted import Encrypted


def key_bytes(number: int) -> bytes:
    """A key that looks random, always the same for a number."""
    return hashlib.sha256(b"test key %d" % number).digest()


def key_file(folder: Path, number: int = 1) -> str:
    """The reference of a private file with that key."""
    path = folder / f"key-{number}"
    path.touch(mode=0o600)
    path.write_bytes(key_bytes(number))
    return f"file:{path}"


def encrypted(inner: Store, folder: Path, *numbers: int) -> Encrypted:
    """`inner` encrypted under the key of the first number; the second is the previous one."""
    return Encrypted(inner, Keyring("tier 'lake'", *(key_file(folder, number) for number in numbers or (1,))))


class Stops(Killed):
    """As `Killed`, and lists nothing more either."""

    def list(self, prefix: str = "") -> Any:
        self._look()
        return super().list(prefix)
