"""What the engine writes is its user's alone, whatever the umask."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from loaders import Loader
from tests.corpora import make_corpus
from tiering import NodeCache, open_corpus, open_tier, plan_move
from tiering.stores.block import format_volume


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_nobody_else_can_read_what_is_written(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir(mode=0o755)
    lake, disk = open_tier(place / "lake"), open_tier(place / "disk")
    corpus = make_corpus(lake, 500, 50, 2)
    plan_move(corpus, disk).run()
    image = place / "volume.img"
    format_volume(image, 8 << 20)
    volume = open_tier(f"block://{image}")
    plan_move(corpus, volume).run()
    assert list(Loader(open_corpus(disk, "c"), batch_size=10, cache=NodeCache(place / "cache", "1MiB")))
    wide = [path for path in place.rglob("*") if path.stat().st_mode & 0o077]
    volume.close()
    assert not wide
    assert len([path for path in place.rglob("*") if path.is_file()]) > 20
