"""Copies with flipped bits, or cut, or gone: blocks are right from another tier, or an error."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders import Loader
from tests.corpora import promised
from tests.tiering.reader_tools import (
    BLOCK_ROWS,
    FORMATS,
    ROWS,
    alone,
    check_block,
    cut_in_half,
    flip,
    read_all,
    read_only,
    remove,
    shard_files,
    stage,
    zero,
)
from tiering import Corpus, Tier, ingest, open_tier, plan_move, release, verify
from tiering.errors import CapacityExceeded, Corrupt
from tiering.layout.zarr import index_bytes
from tiering.reader import BlockReader
from tiering.stores.file import FileStore


@pytest.fixture(params=FORMATS)
def staged(tmp_path: Path, request: pytest.FixtureRequest) -> Corpus:
    """A corpus on a disk, which knows of the lake it came from."""
    return stage(tmp_path, request.param)


# Damage that another tier heals.


@pytest.mark.parametrize("kind", FORMATS)
def test_reader_finds_every_flipped_bit_and_heals_it(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    lake, disk = open_tier(tmp_path / "lake", "lake"), open_tier(tmp_path / "disk", "disk")
    tokens = np.random.default_rng(1).integers(0, 1 << 16, (ROWS, 126), np.uint16)  # blocks of almost a page
    made = ingest(
        {"tokens": tokens}, lake, "c", shard_size="16KiB", block_rows=16, progress=False, **FORMATS[kind]
    )
    plan_move(made, disk).run(progress=False)
    staged = made.at(disk)
    files = shard_files(staged)
    good = [file.read_bytes() for file in files]
    wanted = np.concatenate([batch["tokens"] for batch in Loader(staged, 40, drop_last=False)])
    assert sorted(wanted.tolist()) == sorted(tokens.tolist())
    choice, found = random.Random(kind), 0
    for _ in range(60):
        number = choice.randrange(len(files))
        caplog.clear()
        flip(files[number], choice.randrange(8 * len(good[number])))
        loader = Loader(staged, 40, drop_last=False)
        assert np.array_equal(np.concatenate([batch["tokens"] for batch in loader]), wanted)
        if loader.stats.damaged:
            found += 1
            key = staged.key(staged.manifest["key"].to_pylist()[number])
            assert loader.stats.damaged == [("disk", key)]
            assert f"bad copy of shard {key} on tier disk" in caplog.text
            assert files[number].read_bytes() == good[number]
        else:  # between blocks, where no byte is ever read
            files[number].write_bytes(good[number])
    assert found > 40
    assert verify(staged, progress=False).ok
    assert verify(staged, lake, progress=False).ok


def test_reader_finds_each_bit_of_an_index_and_a_block(tmp_path: Path) -> None:
    staged = stage(tmp_path, "zarr")
    file = shard_files(staged)[0]
    good = file.read_bytes()
    block, index = range(8 * (BLOCK_ROWS * 8 + 4)), range(8 * (len(good) - index_bytes(4)), 8 * len(good))
    for bit in (*block[::29], *index[::13]):
        flip(file, bit)
        reader = BlockReader(staged)
        check_block(reader, 0, 0, range(BLOCK_ROWS))
        assert len(reader.counts.damaged) == 1
        assert file.read_bytes() == good


def spoil(corpus: Corpus, number: int = 0) -> None:
    """Flip a bit in the first block of a shard."""
    start = (corpus.manifest["block_offsets"].to_pylist()[number] or [0])[0]
    flip(shard_files(corpus)[number], 8 * start + 5)


def cut_to_nothing(file: Path) -> None:
    file.write_bytes(b"")


DAMAGES = [remove, cut_to_nothing, cut_in_half, zero]


@pytest.mark.parametrize("damage", DAMAGES)
def test_reader_heals_files_that_are_missing_or_cut(staged: Corpus, damage: Any) -> None:
    files = shard_files(staged)
    for file in files[::2]:
        damage(file)
    reader = read_all(staged)
    damaged = {key for _tier, key in reader.counts.damaged}
    assert damaged == {staged.key(key) for key in staged.manifest["key"].to_pylist()[::2]}
    assert len(reader.counts.damaged) == len(damaged)
    assert verify(staged, progress=False).ok


@pytest.mark.parametrize("damage", DAMAGES)
def test_reader_with_many_threads_heals_a_shard_once(staged: Corpus, damage: Any) -> None:
    damage(shard_files(staged)[0])
    reader = BlockReader(staged)
    together = threading.Barrier(4)

    def check(block: int) -> None:
        together.wait(60)
        check_block(reader, 0, block, range(block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(check, range(4)))
    assert len(reader.counts.damaged) == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_reader_without_another_tier_says_which_copy_is_bad_and_what_to_do(
    staged: Corpus, damage: Any
) -> None:
    damage(shard_files(staged)[0])
    with pytest.raises(Corrupt) as caught:
        read_all(alone(staged))
    error = caught.value
    assert (error.tier, error.key) == ("disk", staged.key(staged.manifest["key"].to_pylist()[0]))
    assert "others=" in (error.hint or "")
    assert "no other tier" in error.message


def test_reader_whose_other_tier_is_bad_too_tells_of_both(staged: Corpus) -> None:
    for tier in (staged.tier, *staged.others):
        spoil(staged.at(tier))
    with pytest.raises(Corrupt) as caught:
        read_all(staged)
    assert caught.value.tier in ("disk", "lake")
    assert caught.value.key == staged.key(staged.manifest["key"].to_pylist()[0])


def test_reader_takes_the_third_tier_where_the_second_is_bad_too(staged: Corpus, tmp_path: Path) -> None:
    archive = open_tier(tmp_path / "archive", "archive")
    plan_move(alone(staged), archive).run(progress=False)
    for tier in (staged.tier, *staged.others):
        spoil(staged.at(tier))
    reader = read_all(staged.with_copy(archive))
    assert reader.counts.damaged == [("disk", staged.key(staged.manifest["key"].to_pylist()[0]))]
    assert verify(staged, progress=False).ok


# Tiers that cannot be healed.


def snapshot(tier: Tier) -> dict[str, bytes]:
    return {info.key: bytes(tier.store.read(info.key)) for info in tier.store.list()}


def test_reader_of_a_read_only_tier_reads_bad_shards_from_the_other_one(staged: Corpus) -> None:
    files = shard_files(staged)
    spoil(staged)
    files[1].unlink()
    before = snapshot(staged.tier)
    reader = read_all(read_only(staged))
    keys = [staged.key(key) for key in staged.manifest["key"].to_pylist()]
    assert sorted(reader.counts.damaged) == [("disk", keys[0]), ("disk", keys[1])]
    reader.new_epoch()
    reader.counts.reset()
    check_block(reader, 0, 0, range(BLOCK_ROWS))
    assert reader.counts.damaged == []
    assert snapshot(staged.tier) == before


def test_reader_of_a_read_only_tier_tries_all_others(staged: Corpus, tmp_path: Path) -> None:
    archive = open_tier(tmp_path / "archive", "archive")
    plan_move(alone(staged), archive).run(progress=False)
    for tier in (staged.tier, *staged.others):
        spoil(staged.at(tier))
    reader = read_all(read_only(staged).with_copy(archive))
    key = staged.key(staged.manifest["key"].to_pylist()[0])
    assert reader.counts.damaged == [("disk", key), ("lake", key)]


def test_reader_of_a_tier_that_was_released_meanwhile_goes_on_without_writing_to_it(staged: Corpus) -> None:
    loader = Loader(staged, 40, lanes=2, window_blocks=1)
    batches = iter(loader)
    rows = [next(batches)["row"].tolist()]
    release(staged, staged.tier, min_copies=1)
    assert not any(file.exists() for file in shard_files(staged))
    before = snapshot(staged.tier)
    assert rows + [batch["row"].tolist() for batch in batches] == promised(loader.order, 40)
    assert loader.stats.damaged
    assert snapshot(staged.tier) == before


def test_reader_whose_tier_has_no_room_to_be_healed_reads_the_other_one(
    staged: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(staged)

    def full(*_: Any, **__: Any) -> None:
        raise CapacityExceeded("no room", tier="disk")

    monkeypatch.setattr(FileStore, "write", full)
    reader = read_all(staged)
    assert len(reader.counts.damaged) == 1
