"""Blocks are right or an error: every column, any cache, wrong indexes, and where raw blocks lie."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.corpora import memory_corpus
from tests.tiering.reader_tools import (
    BLOCK_ROWS,
    FORMATS,
    ROWS,
    SHARD_BLOCKS,
    alone,
    check_block,
    read_all,
    shard_files,
    stage,
    zero,
)
from tiering import Corpus, NodeCache, ingest, open_tier
from tiering.errors import Corrupt, DeadlineExceeded, Unavailable, UsageError
from tiering.layout.base import BlockSpan
from tiering.layout.zarr import index_bytes, read_index
from tiering.layout.zarr_index import encode_index
from tiering.reader import BlockReader
from tiering.stores.base import Extent, Store
from tiering.stores.file import FileStore
from tiering.stores.memory import MemoryStore


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
    with pytest.raises(Corrupt, match="no good copy"):
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


def test_reader_passes_on_that_a_tier_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with memory_corpus(64, BLOCK_ROWS, SHARD_BLOCKS) as corpus:
        cache = NodeCache(tmp_path, corpus.nbytes)

        def silent(*_: Any) -> None:
            raise Unavailable("no answer", tier="lake")

        with monkeypatch.context() as patch:
            patch.setattr(MemoryStore, "_get", silent)
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


@pytest.mark.parametrize("silent", ["disk", "all"])
def test_reader_tells_where_raw_blocks_lie_on_another_tier_while_one_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    reader = BlockReader(stage(tmp_path, "zarr"))
    locate = FileStore.locate

    def answer(store: FileStore, key: str) -> Extent:
        if silent in (store.name, "all"):
            raise DeadlineExceeded("no answer", tier=store.name)
        return locate(store, key)

    with monkeypatch.context() as patch:
        patch.setattr(FileStore, "locate", answer)
        if silent == "all":
            with pytest.raises(DeadlineExceeded) as caught:
                reader.raw_block("row", 0, 1)
            assert caught.value.tier == "disk"
        else:
            raw = reader.raw_block("row", 0, 1)
            assert raw is not None
            assert raw.tier == "lake"
            rows = np.fromfile(raw.file.path, np.int64, raw.nbytes // 8, offset=raw.offset)
            assert rows.tolist() == list(range(BLOCK_ROWS, 2 * BLOCK_ROWS))
    own = reader.raw_block("row", 0, 1)
    assert own is not None
    assert own.tier == "disk"


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
