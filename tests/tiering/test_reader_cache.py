"""Damage in the node cache: it is found, blamed on the right copy, and mended."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.tiering.reader_tools import (
    BLOCK_ROWS,
    FORMATS,
    SHARD_BLOCKS,
    alone,
    check_block,
    cut_in_half,
    read_all,
    read_only,
    remove,
    shard_files,
    stage,
    zero,
)
from tiering import Corpus, NodeCache, verify
from tiering.reader import BlockReader


@pytest.fixture(params=FORMATS)
def staged(tmp_path: Path, request: pytest.FixtureRequest) -> Corpus:
    """A corpus on a disk, which knows of the lake it came from."""
    return stage(tmp_path, request.param)


def cached_files(cache: NodeCache) -> list[Path]:
    return sorted(file for file in (cache.path / "objects").rglob("*") if file.is_file())


@pytest.mark.parametrize("damage", [zero, cut_in_half, remove])
@pytest.mark.parametrize("new_epoch", [True, False])
def test_reader_finds_a_bad_copy_in_the_cache_and_fetches_a_new_one(
    staged: Corpus, tmp_path: Path, damage: Any, *, new_epoch: bool
) -> None:
    cache = NodeCache(tmp_path / "cache", 2 * staged.nbytes)
    reader = read_all(alone(staged), cache)
    assert (reader.counts.bytes_fetched, reader.counts.damaged) == (staged.nbytes, [])
    if new_epoch:  # else it is in the middle of one
        reader.new_epoch()
    for file in cached_files(cache):
        damage(file)
    reader.counts.reset()
    for block in range(SHARD_BLOCKS):
        check_block(reader, 0, block, range(block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS))
    keys = [shards[0].key for shards in reader.shards.values()]
    sizes = sum(shards[0].nbytes for shards in reader.shards.values())
    if damage is zero or (damage is cut_in_half and not new_epoch):
        assert reader.counts.damaged == [("node cache", key) for key in keys]
    if new_epoch or damage is not remove:
        assert reader.counts.bytes_fetched == sizes
    reader.new_epoch()
    read_all(alone(staged), cache)
    assert cache.status().used_bytes == staged.nbytes == sum(f.stat().st_size for f in cached_files(cache))
    assert verify(alone(staged), progress=False).ok
    cache.close()


def test_reader_does_without_a_cache_whose_disk_gives_bad_bytes_always(
    staged: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = NodeCache(tmp_path / "cache", 2 * staged.nbytes)

    def wrong(_cache: NodeCache, _name: str, _offset: int, buffer: memoryview) -> None:
        buffer[:] = bytes(buffer.nbytes)

    monkeypatch.setattr(NodeCache, "read_into", wrong)
    for good in (True, False):
        monkeypatch.setattr(NodeCache, "verify", lambda *_, good=good: good)
        reader = read_all(alone(staged), cache)
        assert {tier for tier, _key in reader.counts.damaged} <= {"node cache"}
    cache.close()


def test_reader_with_many_threads_blames_the_cache_and_not_the_tier(staged: Corpus, tmp_path: Path) -> None:
    cache = NodeCache(tmp_path / "cache", 2 * staged.nbytes)
    read_all(alone(staged), cache)
    for file in cached_files(cache):
        zero(file)
    reader = BlockReader(alone(staged), cache=cache)  # were the tier blamed, nobody could heal it
    together = threading.Barrier(4)

    def check(block: int) -> None:
        together.wait(60)
        check_block(reader, 0, block, range(block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(check, range(4)))
    assert {tier for tier, _key in reader.counts.damaged} == {"node cache"}
    cache.close()


def test_reader_with_bad_copies_in_the_cache_and_on_the_tier_heals_both(
    staged: Corpus, tmp_path: Path
) -> None:
    cache = NodeCache(tmp_path / "cache", 2 * staged.nbytes)
    read_all(staged, cache)
    for file in (*cached_files(cache), *shard_files(staged)):
        zero(file)
    reader = read_all(staged, cache)
    assert {tier for tier, _key in reader.counts.damaged} == {"node cache", "disk"}
    assert verify(staged, progress=False).ok
    cache.close()


def test_reader_fills_the_cache_from_the_other_tier_where_its_own_is_bad(
    staged: Corpus, tmp_path: Path
) -> None:
    cache = NodeCache(tmp_path / "cache", 2 * staged.nbytes)
    for file in shard_files(staged):
        zero(file)
    reader = read_all(read_only(staged), cache)
    assert {tier for tier, _key in reader.counts.damaged} == {"disk"}
    assert cache.status().shards == staged.manifest.num_rows
    cache.close()
