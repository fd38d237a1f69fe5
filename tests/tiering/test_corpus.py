from __future__ import annotations

import pickle
from importlib.util import find_spec

import dask.array as da
import numpy as np
import pytest
from distributed import Client

from tests.tiering.corpora import flip, shard_keys, small, small_arrow, tokens, words
from tiering import Corpus, Tier, ingest, open_corpus, plan_move
from tiering.errors import Conflict, Corrupt, NotFound, UsageError
from tiering.schema import schema_of


def test_corpus_says_what_it_is(lake: Tier) -> None:
    corpus = small(lake, rows=22)
    assert (corpus.name, corpus.rows, corpus.version, corpus.format) == ("web", 22, 1, "zarr")
    assert corpus.nbytes == sum(corpus.manifest["nbytes"].to_pylist())
    assert corpus.schema.equals(schema_of(corpus.columns))
    assert corpus.shard_rows.tolist() == [4, 4, 4, 4, 4, 2]
    assert corpus.layout.columns == corpus.columns
    assert corpus.key("a/b") == "web/a/b"
    assert corpus.absent() == []
    assert corpus.manifest["key"].to_pylist() == [f"tokens/c/{number}/0" for number in range(6)]


def test_corpus_of_arrow_has_no_zarr_layout(lake: Tier) -> None:
    corpus = small_arrow(lake)
    with pytest.raises(UsageError, match="is in the format 'arrow', not 'zarr'"):
        _ = corpus.layout
    with pytest.raises(UsageError, match="no fixed shape"):
        _ = corpus.columns


@pytest.mark.parametrize("format_", ["zarr", "arrow"])
def test_corpus_pickled_is_the_same_to_the_last_byte(lake: Tier, format_: str) -> None:
    corpus = ingest(tokens(), lake, "web", format=format_, shard_size=4096, block_rows=4)
    copy: Corpus = pickle.loads(pickle.dumps(corpus))
    assert copy == corpus
    assert copy.schema.equals(corpus.schema, check_metadata=True)
    assert copy.contents.encode() == corpus.contents.encode()


def test_corpus_at_another_tier_knows_the_copies(lake: Tier, disk: Tier, memory: Tier) -> None:
    corpus = small(lake)
    with pytest.raises(NotFound):
        corpus.at(disk)
    plan_move(corpus, disk).run()
    there = corpus.at(disk)
    assert (there.tier, there.others) == (disk, (lake,))
    plan_move(there, memory).run()
    assert there.at(memory).others == (disk, lake)
    assert there.at(lake).at(disk).others == (lake,)
    assert corpus.with_copy(disk).with_copy(disk).others == (disk,)
    small(disk, "other", seed=9)
    small(lake, "other")
    with pytest.raises(Conflict, match="another corpus is called 'other' there"):
        open_corpus(lake, "other").at(disk)


def test_corpus_stays_what_it_was_when_opened(lake: Tier) -> None:
    corpus = small(lake)
    assert open_corpus(lake, "web", 1) == corpus
    assert open_corpus(lake, "web", others=(lake,)).others == (lake,)


@pytest.mark.parametrize("codec", [None, "zstd"])
def test_corpus_as_dask_arrays_has_all_rows(lake: Tier, cluster: Client, codec: str | None) -> None:
    source = {**tokens(), "wave": np.arange(22) * 1j}
    corpus = ingest(source, lake, "web", shard_size=4096, block_rows=3, codec=codec)
    arrays = corpus.to_dask()
    assert arrays.keys() == source.keys()
    for name, array in arrays.items():
        assert isinstance(array, da.Array)
        assert (array.shape, array.dtype) == (source[name].shape, source[name].dtype)
        np.testing.assert_array_equal(array.compute(scheduler="synchronous"), source[name])
        np.testing.assert_array_equal(cluster.compute(array[5:9]).result(), source[name][5:9])


def test_corpus_as_dask_arrays_never_hands_out_wrong_rows(lake: Tier) -> None:
    corpus = small(lake)
    flip(lake, shard_keys(corpus)[1])
    array = corpus.to_dask()["tokens"]
    np.testing.assert_array_equal(array[:4].compute(scheduler="synchronous"), tokens()["tokens"][:4])
    with pytest.raises(Corrupt) as caught:
        array.compute(scheduler="synchronous")
    assert (caught.value.tier, caught.value.key) == ("lake", shard_keys(corpus)[1])


def test_corpus_as_a_dask_dataframe_has_all_rows_or_says_what_it_needs(lake: Tier) -> None:
    corpus = small_arrow(lake)
    if find_spec("pandas") is None:
        with pytest.raises(UsageError, match="needs pandas"):
            corpus.to_dask()
    else:
        frame = corpus.to_dask().compute(scheduler="synchronous")
        assert frame["id"].tolist() == words()["id"].to_pylist()
