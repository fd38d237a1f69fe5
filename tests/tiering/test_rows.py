"""Random access against numpy and Arrow themselves; `tests/tiering/test_reader*.py` damage what is read."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from dask.base import tokenize
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.corpora import columns, memory_corpus, open_below
from tests.tiering.corpora import flip, shard_keys, small, small_arrow, words
from tiering import Corpus, NodeCache, Tier, ingest, open_tier
from tiering import reader as reader_module
from tiering.errors import Corrupt, OutOfRange, UsageError
from tiering.rows import RowReader

ROWS = 100  # in blocks of 8, shards of 3 blocks
ALL = columns(range(ROWS))
FORMATS: dict[str, dict[str, Any]] = {"zarr": {}, "zstd": {"codec": "zstd:1"}, "arrow": {"format": "arrow"}}


@pytest.fixture(scope="module", params=FORMATS)
def corpus(request: pytest.FixtureRequest) -> Iterator[Corpus]:
    with memory_corpus(ROWS, 8, 3, **FORMATS[request.param]) as made:
        yield made


@pytest.fixture(scope="module")
def plain() -> Iterator[Corpus]:
    with memory_corpus(ROWS, 8, 3) as made:
        yield made


@pytest.fixture(scope="module")
def ragged() -> Iterator[Corpus]:
    tier = open_tier("memory://ragged-rows")
    yield ingest(words(50), tier, "text", shard_size=512, block_rows=4)
    tier.close()


def same(found: dict[str, Any], wanted: Any) -> bool:
    """Whether these are the rows that numpy gives, to the dtype."""
    return found.keys() == ALL.keys() and all(
        found[name].dtype == ALL[name].dtype and np.array_equal(found[name], ALL[name][wanted])
        for name in ALL
    )


@pytest.mark.parametrize("row", [0, 7, 8, 24, 99, -1, -100, np.int64(31), np.uint8(31), np.array(31)])
def test_row_of_a_number_is_that_of_numpy(corpus: Corpus, row: Any) -> None:
    found = corpus[row]
    assert same(found, row)
    assert found["pair"].shape == (3, 2)
    assert found["row"].shape == ()


SLICES = [
    slice(None), slice(3, 50), slice(50, 3), slice(90, 500), slice(-9, None),
    slice(None, None, 7), slice(60, 2, -1),
]  # fmt: skip
LISTS: list[Any] = [[5], [99, 0, 5, 5, -1], np.array([8, 7, 50], np.uint16), np.arange(ROWS) % 3 == 0]


@pytest.mark.parametrize("rows", [*SLICES, *LISTS, np.zeros(ROWS, bool)])
def test_rows_are_those_of_numpy(corpus: Corpus, rows: Any) -> None:
    assert same(corpus[rows], rows)


@pytest.mark.parametrize(
    ("rows", "wanted"), [([], slice(0)), ((), slice(0)), ((1, 2), [1, 2]), ([True] * ROWS, slice(None))]
)
def test_rows_of_sequences_are_those_of_lists(plain: Corpus, rows: Any, wanted: Any) -> None:
    assert same(plain[rows], wanted)


@settings(max_examples=40)
@given(st.lists(st.integers(-ROWS, ROWS - 1), max_size=40))
def test_rows_of_any_numbers_are_those_of_numpy(plain: Corpus, rows: list[int]) -> None:
    assert same(plain[rows], np.asarray(rows, int))
    found = plain.__getitems__(rows)
    assert len(found) == len(rows)
    assert all(same(row, number) for row, number in zip(found, rows, strict=True))


@pytest.mark.parametrize("row", [100, -101, 2**70, [0, 100], [-101], np.array([2**63], np.uint64)])
def test_rows_that_are_not_there_are_an_index_error(plain: Corpus, row: Any) -> None:
    with pytest.raises(IndexError, match="has 100 rows, and no row") as caught:
        plain[row]
    assert isinstance(caught.value, OutOfRange)


@pytest.mark.parametrize(
    "rows", [True, np.True_, 1.5, [1.5], "row", None, [[1]], [[1], [1, 2]], np.zeros(99, bool), ..., [2**70]]
)
def test_rows_asked_for_by_anything_else_are_refused(plain: Corpus, rows: Any) -> None:
    with pytest.raises(UsageError, match="rows are asked for by"):
        plain[rows]


def test_corpus_is_as_long_as_its_rows_true_and_iterable(plain: Corpus, ragged: Corpus) -> None:
    assert len(plain) == plain.rows == ROWS
    assert plain
    found = list(plain)
    assert len(found) == ROWS
    assert all(same(row, number) for number, row in enumerate(found))
    assert len(ragged) == 50


def test_rows_read_each_block_once_a_call(plain: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: Counter[tuple[int, int]] = Counter()
    true = reader_module.BlockReader.read

    def read(self: Any, shard: int, block: int, slots: Any) -> None:
        reads[shard, block] += 1
        true(self, shard, block, slots)

    monkeypatch.setattr(reader_module.BlockReader, "read", read)
    plain[[0, 99, 1, 30, 7, 98, 0]]
    assert reads == {(0, 0): 1, (1, 0): 1, (4, 0): 1}
    reads.clear()
    list(plain)
    assert set(reads.values()) == {1}
    assert len(reads) == 13
    reads.clear()
    assert same(plain[[]], slice(0))
    assert not reads


def test_rows_of_chosen_columns_alone_are_read(plain: Corpus) -> None:
    reader = RowReader(plain, ["pair"])
    assert [*reader[3]] == ["pair"]
    assert np.array_equal(reader[3:5]["pair"], ALL["pair"][3:5])
    with pytest.raises(UsageError, match="no column 'word'"):
        RowReader(plain, ["word"])[0]
    with pytest.raises(UsageError, match="threads = 0"):
        RowReader(plain, threads=0)


def test_rows_of_a_ragged_corpus_come_as_a_table_alone(ragged: Corpus) -> None:
    with pytest.raises(UsageError, match="'text' of type string has no fixed shape") as caught:
        ragged[0]
    assert "to_arrow" in str(caught.value)
    assert RowReader(ragged, ["id"])[7:9]["id"].tolist() == [7, 8]


@pytest.mark.parametrize(
    "rows", [None, slice(3, 30), slice(None, None, -3), slice(0), [7, 3, 49, 7, -1], np.arange(50) % 7 == 0]
)
def test_table_has_the_rows_in_the_order_asked_for(ragged: Corpus, rows: Any) -> None:
    numbers = np.arange(50)[slice(None) if rows is None else rows]
    table = ragged.to_arrow(rows)
    table.validate(full=True)
    assert table.schema.equals(ragged.schema, check_metadata=True)
    assert table.to_pylist() == words(50).take(pa.array(numbers, pa.int64())).to_pylist()
    texts = ragged.to_arrow(rows, columns=["text"])
    assert texts.column_names == ["text"]
    assert texts["text"].to_pylist() == table["text"].to_pylist()


def test_table_of_fixed_columns_has_the_schema_of_the_corpus(corpus: Corpus) -> None:
    table = corpus.to_arrow([40, 3])
    assert table.schema.equals(corpus.schema, check_metadata=True)
    assert table["row"].to_pylist() == [40, 3]
    assert table["pair"].to_pylist() == ALL["pair"][[40, 3]].tolist()


@pytest.mark.parametrize(("names", "message"), [(["word"], "no column 'word'"), ([], "columns is empty")])
def test_table_of_columns_that_are_not_there_is_refused(
    ragged: Corpus, names: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        ragged.to_arrow(columns=names)


@pytest.mark.parametrize("format_", ["zarr", "arrow"])
def test_rows_of_a_damaged_block_are_an_error_and_never_wrong(memory: Tier, format_: str) -> None:
    corpus = small_arrow(memory) if format_ == "arrow" else small(memory)
    key = shard_keys(corpus)[1]
    flip(memory, key, 3000 if format_ == "arrow" else 5)
    rows = corpus.shard_rows
    with pytest.raises(Corrupt) as caught:
        corpus.to_arrow([int(rows[0])])
    assert caught.value.key == key
    assert corpus.to_arrow([0]).num_rows == 1


def test_rows_after_pickling_and_on_other_tiers_are_read_anew(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    wanted = corpus[5]["tokens"].tolist()
    copy = pickle.loads(pickle.dumps(corpus))
    assert copy == corpus
    assert len(pickle.dumps(corpus)) == len(pickle.dumps(small(lake)))  # nothing of the reader travels
    assert tokenize(copy) == tokenize(corpus)
    assert copy[5]["tokens"].tolist() == wanted
    reader = RowReader(corpus, ["tokens"])
    assert reader[5]["tokens"].tolist() == pickle.loads(pickle.dumps(reader))[5]["tokens"].tolist() == wanted
    elsewhere = replace(corpus, tier=disk)
    with pytest.raises(Corrupt, match="no good copy"):
        elsewhere[5]


def test_rows_leave_no_file_open(lake: Tier) -> None:
    corpus = small(lake)
    corpus[:]
    assert open_below(Path(lake.url)) == 0


def test_rows_are_read_by_many_threads(plain: Corpus) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda start: plain[start : start + 20], range(0, 80, 5)))
    assert all(same(rows, slice(at, at + 20)) for at, rows in zip(range(0, 80, 5), found, strict=True))


def test_rows_in_a_forked_child_are_read_by_a_reader_of_its_own(lake: Tier) -> None:
    corpus = small(lake)
    wanted = corpus[:]["tokens"]
    parents = corpus._row_reader()._blocks.get(list)
    pid = os.fork()
    if not pid:
        right = np.array_equal(corpus[:]["tokens"], wanted)
        os._exit(0 if right and corpus._row_reader()._blocks.get(list) is not parents else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_rows_of_a_distant_tier_are_read_many_at_a_time(
    plain: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = replace(plain, tier=replace(plain.tier))
    monkeypatch.setattr("tiering.rows._FAR_SECONDS", 0.0)
    assert same(far[::-1], slice(None, None, -1))
    assert far.to_arrow([99, 3, 50])["row"].to_pylist() == [99, 3, 50]


def test_rows_through_the_node_cache_fetch_each_shard_once(lake: Tier, tmp_path: Path) -> None:
    corpus = small(lake)
    cache = NodeCache(tmp_path / "cache", "1MiB")
    reader = RowReader(corpus, cache=cache)
    for _ in range(2):
        assert np.array_equal(reader[4:8]["tokens"], corpus[4:8]["tokens"])
    counts = reader._blocks.get(list).counts
    (shard,) = [shard for shard in corpus.shards("tokens") if shard.number == 1]
    assert counts.bytes_fetched == shard.nbytes
    cache.close()
