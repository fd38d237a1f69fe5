"""The loader against a brute-force oracle; cache and damage have tests of their own in `tests/tiering`."""

from __future__ import annotations

import gc
import itertools
import json
import os
import pickle
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
from loaders.slots import HostSlots
from loaders.window import slots_needed
from tests.corpora import columns, make_corpus, memory_corpus, promised, run_python, seen
from tiering import Corpus, NodeCache, Tier, ingest, open_corpus, open_tier
from tiering.errors import Conflict, FormatError, NotFound, Unavailable, UnsupportedVersion, UsageError
from tiering.reader import BlockReader
from tiering.stores.memory import MemoryStore

WORLDS = (1, 2, 3, 4, 6, 12)


@pytest.fixture(scope="module")
def corpus() -> Iterator[Corpus]:
    """600 rows in shards of 64, the last one shorter."""
    with memory_corpus(600, 16, 4) as made:
        yield made


def joined(*ranks: list[list[int]]) -> list[list[int]]:
    """The global batches of some ranks."""
    return [list(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)]


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


@pytest.mark.parametrize("shuffle", ["window", "none"])
@pytest.mark.parametrize("drop_last", [True, False])
def test_loader_resumes_at_every_step_with_every_world_size(
    corpus: Corpus, shuffle: str, drop_last: bool
) -> None:
    options: dict[str, Any] = {"lanes": 12, "drop_last": drop_last}
    loader = Loader(corpus, 24, shuffle=shuffle, seed=11, window_blocks=2, **options)
    loader.set_epoch(5)
    whole = promised(loader.order, 24, epoch=5, drop_last=drop_last)
    states = [loader.state_dict()]
    states += [loader.state_dict() for _ in loader]
    assert len(states) == len(whole) + 1
    assert states[-1] == {**states[0], "epoch": 6}
    for step, state in enumerate(states[:-1]):
        for world in (1, 3, 12):
            batch = 24 // world
            ranks = [Loader(corpus, batch, rank=r, world_size=world, **options) for r in range(world)]
            for rank in ranks:
                rank.load_state_dict(json.loads(json.dumps(state)))
            following = joined(*map(seen, ranks))
            assert following == whole[step:]
            assert {json.dumps(rank.state_dict()) for rank in ranks} == {json.dumps(states[-1])}


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("batch", [12, 36, 60, 600])
def test_loader_resumes_with_another_batch_size_where_the_last_one_stopped(
    corpus: Corpus, batch: int, drop_last: bool
) -> None:
    loader = Loader(corpus, 24, lanes=12)
    batches = iter(loader)
    for _ in range(21):
        next(batches)
    other = Loader(corpus, batch, lanes=12, drop_last=drop_last)
    other.load_state_dict(loader.state_dict())
    assert seen(other) == promised(loader.order, batch, start=42, drop_last=drop_last)
    assert seen(other) == promised(loader.order, batch, epoch=1, drop_last=drop_last)
    batches.close()  # type: ignore[attr-defined]


def test_loader_begins_the_next_epoch_by_itself(corpus: Corpus) -> None:
    loader = Loader(corpus, 32)
    epochs = [seen(loader) for _ in range(3)]
    assert epochs == [promised(loader.order, 32, epoch=epoch) for epoch in range(3)]
    assert epochs[0] != epochs[1]


def test_loader_left_early_leaves_no_thread_and_begins_the_epoch_anew(corpus: Corpus) -> None:
    loader = Loader(corpus, 32)
    for step, _ in enumerate(loader):
        if step == 2:
            break
    assert not reading_threads()
    assert loader.state_dict()["position"] == 3 * 32 // loader.order.lanes
    assert seen(loader) == promised(loader.order, 32)


def test_loader_that_was_only_asked_for_an_iterator_stands_where_it_stood(corpus: Corpus) -> None:
    loader = Loader(corpus, 32)
    source = Loader(corpus, 32)
    next(iter(source))
    loader.load_state_dict(source.state_dict())
    iter(loader)
    assert loader.state_dict() == source.state_dict()
    assert seen(loader) == promised(loader.order, 32)[1:]


def test_loader_set_epoch_goes_to_its_beginning(corpus: Corpus) -> None:
    loader = Loader(corpus, 32)
    next(iter(loader))
    loader.set_epoch(9)
    assert loader.stats.epoch == 0
    assert seen(loader) == promised(loader.order, 32, epoch=9)
    assert loader.stats.epoch == 9


@pytest.mark.parametrize("epoch", [-1, 1 << 32])
def test_loader_set_epoch_refuses_numbers_that_are_none(corpus: Corpus, epoch: int) -> None:
    with pytest.raises(UsageError, match="epoch"):
        Loader(corpus, 32).set_epoch(epoch)


@pytest.mark.parametrize("how", ["a newer loop", "set_epoch", "load_state_dict"])
def test_loader_never_mixes_two_loops(corpus: Corpus, how: str) -> None:
    loader = Loader(corpus, 32)
    old = iter(loader)
    next(old)
    if how == "a newer loop":
        new = iter(loader)
        rows = [next(new)["row"].tolist()]
    elif how == "set_epoch":
        loader.set_epoch(0)
    else:
        loader.load_state_dict({**loader.state_dict(), "position": 0})
    with pytest.raises(UsageError, match="ended by a newer one"):
        next(old)
    if how == "a newer loop":
        assert rows + [batch["row"].tolist() for batch in new] == promised(loader.order, 32)
    else:
        assert seen(loader) == promised(loader.order, 32)


def test_loader_state_may_be_loaded_after_the_last_batch_in_its_loop(corpus: Corpus) -> None:
    loader = Loader(corpus, 32)
    start = loader.state_dict()
    rows = []
    for step, batch in enumerate(loader):
        rows.append(batch["row"].tolist())
        if step == len(loader) - 1:
            loader.load_state_dict(start)
    assert rows == seen(loader) == promised(loader.order, 32)


def test_loader_state_of_another_corpus_is_refused(corpus: Corpus) -> None:
    with memory_corpus(500, 16, 4) as other, pytest.raises(Conflict, match="Open the version"):
        Loader(corpus, 32).load_state_dict(Loader(other, 32).state_dict())


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"v": 2}, UnsupportedVersion),
        ({"v": None}, FormatError),
        ({"position": 10**6}, FormatError),
        ({"epoch": 1 << 62}, FormatError),
        ({"lanes": 5}, UsageError),
        ({"lanes": 0}, UsageError),
        ({"mode": "sideways"}, UsageError),
        ({"seed": 1 << 64}, UsageError),
        ({"window": 0}, UsageError),
    ],
)
def test_loader_state_that_does_not_fit_is_refused_and_changes_nothing(
    corpus: Corpus, changes: dict[str, Any], kind: type[Exception]
) -> None:
    loader = Loader(corpus, 32)
    before = loader.state_dict()
    with pytest.raises(kind):
        loader.load_state_dict({**before, **changes})
    assert loader.state_dict() == before
    assert seen(loader) == promised(loader.order, 32)


def test_loader_state_with_an_enormous_window_takes_no_more_memory_than_the_corpus(corpus: Corpus) -> None:
    loader = Loader(corpus, 32)
    loader.load_state_dict({**loader.state_dict(), "window": 1 << 50})
    assert seen(loader) == promised(loader.order, 32)


def test_loader_state_loads_with_a_world_size_that_divides_its_lanes_alone(corpus: Corpus) -> None:
    state = Loader(corpus, 24, lanes=8).state_dict()
    three = Loader(corpus, 8, rank=0, world_size=3, lanes=12)
    with pytest.raises(UsageError, match="world size 3 does not divide the 8 lanes"):
        three.load_state_dict(state)


def test_loader_world_size_that_does_not_divide_the_lanes_is_refused(corpus: Corpus) -> None:
    with pytest.raises(UsageError, match="Set lanes to one of"):
        Loader(corpus, 32, rank=0, world_size=3)


def test_loader_batch_larger_than_the_corpus_is_refused_or_given_whole(corpus: Corpus) -> None:
    with pytest.raises(UsageError, match="too few for one batch of 1024"):
        Loader(corpus, 1024)
    (rows,) = seen(Loader(corpus, 1024, drop_last=False))
    assert sorted(rows) == list(range(600))


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"io_threads": 0}, {"shuffle": "full-ish"}])
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
    assert loader.stats.bytes_needed < Loader(corpus, 32)._reader.stored_bytes / 2


def test_loader_column_that_is_not_there_is_refused_with_those_that_are(corpus: Corpus) -> None:
    with pytest.raises(UsageError, match=r"no column 'rows'.*row, pair"):
        Loader(corpus, 32, columns=["rows"])
    with pytest.raises(UsageError, match="columns is empty"):
        Loader(corpus, 32, columns=[])


def test_loader_ragged_column_is_refused_by_name_and_others_can_be_read(tmp_path: Any) -> None:
    table = pa.table({"row": pa.array(range(64), pa.int64()), "text": ["x" * (n % 5) for n in range(64)]})
    corpus = ingest(table, open_tier(tmp_path), "c", progress=False)
    with pytest.raises(UsageError, match=r"column 'text'.*no fixed shape"):
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
            patch.setattr(MemoryStore, "read_into", broken)
            patch.setattr(MemoryStore, "read", broken)
            # A shard that is not found is looked for on other tiers, of which there are none.
            with pytest.raises(OSError, match=r"no answer|no other tier"):
                next(iter(loader))
        assert not reading_threads()
        loader.load_state_dict(state)
        assert [first, *seen(loader)] == promised(loader.order, 32)


def test_loader_memory_is_two_windows_and_the_boundaries(corpus: Corpus) -> None:
    loader = Loader(corpus, 32, lanes=2, window_blocks=3)
    seen(loader)
    slots = loader._slots()
    assert isinstance(slots, HostSlots)
    count = slots_needed(loader.order, 2)
    assert slots.count == count == 2 * 2 * 3 + 1
    # Room for the CRC behind each block: one row of 8 bytes, one of 12.
    assert slots.nbytes == count * ((16 + 1) * 8 + (16 + 1) * 12)


@pytest.mark.parametrize(("lanes", "world"), [(1, 1), (4, 1), (12, 1), (12, 3), (60, 1), (600, 1)])
@pytest.mark.parametrize("shuffle", ["window", "none"])
def test_loader_reads_each_block_once_an_epoch(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, lanes: int, world: int, shuffle: str
) -> None:
    reads: list[tuple[int, int]] = []
    read = BlockReader.read

    def counting(self: BlockReader, shard: int, block: int, slots: Any) -> None:
        reads.append((shard, block))
        read(self, shard, block, slots)

    monkeypatch.setattr(BlockReader, "read", counting)
    for rank in range(world):
        loader = Loader(corpus, 600 // world, rank=rank, world_size=world, lanes=lanes, shuffle=shuffle)
        reads.clear()
        for _ in loader:
            pass
        assert max(Counter(reads).values()) == 1
        if world == 1:
            assert set(reads) == {(row // 64, row % 64 // 16) for row in range(600)}


def test_loader_without_a_cache_fetches_each_block_once(corpus: Corpus) -> None:
    loader = Loader(corpus, 100, columns=["row"], lanes=4)
    blocks = 4 * 9 + 2
    index = 4 * 16 + 4
    for epoch in range(2):
        seen_rows = sum(len(batch["row"]) for batch in loader)
        assert seen_rows == loader.stats.rows == 600
        assert loader.stats.batches == 6
        # The index of each of the ten shards is read in the first epoch alone.
        wanted = blocks * (16 * 8 + 4) + (10 * index if epoch == 0 else 0)
        assert loader.stats.bytes_fetched == loader.stats.bytes_needed == wanted
        assert loader.stats.hit_ratio == loader.stats.bound == 0.0


@pytest.mark.parametrize("kept", [0, 1, 4, 10])
def test_loader_with_a_pin_cache_fetches_all_once_and_then_what_does_not_fit(
    tmp_path: Any, kept: int
) -> None:
    with memory_corpus(640, 16, 4) as corpus:
        sizes = set(corpus.manifest["nbytes"].to_pylist()[:10])
        (shard,) = sizes
        block, index = 4 * (16 * 8 + 4), 4 * 16 + 4
        cache = NodeCache(tmp_path, shard * kept + shard // 2)
        loader = Loader(corpus, 64, columns=["row"], cache=cache, lanes=8)
        assert loader._reader.stored_bytes == 10 * shard
        for epoch in range(3):
            assert sum(len(batch["row"]) for batch in loader) == 640
            stats = loader.stats
            if epoch == 0:
                assert stats.bytes_fetched == kept * shard + (10 - kept) * (block + index)
                assert stats.bound == 0.0
            else:
                assert stats.bytes_fetched == (10 - kept) * block
                assert stats.bound == pytest.approx(min(1.0, (kept + 0.5) / 10), abs=1e-3)
            assert stats.hit_ratio <= stats.bound
        assert cache.status().shards == kept
        cache.close()


def test_loader_of_one_rank_of_two_stays_below_its_bound(tmp_path: Any) -> None:
    with memory_corpus(640, 16, 4) as corpus, NodeCacheIn(tmp_path, 0.3 * corpus.nbytes) as cache:
        for rank in (0, 1):
            loader = Loader(corpus, 32, rank=rank, world_size=2, cache=cache)
            for _ in range(3):
                seen(loader)
                assert 0 <= loader.stats.hit_ratio <= loader.stats.bound == pytest.approx(0.6, abs=0.01)


def test_loader_on_a_warm_cache_knows_what_is_there(tmp_path: Any) -> None:
    with memory_corpus(640, 16, 4) as corpus, NodeCacheIn(tmp_path, 2 * corpus.nbytes) as cache:
        seen(Loader(corpus, 64, cache=cache))
        loader = Loader(corpus, 64, cache=cache)
        assert loader.stats.bound == 1.0
        seen(loader)
        assert loader.stats.bytes_fetched == 0
        assert loader.stats.hit_ratio == 1.0


class NodeCacheIn(NodeCache):
    """A cache that is closed at the end of a block."""

    def __init__(self, path: Any, capacity: float) -> None:
        super().__init__(path, int(capacity))

    def __enter__(self) -> NodeCacheIn:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def test_loader_from_a_cache_and_two_formats_gives_the_same_rows(tmp_path: Any) -> None:
    found = []
    for number, options in enumerate(({}, {"codec": "zstd:1"}, {"format": "arrow"})):
        with (
            memory_corpus(640, 16, 4, **options) as corpus,
            NodeCacheIn(tmp_path / str(number), corpus.nbytes // 2) as cache,
        ):
            loader = Loader(corpus, 64, cache=cache)
            found.append([seen(loader), seen(loader)])
            assert found[-1] == [promised(loader.order, 64, epoch=epoch) for epoch in range(2)]
    # Shards of Arrow hold all columns, and have the rows of Zarr's largest ones here.
    assert found[0] == found[1]


def test_loader_pickled_goes_on_where_it_stood(tmp_path: Any) -> None:
    corpus = make_corpus(open_tier(tmp_path / "tier", "disk"), 600, 16, 4)
    loader = Loader(corpus, 32, cache=NodeCache(tmp_path / "cache", corpus.nbytes))
    batches = iter(loader)
    rows = [next(batches)["row"].tolist() for _ in range(3)]
    copy = pickle.loads(pickle.dumps(loader))
    assert rows + seen(copy) == promised(loader.order, 32)
    assert [batch["row"].tolist() for batch in batches] == promised(loader.order, 32)[3:]
    for used in (loader, copy):
        used._cache.close()


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


def test_loader_in_threads_shares_one_cache(tmp_path: Any) -> None:
    with memory_corpus(640, 16, 4) as corpus, NodeCacheIn(tmp_path, corpus.nbytes // 2) as cache:
        found: dict[int, list[list[int]]] = {}

        def run(rank: int) -> None:
            found[rank] = seen(Loader(corpus, 16, rank=rank, world_size=4, cache=cache))

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        order = Loader(corpus, 64).order
        assert [found[rank] for rank in range(4)] == [promised(order, 16, rank, 4) for rank in range(4)]
        assert cache.status().used_bytes <= corpus.nbytes // 2


def test_loader_environment_gives_rank_and_world(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    loader = Loader(corpus, 16)
    assert seen(loader) == promised(loader.order, 16, 1, 2)


def test_loader_of_an_older_version_and_tier_resumes(tmp_path: Any) -> None:
    lake, disk = open_tier(tmp_path / "lake", "lake"), open_tier(tmp_path / "disk", "disk")
    corpus = make_corpus(lake, 600, 16, 4)
    copy_tree(lake, disk)
    loader = Loader(corpus, 32)
    batches = iter(loader)
    rows = [next(batches)["row"].tolist() for _ in range(2)]
    other = Loader(open_corpus(disk, "c"), 32)
    other.load_state_dict(loader.state_dict())
    assert rows + seen(other) == promised(loader.order, 32)
    batches.close()  # type: ignore[attr-defined]


def copy_tree(source: Tier, target: Tier) -> None:
    for info in source.store.list():
        target.store.write(info.key, [source.store.read(info.key)])


def test_loader_stats_count_rows_and_time(corpus: Corpus) -> None:
    loader = Loader(corpus, 32)
    seen(loader)
    stats = loader.stats
    assert (stats.epoch, stats.rows, stats.batches) == (0, 576, 18)
    assert stats.seconds >= stats.stall_seconds >= 0
    assert stats.rows_per_second > 0
    assert os.getpid() == loader._process
