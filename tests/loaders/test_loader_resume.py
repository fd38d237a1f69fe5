"""The loader's epochs, loops and states: it goes on exactly where it, or another, stood."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from loaders import Loader
from tests.corpora import joined, make_corpus, memory_corpus, promised, seen
from tiering import Corpus, NodeCache, Tier, open_corpus, open_tier
from tiering.errors import Conflict, FormatError, UnsupportedVersion, UsageError


@pytest.fixture(scope="module")
def corpus() -> Iterator[Corpus]:
    """600 rows in shards of 64, the last one shorter."""
    with memory_corpus(600, 16, 4) as made:
        yield made


@pytest.mark.parametrize(
    ("shuffle", "affinity", "drop_last"),
    [
        ("window", "global", True),
        ("window", "lane", False),
        ("none", "global", True),
        ("none", "global", False),
    ],
)
def test_loader_resumes_at_every_step_with_every_world_size(
    corpus: Corpus, shuffle: str, affinity: str, drop_last: bool
) -> None:
    options: dict[str, Any] = {"lanes": 12, "drop_last": drop_last}
    loader = Loader(corpus, 24, shuffle=shuffle, affinity=affinity, seed=11, window_blocks=2, **options)
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


@pytest.mark.parametrize("affinity", ["global", "lane"])
def test_loader_resumes_a_full_shuffle_with_every_world_size(corpus: Corpus, affinity: str) -> None:
    loader = Loader(corpus, 60, shuffle="full", affinity=affinity, window_blocks=20, lanes=4)
    whole = promised(loader.order, 60)
    batches = iter(loader)
    for _ in range(7):
        next(batches)
    for world in (1, 2, 4):
        ranks = [Loader(corpus, 60 // world, rank=r, world_size=world, lanes=4) for r in range(world)]
        for rank in ranks:
            rank.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        assert joined(*map(seen, ranks)) == whole[7:]
    batches.close()  # type: ignore[attr-defined]


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
        ({"v": 4}, UnsupportedVersion),
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


def test_loader_reads_a_state_of_version_1(corpus: Corpus) -> None:
    loader = Loader(corpus, 32, seed=3)
    next(iter(loader))
    state = {name: value for name, value in loader.state_dict().items() if name != "affinity"}
    other = Loader(corpus, 32, affinity="lane")
    other.load_state_dict({**state, "v": 1})
    assert other.order == loader.order
    assert seen(other) == promised(loader.order, 32)[1:]
