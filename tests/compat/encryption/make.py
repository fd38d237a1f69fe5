"""Makes the golden ciphertexts beside this file, once: ``python tests/compat/encryption/make.py``.

What lies there must be readable for ever, so this refuses to write over it. A new format version gets a new
folder; the old one stays. Keys and nonces are fixed here, and nowhere else: they come from a counter
instead of the system.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

from tiering.encryption import aead
from tiering.encryption.frames import FRAME_BYTES
from tiering.encryption.keyring import Keyring
from tiering.stores.encrypted import Encrypted
from tiering.stores.file import FileStore

HERE = Path(__file__).parent
OBJECTS = {"web/empty": 0, "web/tokens/c/0/0": 5, "web/tokens/c/1/0": FRAME_BYTES + 1, "loose": 3}


def pattern(key: str) -> bytes:
    """The plaintext of an object."""
    return (hashlib.sha256(key.encode()).digest() * (OBJECTS[key] // 32 + 1))[: OBJECTS[key]]


def counted_bytes() -> Callable[[int], bytes]:
    """A source of bytes that look random and are the same each time."""
    calls = 0

    def take(count: int) -> bytes:
        nonlocal calls
        calls += 1
        return hashlib.shake_256(b"golden %d" % calls).digest(count)

    return take


def write(folder: Path) -> None:
    """Write all golden objects below `folder`, with the key beside them."""
    folder.mkdir(parents=True)
    take = counted_bytes()
    (folder / "key").write_text(take(32).hex() + "\n")
    (folder / "key").chmod(0o600)
    real = aead.random_bytes
    aead.random_bytes = take
    try:
        store = Encrypted(FileStore("golden", folder / "tier"), Keyring("golden", f"file:{folder / 'key'}"))
        for key in OBJECTS:
            store.write(key, [pattern(key)])
    finally:
        aead.random_bytes = real


if __name__ == "__main__":
    if (HERE / "v1").exists():
        sys.exit(f"{HERE / 'v1'} is there: golden data is never written over")
    write(HERE / "v1")
