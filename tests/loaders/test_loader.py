"""The loader against a brute-force oracle; cache and damage have tests of their own in `tests/tiering`."""

from __future__ import annotations

import gc
import os
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loaders import Loader
from tests.corpora import columns, joined, make_corpus, memory_corpus, promised, run_python, seen
from tiering import Corpus, ingest, open_tier
from tiering.errors import NotFound, Unavailable, UsageError
from tiering.stores.memory import MemoryStore

WORLDS = (1, 2, 3, 4, 6, 12)


@pytest.fixture(scope="module")
def corpus() -> Iterator[Corpus]:
    """600 rows in shards of 64, the last one shorter."""
    with memory_corpus(600, 16, 4) as made:
        yield made


def reading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("tiering-read")]


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_loader_gives_every_rank_the_batches_of_the_oracle(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 300), "rows")
    lanes = data.draw(st.sampled_from(WORLDS), "lanes")
    batch = lanes * data.draw(st.sampled_from([1, 2, 5, 30]), "step")
    drop_last = data.draw(st.booleans(), "drop_last")
    options = {
        "shuffle": data.draw(st.sampled_from(["window", "none"]), "shuffle"),
        "affinity": data.draw(st.sampled_from(["global", "lane"]), "affinity"),
        "window_blocks": data.draw(st.sampled_from([None, 1, 2, 5]), "window_blocks"),
        "group_shards": data.draw(st.integers(1, 3), "group_shards"),
        "seed": data.draw(st.integers(0, 2**64 - 1), "seed"),
        "drop_last": drop_last,
        "lanes": lanes,
    }
    block_rows = data.draw(st.integers(1, min(rows, 40)), "block_rows")
    with memory_corpus(
        rows,
        block_rows,
        data.draw(st.integers(1, 5), "shard_blocks"),
        format=data.draw(st.sampled_from(["zarr", "arrow"]), "format"),
    ) as corpus:
        if drop_last and rows // lanes < batch // lanes:
            with pytest.raises(UsageError, match="too few for one batch"):
                Loader(corpus, batch, **options)
            return
        worlds = [world for world in WORLDS if lanes % world == 0]
        batches: dict[int, list[list[int]]] = {}
        for world in {1, data.draw(st.sampled_from(worlds), "world")}:
            ranks = []
            for rank in range(world):
                loader = Loader(corpus, batch // world, rank=rank, world_size=world, **options)
                wanted = promised(loader.order, batch // world, rank, world, drop_last=drop_last)
                found = seen(loader)
                assert found == wanted
                assert len(loader) == len(wanted)
                ranks.append(found)
            batches[world] = joined(*ranks)
        assert all(found == batches[1] for found in batches.values())
        counts = Counter(row for rows_of_batch in batches[1] for row in rows_of_batch)
        assert set(counts.values()) == {1}
        if not drop_last:
            assert sorted(counts) == list(range(rows))


def test_loader_left_early_leaves_no_thread_and_begins_the_epoch_anew(corpus: Corpus) -> None:
    loader = Loader(corpus, 32)
    for step, _ in enumerate(loader):
        if step == 2:
            break
    assert not reading_threads()
    assert loader.state_dict()["position"] == 3 * 32 // loader.order.lanes
    assert seen(loader) == promised(loader.order, 32)


def test_loader_world_size_that_does_not_divide_the_lanes_is_refused(corpus: Corpus) -> None:
    with pytest.raises(UsageError, match="Set lanes to one of"):
        Loader(corpus, 32, rank=0, world_size=3)


def test_loader_batch_larger_than_the_corpus_is_refused_or_given_whole(corpus: Corpus) -> None:
    with pytest.raises(UsageError, match="too few for one batch of 1024"):
        Loader(corpus, 1024)
    (rows,) = seen(Loader(corpus, 1024, drop_last=False))
    assert sorted(rows) == list(range(600))


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"prefetch": 0}, {"prefetch": "much"}, {"shuffle": "full-ish"}, {"affinity": "node"}],
)
def test_loader_arguments_that_do_not_fit_are_refused(corpus: Corpus, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Loader(corpus, **{"batch_size": 32, **options})


def test_loader_reads_only_the_columns_asked_for(corpus: Corpus) -> None:
    loader = Loader(corpus, 32, columns=["pair"])
    found = list(loader)
    assert [sorted(batch) for batch in found] == [["pair"]] * len(found)
    wanted = promised(loader.order, 32)
    assert all(
        np.array_equal(b["pair"], columns(rows)["pair"]) for b, rows in zip(found, wanted, strict=True)
    )
    assert loader.stats.bytes_needed < Loader(corpus, 32)._feeds.reader.stored_bytes / 2


def test_loader_column_that_is_not_there_is_refused_with_those_that_are(corpus: Corpus) -> None:
    with pytest.raises(UsageError, match=r"no column 'rows'.*row, pair"):
        Loader(corpus, 32, columns=["rows"])
    with pytest.raises(UsageError, match="columns is empty"):
        Loader(corpus, 32, columns=[])


def test_loader_ragged_column_is_refused_by_name_and_others_can_be_read(tmp_path: Any) -> None:
    table = pa.table({"row": pa.array(range(64), pa.int64()), "text": ["x" * (n % 5) for n in range(64)]})
    corpus = ingest(table, open_tier(tmp_path), "c", progress=False)
    with pytest.raises(UsageError, match=r"column 'text'.*no fixed shape.*collate='arrow'"):
        Loader(corpus, 8)
    loader = Loader(corpus, 8, columns=["row"])
    assert [batch["row"].tolist() for batch in loader] == promised(loader.order, 8)


def test_loader_hands_out_what_transform_returns(corpus: Corpus) -> None:
    loader = Loader(corpus, 32, transform=lambda batch: batch["row"].tolist())
    assert list(loader) == promised(loader.order, 32)


def test_loader_batches_stay_as_they_are(corpus: Corpus) -> None:
    loader = Loader(corpus, 32)
    kept = [batch["row"] for batch in loader]
    assert [rows.tolist() for rows in kept] == promised(loader.order, 32)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_loader_transform_that_raises_leaves_no_thread_and_loses_no_batch(
    corpus: Corpus, kind: type[BaseException]
) -> None:
    calls = Counter[str]()

    def transform(batch: Any) -> Any:
        calls["all"] += 1
        if calls["all"] == 4:
            raise kind
        return batch

    loader = Loader(corpus, 32, transform=transform)
    rows: list[list[int]] = []
    with pytest.raises(kind):
        rows.extend(batch["row"].tolist() for batch in loader)
    gc.collect()
    assert not reading_threads()
    state = loader.state_dict()
    loader.load_state_dict(state)
    assert len(rows) == 3
    assert rows + seen(loader) == promised(loader.order, 32)


@pytest.mark.parametrize("error", [Unavailable("no answer", tier="lake"), NotFound("gone", tier="lake")])
def test_loader_passes_on_errors_of_the_tier_and_goes_on_later(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with memory_corpus(600, 16, 4) as corpus:
        loader = Loader(corpus, 32)
        batches = iter(loader)
        first = next(batches)["row"].tolist()
        state = loader.state_dict()
        batches.close()  # type: ignore[attr-defined]

        def broken(*args: Any) -> None:
            raise error

        loader.load_state_dict(state)
        with monkeypatch.context() as patch:
            patch.setattr(MemoryStore, "_get", broken)
            # A shard that is not found is looked for on other tiers, of which there are none.
            with pytest.raises(OSError, match=r"no answer|no other tier"):
                next(iter(loader))
        assert not reading_threads()
        loader.load_state_dict(state)
        assert [first, *seen(loader)] == promised(loader.order, 32)


def test_loader_in_a_forked_child_reads_by_itself(tmp_path: Any) -> None:
    make_corpus(open_tier(tmp_path / "tier", "disk"), 600, 16, 4)
    assert run_python(FORKED, tmp_path).split() == ["child", "parent"]


FORKED = """
import os, sys, warnings
from pathlib import Path
from loaders import Loader
from tests.corpora import promised, seen
from tiering import NodeCache, open_corpus, open_tier
from tiering.errors import UsageError

warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads is what is tested
folder = Path(sys.argv[1])
corpus = open_corpus(open_tier(folder / "tier", "disk"), "c")
loader = Loader(corpus, 32, cache=NodeCache(folder / "cache", corpus.nbytes // 2))
batches = iter(loader)
rows = [next(batches)["row"].tolist()]
child = os.fork()
if not child:
    try:
        next(batches)
    except UsageError:
        assert seen(loader) == promised(loader.order, 32)
        print("child", flush=True)
    os._exit(0)
os.waitpid(child, 0)
assert rows + [batch["row"].tolist() for batch in batches] == promised(loader.order, 32)
print("parent", flush=True)
"""


def test_loader_environment_gives_rank_and_world(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    loader = Loader(corpus, 16)
    assert seen(loader) == promised(loader.order, 16, 1, 2)


def test_loader_stats_count_rows_and_time(corpus: Corpus) -> None:
    loader = Loader(corpus, 32)
    seen(loader)
    stats = loader.stats
    assert (stats.epoch, stats.rows, stats.batches) == (0, 576, 18)
    assert stats.seconds >= stats.stall_seconds >= 0
    assert stats.rows_per_second > 0
    assert os.getpid() == loader._process
