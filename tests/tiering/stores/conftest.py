"""A small block volume, and a store on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tiering.stores.block import BlockStore, format_volume


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An image of 2 MiB, formatted."""
    path = tmp_path / "volume.img"
    format_volume(path, 2 << 20)
    return path


@pytest.fixture
def store(path: Path) -> Iterator[BlockStore]:
    with BlockStore("blocks", path) as store:
        yield store
