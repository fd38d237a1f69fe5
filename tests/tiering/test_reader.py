"""Blocks are right or an error, whatever happened to the copies: bits, lengths, files, tiers, the cache."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from loaders import Loader
from tests.corpora import columns, make_corpus, memory_corpus, promised
from tiering import Corpus, NodeCache, Tier, ingest, open_corpus, open_tier, plan_move, release, verify
from tiering.errors import CapacityExceeded, Corrupt, Unavailable, UsageError
from tiering.layout.base import BlockSpan
from tiering.layout.zarr import index_bytes, read_index
from tiering.layout.zarr_index import encode_index
from tiering.reader import BlockReader
from tiering.stores.base import Store
from tiering.stores.file import FileStore
from tiering.stores.memory import MemoryStore

FORMATS: dict[str, dict[str, Any]] = {"zarr": {}, "zstd": {"codec": "zstd:3"}, "arrow": {"format": "arrow"}}
ROWS, BLOCK_ROWS, SHARD_BLOCKS = 600, 16, 4


@pytest.fixture(params=FORMATS)
def staged(tmp_path: Path, request: pytest.FixtureRequest) -> Corpus:
    """A corpus on a disk, which knows of the lake it came from."""
    return stage(tmp_path, request.param)


def stage(folder: Path, kind: str) -> Corpus:
    lake, disk = open_tier(folder / "lake", "lake"), open_tier(folder / "disk", "disk")
    corpus = make_corpus(lake, ROWS, BLOCK_ROWS, SHARD_BLOCKS, **FORMATS[kind])
    plan_move(corpus, disk).run(progress=False)
    return corpus.at(disk)


def alone(corpus: Corpus) -> Corpus:
    """The same copy, with no other tier known."""
    return open_corpus(corpus.tier, corpus.name)


def shard_files(corpus: Corpus) -> list[Path]:
    return [Path(corpus.tier.url, corpus.key(key)) for key in corpus.manifest["key"].to_pylist()]


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def read_all(corpus: Corpus, cache: NodeCache | None = None) -> BlockReader:
    """Read every block with all columns and compare it with its rows."""
    reader = BlockReader(corpus, cache=cache)
    starts = np.concatenate([[0], np.cumsum(corpus.shard_rows)]).tolist()
    for shard, (first, last) in enumerate(pairwise(starts)):
        for block, start in enumerate(range(first, last, BLOCK_ROWS)):
            check_block(reader, shard, block, range(start, min(start + BLOCK_ROWS, last)))
    return reader


def check_block(reader: BlockReader, shard: int, block: int, rows: range) -> None:
    slots = {c.name: memoryview(bytearray(reader.slot_rows(c) * c.row_bytes)) for c in reader.columns}
    reader.read(shard, block, slots)
    for column in reader.columns:
        found = np.frombuffer(slots[column.name], column.dtype)[
            : len(rows) * column.row_bytes // column.dtype.itemsize
        ]
        assert np.array_equal(found.reshape(len(rows), *column.shape), columns(rows)[column.name])


@pytest.fixture(scope="module", params=FORMATS)
def corpus(request: pytest.FixtureRequest) -> Iterator[Corpus]:
    with memory_corpus(ROWS, BLOCK_ROWS, SHARD_BLOCKS, **FORMATS[request.param]) as made:
        yield made


def test_reader_reads_every_block_of_every_column(corpus: Corpus) -> None:
    reader = read_all(corpus)
    assert reader.counts.damaged == []
    assert reader.counts.bytes_fetched == reader.counts.bytes_needed <= reader.stored_bytes


def test_reader_is_not_taken_in_by_another_shard_of_the_same_form(tmp_path: Path) -> None:
    corpus = alone(stage(tmp_path, "zarr"))
    first, second, *_ = shard_files(corpus)
    first.write_bytes(second.read_bytes())  # every CRC in it is right
    with pytest.raises(Corrupt, match="another block"):
        read_all(corpus)


def test_reader_reads_through_a_cache_of_any_size(corpus: Corpus, tmp_path: Path) -> None:
    for number, share in enumerate((0.1, 0.6, 2)):
        cache = NodeCache(tmp_path / str(number), int(share * corpus.nbytes))
        reader = read_all(corpus, cache)
        assert reader.counts.bytes_fetched <= reader.stored_bytes
        cache.close()
    assert reader.counts.bytes_fetched == reader.stored_bytes == corpus.nbytes
    assert len(reader.digests) == corpus.manifest.num_rows


def test_reader_reads_the_index_of_a_shard_once_for_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    with memory_corpus(64, BLOCK_ROWS, SHARD_BLOCKS) as corpus:
        reader = BlockReader(corpus, ["row"])
        together = threading.Barrier(4)

        def check(block: int) -> None:
            together.wait(60)
            check_block(reader, 0, block, range(block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(check, range(4)))
        assert reader.counts.bytes_fetched == 4 * (BLOCK_ROWS * 8 + 4) + index_bytes(4)


@pytest.mark.parametrize(
    ("names", "message"), [(["rows"], "Its columns are row, pair"), ([], "Choose among row, pair")]
)
def test_reader_of_columns_that_are_not_there_names_those_that_are(
    corpus: Corpus, names: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        BlockReader(corpus, names)


def test_reader_of_a_ragged_column_says_which(tmp_path: Path) -> None:
    table = pa.table({"words": [["a"], ["b", "c"]], "row": [0, 1]})
    corpus = ingest(table, open_tier(tmp_path), "c", progress=False)
    with pytest.raises(UsageError, match="'words'"):
        BlockReader(corpus)


def test_reader_of_a_column_with_nulls_says_which(tmp_path: Path) -> None:
    corpus = ingest(pa.table({"row": [0, None, 2]}), open_tier(tmp_path), "c", format="arrow", progress=False)
    reader = BlockReader(corpus)
    with pytest.raises(UsageError, match="'row'"):
        check_block(reader, 0, 0, range(3))


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


def remove(file: Path) -> None:
    file.unlink()


def cut_to_nothing(file: Path) -> None:
    file.write_bytes(b"")


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


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


def read_only(corpus: Corpus) -> Corpus:
    tier = open_tier(corpus.tier.url, "disk", read_only=True)
    return open_corpus(tier, corpus.name, others=corpus.others)


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


# Damage in the node cache.


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
    keys = [shards[0].key for shards in reader._shards.values()]
    sizes = sum(shards[0].nbytes for shards in reader._shards.values())
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


def test_reader_passes_on_that_a_tier_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with memory_corpus(64, BLOCK_ROWS, SHARD_BLOCKS) as corpus:
        cache = NodeCache(tmp_path, corpus.nbytes)

        def silent(*_: Any) -> None:
            raise Unavailable("no answer", tier="lake")

        with monkeypatch.context() as patch:
            patch.setattr(MemoryStore, "read_into", silent)
            patch.setattr(MemoryStore, "read", silent)
            for nodes in (None, cache):
                with pytest.raises(Unavailable, match="no answer"):
                    read_all(corpus, nodes)
        assert cache.status().used_bytes == 0
        read_all(corpus, cache)
        cache.close()


# An index that is whole but wrong.


def rewrite_index(store: Store, key: str, change: Any) -> None:
    data = bytes(store.read(key))
    tail = index_bytes(SHARD_BLOCKS)
    spans = read_index(data[-tail:], SHARD_BLOCKS)
    store.write(key, [data[:-tail], encode_index(change(spans), SHARD_BLOCKS)])


def shorten(spans: Sequence[BlockSpan]) -> list[BlockSpan]:
    return [BlockSpan(span.offset, span.nbytes - 1) for span in spans]


def drop(spans: Sequence[BlockSpan]) -> list[BlockSpan]:
    return list(spans[:-1])


@pytest.mark.parametrize("change", [shorten, drop])
def test_reader_refuses_an_index_that_has_not_the_blocks_of_the_shard(change: Any) -> None:
    with memory_corpus(64, BLOCK_ROWS, SHARD_BLOCKS) as corpus:
        key = corpus.key(corpus.manifest["key"].to_pylist()[0])
        rewrite_index(corpus.tier.store, key, change)
        with pytest.raises(Corrupt) as caught:
            read_all(corpus)
        assert caught.value.key == key


# Around the reader: where the rows of a block lie in a file.


def test_reader_tells_where_raw_blocks_lie_and_replaces_bad_ones(tmp_path: Path) -> None:
    staged = stage(tmp_path, "zarr")
    reader = BlockReader(staged)
    raw = reader.raw_block("row", 0, 1)
    assert raw is not None
    rows = np.fromfile(raw.file.path, np.int64, raw.nbytes // 8, offset=raw.offset)
    assert rows.tolist() == list(range(BLOCK_ROWS, 2 * BLOCK_ROWS))
    reader.count_raw(raw)
    assert reader.counts.bytes_needed >= raw.nbytes
    zero(raw.file.path)
    reader.replace("row", 0, Corrupt("the digest is another"))
    again = reader.raw_block("row", 0, 1)
    assert again is not None
    assert np.fromfile(again.file.path, np.int64, 16, offset=again.offset).tolist() == rows.tolist()
    assert reader.counts.damaged == [("disk", raw.shard.key)]


@pytest.mark.parametrize("kind", ["zstd", "arrow"])
def test_reader_has_no_raw_blocks_of_other_layouts(tmp_path: Path, kind: str) -> None:
    assert BlockReader(stage(tmp_path, kind)).raw_block("row", 0, 0) is None


def test_reader_tells_where_raw_blocks_lie_in_the_cache(tmp_path: Path) -> None:
    with memory_corpus(64, BLOCK_ROWS, SHARD_BLOCKS) as corpus:
        assert BlockReader(corpus).raw_block("row", 0, 0) is None
        cache = NodeCache(tmp_path, corpus.nbytes)
        raw = BlockReader(corpus, cache=cache).raw_block("row", 0, 0)
        assert raw is not None
        assert raw.cached
        assert raw.file.path.is_relative_to(tmp_path)
        cache.close()
