"""A loader of some rows: exact like one of all, and it fetches no shard that has none of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loaders import Loader
from loaders.subset import rows_that_match
from loaders.window import WindowFeed, slots_needed
from tests.corpora import joined, memory_corpus, promised, seen
from tests.loaders.test_window import RowSlots, expected
from tiering import Corpus, NodeCache, ingest, open_tier
from tiering.errors import Conflict, UsageError

ROWS = 200


@pytest.fixture(scope="module")
def corpus() -> Iterator[Corpus]:
    """200 rows in shards of 32, blocks of 8."""
    with memory_corpus(ROWS, 8, 4) as made:
        yield made


masks = st.one_of(
    st.lists(st.booleans(), min_size=ROWS, max_size=ROWS),
    st.integers(1, 60).map(lambda step: [row % step == 0 for row in range(ROWS)]),
    st.tuples(st.integers(0, ROWS), st.integers(1, ROWS)).map(
        lambda run: [run[0] <= row < run[0] + run[1] for row in range(ROWS)]
    ),
).map(np.array)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), mask=masks)
def test_a_loader_of_some_rows_gives_each_of_them_once(
    corpus: Corpus, data: st.DataObject, mask: np.ndarray[Any, Any]
) -> None:
    lanes = data.draw(st.sampled_from([1, 2, 4]))
    options: dict[str, Any] = {
        "lanes": lanes,
        "shuffle": data.draw(st.sampled_from(["window", "none", "full"])),
        "affinity": data.draw(st.sampled_from(["global", "lane"])),
        "window_blocks": data.draw(st.sampled_from([None, 1, 2])),
        "drop_last": False,
        "rows": mask,
    }
    if not mask.any():
        with pytest.raises(UsageError, match="rows names none of the 200 rows"):
            Loader(corpus, 8, **options)
        return
    one = Loader(corpus, 8, **options)
    found = seen(one)
    assert found == promised(one.order, 8, drop_last=False)
    assert sorted(row for batch in found for row in batch) == np.flatnonzero(mask).tolist()
    ranks = [Loader(corpus, 8 // lanes, rank=r, world_size=lanes, **options) for r in range(lanes)]
    assert joined(*map(seen, ranks)) == found


@settings(max_examples=40, deadline=None)
@given(mask=masks, lanes=st.sampled_from([1, 2, 4]), mode=st.sampled_from(["window", "none", "full"]))
def test_slots_give_some_rows_too(corpus: Corpus, mask: np.ndarray[Any, Any], lanes: int, mode: str) -> None:
    if not mask.any():
        return
    order = Loader(corpus, 8, rows=mask, lanes=lanes, shuffle=mode, drop_last=False).order
    slots = RowSlots(order, slots_needed(order, lanes))
    longest = max(order.lane_rows(0, lane) for lane in range(lanes))
    with WindowFeed(order, slots, 0, range(lanes), 0, longest, 2) as feed:
        for start in range(0, longest, 5):
            stop = min(longest, start + 5)
            assert feed.batch(start, stop)["row"].tolist() == expected(order, range(lanes), start, stop)


def test_rows_may_be_a_mask_numbers_or_ranges(corpus: Corpus) -> None:
    mask = np.zeros(ROWS, bool)
    mask[[3, 4, 5, 90, 91]] = True
    states = []
    for rows in (mask, [3, 4, 5, 90, 91], [[3, 6], [90, 92]]):
        loader = Loader(corpus, 5, rows=rows)
        assert sorted(seen(loader)[0]) == [3, 4, 5, 90, 91]
        states.append(loader.state_dict())
    assert states[0] == states[1] == states[2]


@pytest.mark.parametrize("rows", [[5, 3], [0, ROWS], [0.5], np.ones(ROWS - 1, bool), [[3, 3]]])
def test_rows_that_are_none_are_refused(corpus: Corpus, rows: Any) -> None:
    with pytest.raises(UsageError, match="rows must"):
        Loader(corpus, 1, rows=rows)


def test_a_batch_larger_than_the_rows_chosen_is_refused(corpus: Corpus) -> None:
    with pytest.raises(UsageError, match="has 7 rows, too few"):
        Loader(corpus, 8, rows=range(7))


def test_shards_without_such_rows_are_not_fetched(corpus: Corpus, tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, 10 * corpus.nbytes)
    loader = Loader(corpus, 8, rows=[[40, 56], [190, 200]], cache=cache, columns=["row"], drop_last=False)
    sizes = [shard.nbytes for shard in corpus.shards("row")]
    assert sum(len(batch["row"]) for batch in loader) == 26
    assert loader.stats.bytes_fetched == cache.status().used_bytes == sizes[1] + sizes[5] + sizes[6]
    assert sum(len(batch["row"]) for batch in loader) == 26
    assert loader.stats.bytes_fetched == 0
    assert loader.stats.bound == 1.0
    cache.close()


def test_the_state_is_that_of_these_rows_alone(corpus: Corpus) -> None:
    mine = Loader(corpus, 8, rows=range(0, ROWS, 2))
    batches = iter(mine)
    for _ in range(3):
        next(batches)
    state = json.loads(json.dumps(mine.state_dict()))
    assert state["v"] == 3
    assert len(json.dumps(state)) < 220
    other = Loader(corpus, 4, rows=range(0, ROWS, 2), rank=1, world_size=2)
    other.load_state_dict(state)
    assert seen(other) == promised(other.order, 4, 1, 2, start=state["position"])
    for rows in (None, range(1, ROWS, 2)):
        with pytest.raises(Conflict, match="Give the rows that the training began with"):
            Loader(corpus, 8, rows=rows).load_state_dict(state)
    with pytest.raises(Conflict, match="all rows, not the subset"):
        mine.load_state_dict(Loader(corpus, 8).state_dict())


def test_all_rows_named_are_all_rows(corpus: Corpus) -> None:
    state = Loader(corpus, 8, rows=np.ones(ROWS, bool)).state_dict()
    assert state == Loader(corpus, 8).state_dict()
    assert state["v"] == 2


LABELS = np.arange(ROWS) % 7


@pytest.fixture(scope="module", params=["zarr", "arrow"])
def labelled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """200 rows in blocks of 8 with a label, and in Arrow a text that may be null."""
    folder = tmp_path_factory.mktemp("labelled")
    source: Any = {"row": np.arange(ROWS), "label": LABELS}
    if request.param == "arrow":
        words = [None if row % 5 == 0 else "x" * (row % 3) for row in range(ROWS)]
        source = pa.table({**source, "text": words})
    tier = open_tier(folder, "disk")
    return ingest(source, tier, "c", format=request.param, block_rows=8, shard_size="4KiB", progress=False)


def test_rows_may_be_those_that_match_an_expression(labelled: Corpus) -> None:
    wanted = (pc.field("label") == 3) | (pc.field("row") > 190)
    loader = Loader(labelled, 8, rows=wanted, columns=["row"], drop_last=False)
    found = sorted(row for batch in loader for row in batch["row"].tolist())
    assert found == [row for row in range(ROWS) if row % 7 == 3 or row > 190]
    assert loader.state_dict() == Loader(
        labelled, 8, rows=found, columns=["row"], drop_last=False
    ).state_dict() | {"epoch": 1}


def test_rows_may_be_chosen_by_a_ragged_column(labelled: Corpus) -> None:
    if labelled.format != "arrow":
        pytest.skip("only Arrow corpora have ragged columns")
    loader = Loader(labelled, 8, rows=pc.utf8_length(pc.field("text")) == 2, columns=["row"], drop_last=False)
    found = sorted(row for batch in loader for row in batch["row"].tolist())
    assert found == [row for row in range(ROWS) if row % 5 and row % 3 == 2]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (pc.field("colour") == 3, "columns of corpus 'c' are row, label"),
        (pc.field("label") == "three", "rows cannot be chosen by"),
        (pc.scalar(True), "names no column"),
        (pc.field("label") == 99, "rows names none of the 200 rows"),
    ],
)
def test_expressions_that_choose_nothing_are_refused(labelled: Corpus, rows: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Loader(labelled, 8, rows=rows, columns=["row"])


def test_an_expression_reads_the_columns_it_names_alone(tmp_path: Path) -> None:
    wide = np.zeros((ROWS, 4096), np.uint8)
    tier = open_tier(tmp_path, "disk")
    source = {"label": np.arange(ROWS), "wide": wide}
    corpus = ingest(source, tier, "c", block_rows=8, shard_size="64KiB", progress=False)
    cache = NodeCache(tmp_path / "cache", 10 * corpus.nbytes)
    rows_that_match(corpus, pc.field("label") == 3, cache)
    assert cache.status().used_bytes == sum(shard.nbytes for shard in corpus.shards("label"))
    cache.close()
