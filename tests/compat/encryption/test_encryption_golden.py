"""Ciphertexts of earlier versions stay readable, and this version writes what it says it writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.compat.encryption.make import HERE, OBJECTS, pattern, write
from tiering.encryption.keyring import Keyring
from tiering.stores.encrypted import Encrypted
from tiering.stores.file import FileStore


@pytest.mark.parametrize("key", OBJECTS)
def test_golden_ciphertext_is_read(tmp_path: Path, key: str) -> None:
    shutil.copy(HERE / "v1/key", tmp_path / "key")
    (tmp_path / "key").chmod(0o600)  # a checkout keeps no such mode
    store = Encrypted(FileStore("golden", HERE / "v1/tier"), Keyring("golden", f"file:{tmp_path / 'key'}"))
    assert store.read(key) == pattern(key)
    assert store.stat(key).nbytes == OBJECTS[key]


def test_this_version_writes_the_golden_ciphertexts(tmp_path: Path) -> None:
    write(tmp_path / "now")
    for path in (HERE / "v1").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "now" / path.relative_to(HERE / "v1")).read_bytes()
