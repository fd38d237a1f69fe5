"""How often a block is verified: once for each unchanged local file, or whenever it is read."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders import Loader
from tests.corpora import make_corpus, memory_corpus, seen
from tests.tiering.reader_tools import BLOCK_ROWS, alone, check_block, flip, shard_files, stage
from tiering import Corpus, NodeCache, ingest, open_tier
from tiering import reader as reader_module
from tiering.errors import Corrupt, UsageError
from tiering.layout import zarr as zarr_module
from tiering.reader import BlockReader
from tiering.stores import file_kept
from tiering.stores.block import format_volume

ROWS = range(BLOCK_ROWS)


class Checks:
    """Counts the blocks that are verified."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._seen = 0
        true = reader_module.check_block

        def count(*arguments: Any) -> memoryview:
            self._seen += 1
            return true(*arguments)

        for module in (reader_module, zarr_module):  # raw blocks; those that are decoded
            monkeypatch.setattr(module, "check_block", count)

    def take(self) -> int:
        seen, self._seen = self._seen, 0
        return seen


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Checks]:
    monkeypatch.setattr(file_kept, "_SETTLED_NS", 0)
    return Checks(monkeypatch)


def test_block_of_an_unchanged_file_is_verified_once(tmp_path: Path, checks: Checks) -> None:
    reader = BlockReader(alone(stage(tmp_path, "zarr")))
    columns = len(reader.columns)
    for expected in (columns, 0, 0):
        reader.new_epoch()
        check_block(reader, 0, 0, ROWS)
        assert checks.take() == expected
    check_block(reader, 0, 1, range(BLOCK_ROWS, 2 * BLOCK_ROWS))
    assert checks.take() == columns


def test_block_of_a_changed_file_is_verified_again(tmp_path: Path, checks: Checks) -> None:
    corpus = alone(stage(tmp_path, "zarr"))
    reader = BlockReader(corpus)
    check_block(reader, 0, 0, ROWS)
    checks.take()
    changed = shard_files(corpus)[0]
    os.utime(changed, ns=(1, 1))
    check_block(reader, 0, 0, ROWS)
    assert checks.take() == 1
    flip(changed, 3)
    os.utime(changed, ns=(2, 2))
    with pytest.raises(Corrupt, match="no good copy"):
        check_block(reader, 0, 0, ROWS)


def test_damage_after_the_first_epoch_is_healed(tmp_path: Path, checks: Checks) -> None:
    corpus = stage(tmp_path, "zarr")
    reader = BlockReader(corpus)
    check_block(reader, 0, 0, ROWS)
    for file in shard_files(corpus):
        flip(file, 5)
        os.utime(file, ns=(1, 1))
    check_block(reader, 0, 0, ROWS)
    assert len(reader.counts.damaged) == len(reader.columns)


def test_file_changed_a_moment_ago_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = Checks(monkeypatch)
    monkeypatch.setattr(file_kept, "_SETTLED_NS", 10**18)
    reader = BlockReader(alone(stage(tmp_path, "zarr")))
    for _ in range(2):
        check_block(reader, 0, 0, ROWS)
        assert checks.take() == len(reader.columns)


def test_verify_always_means_every_read(tmp_path: Path, checks: Checks) -> None:
    reader = BlockReader(alone(stage(tmp_path, "zarr")), verify="always")
    for _ in range(2):
        check_block(reader, 0, 0, ROWS)
        assert checks.take() == len(reader.columns)


@pytest.mark.parametrize("place", ["memory", "volume"])
def test_blocks_that_are_compressed_or_on_a_volume_are_always_verified(
    tmp_path: Path, checks: Checks, place: str
) -> None:
    with ExitStack() as stack:
        if place == "memory":
            corpus = stack.enter_context(memory_corpus(64, BLOCK_ROWS, 4, codec="zstd:1"))
        else:
            format_volume(tmp_path / "volume", 8 << 20)
            tier = open_tier(f"block://{tmp_path}/volume")
            stack.callback(tier.close)
            corpus = make_corpus(tier, 64, BLOCK_ROWS, 4)
        reader = BlockReader(corpus)
        for _ in range(2):
            check_block(reader, 0, 0, ROWS)
            assert checks.take() == len(reader.columns)


@pytest.mark.parametrize("codec", [None, "zstd:1"])
def test_shard_of_another_corpus_is_not_taken_for_its_own_checksums(
    tmp_path: Path, codec: str | None
) -> None:
    tier, random = open_tier(tmp_path), np.random.default_rng(1)
    mine, other = (
        ingest(
            {"x": random.integers(0, 256, (64, 100), np.uint8)},
            tier,
            name,
            block_rows=16,
            codec=codec,
            progress=False,
        )
        for name in ("mine", "other")
    )
    key = mine.manifest["key"][0].as_py()
    assert mine.manifest["nbytes"] == other.manifest["nbytes"]  # zstd leaves noise as it is
    shutil.copyfile(tmp_path / "other" / key, tmp_path / "mine" / key)
    reader = BlockReader(mine)
    with pytest.raises(Corrupt, match="no good copy"):
        reader.read(0, 0, {"x": memoryview(bytearray(100 * 17))})


@pytest.mark.parametrize("scheme", ["memory", "shm"])
def test_block_in_memory_is_verified_once_and_anew_in_other_bytes(checks: Checks, scheme: str) -> None:
    tier = open_tier(f"{scheme}://{secrets.token_hex(4)}")
    try:
        corpus = make_corpus(tier, 64, BLOCK_ROWS, 4)
        reader, loader = BlockReader(corpus), Loader(corpus, 16)
        for expected in (len(reader.columns), 0):
            check_block(reader, 0, 0, ROWS)
            assert checks.take() == expected
        for first in (True, False):
            seen(loader)
            assert bool(checks.take()) == first
        key = reader.shards["row"][0].key
        tier.store.write(key, [bytes(tier.store.stat(key).nbytes)])
        reader.new_epoch()
        with pytest.raises(Corrupt, match="no good copy"):
            check_block(reader, 0, 0, ROWS)
    finally:
        for info in tier.store.list():
            tier.store.delete(info.key)
        tier.close()


def test_block_in_the_node_cache_is_verified_once(tmp_path: Path, checks: Checks) -> None:
    with memory_corpus(64, BLOCK_ROWS, 4) as corpus:
        cache = NodeCache(tmp_path / "cache", "1MB")
        reader = BlockReader(corpus, cache=cache)
        for expected in (len(reader.columns), 0):
            check_block(reader, 0, 0, ROWS)
            assert checks.take() == expected
        for path in (tmp_path / "cache/objects").rglob("??*"):
            if path.is_file():
                flip(path, 9)
                os.utime(path, ns=(1, 1))
        check_block(reader, 0, 0, ROWS)
        assert {tier for tier, _ in reader.counts.damaged} == {"node cache"}
        cache.close()


def test_unknown_verify_is_an_error(tmp_path: Path) -> None:
    corpus: Corpus = alone(stage(tmp_path, "zarr"))
    with pytest.raises(UsageError, match="verify = 'never' is none of first, always"):
        BlockReader(corpus, verify="never")
