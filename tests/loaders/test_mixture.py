"""Mixtures of corpora against a brute-force oracle, row by row from `policies.Mixture`."""

from __future__ import annotations

import itertools
import json
import pickle
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders import Loader, Mixture
from loaders.mixed import mixture_ahead
from loaders.mixture_state import MixtureState
from tests.corpora import columns, joined, make_corpus, memory_corpus
from tiering import Corpus, NodeCache, ingest, open_tier
from tiering.errors import Conflict, Corrupt, FormatError, UnsupportedVersion, UsageError
from tiering.stores import file_kept

Rows = list[list[tuple[int, int]]]
WEIGHTS = {"web": 0.75, "code": 0.25}
SCHEDULE = {3: {"web": 0.0, "code": 1.0}, 7: {"web": 1.0, "code": 19.0}}
LANES, BATCH = 4, 24


@pytest.fixture(scope="module")
def corpora() -> Iterator[dict[str, Corpus]]:
    """150 rows in blocks of 8, and 61 in blocks of 5."""
    with memory_corpus(150, 8, 4) as web, memory_corpus(61, 5, 3) as code:
        yield {"web": web, "code": code}


def promised(mixture: Mixture, first: int, last: int, rank: int = 0, world: int = 1) -> Rows:
    """Corpus and row of each row of batches [first, last) of a rank."""
    order = mixture.order
    step = mixture.batch_size * mixture.world_size // order.lanes
    batches = []
    for number in range(first, last):
        draws = [
            order.rows(lane, number * step, (number + 1) * step) for lane in order.rank_lanes(rank, world)
        ]
        batches.append(
            [pair for draw in draws for pair in zip(draw.corpora.tolist(), draw.rows.tolist(), strict=True)]
        )
    return batches


def seen(mixture: Mixture) -> Rows:
    """Corpus and row of each row of the batches of one loop, after a check of every column."""
    found = []
    for batch in mixture:
        rows = batch["row"].tolist()
        assert np.array_equal(batch["pair"], columns(rows)["pair"])
        assert batch["source"].dtype == np.int8
        found.append(list(zip(batch["source"].tolist(), rows, strict=True)))
    return found


def mixture_of(corpora: dict[str, Corpus], world: int = 1, rank: int = 0, **options: Any) -> Mixture:
    given = {"schedule": SCHEDULE, "steps": 12, "lanes": LANES, "window_blocks": 2, "source": True}
    return Mixture(
        corpora, options.pop("weights", WEIGHTS), BATCH // world, rank=rank, world_size=world,
        **{**given, **options},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shuffle", "affinity"),
    [("window", "global"), ("window", "lane"), ("none", "global"), ("full", "global")],
)
def test_mixture_gives_every_rank_the_batches_of_the_oracle(
    corpora: dict[str, Corpus], shuffle: str, affinity: str
) -> None:
    whole = None
    for world in (1, 2, 4):
        ranks = [
            mixture_of(corpora, world, rank, shuffle=shuffle, affinity=affinity) for rank in range(world)
        ]
        found = [seen(rank) for rank in ranks]
        for rank, batches in enumerate(found):
            assert batches == promised(ranks[rank], 0, 12, rank, world)
        assert whole in (None, joined(*found))  # type: ignore[arg-type]
        whole = joined(*found)  # type: ignore[arg-type]


def test_mixture_resumes_at_every_step_with_every_world_size(corpora: dict[str, Corpus]) -> None:
    mixture = mixture_of(corpora, seed=11)
    whole = promised(mixture, 0, 12)
    states = [mixture.state_dict(), *(mixture.state_dict() for _ in mixture)]
    assert [state["position"] for state in states] == list(range(0, 78, 6))
    for step, state in enumerate(states):
        world = (1, 2, 4)[step % 3]
        ranks = [mixture_of(corpora, world, rank, schedule=None) for rank in range(world)]
        for rank in ranks:
            rank.load_state_dict(json.loads(json.dumps(state)))
            assert rank.step == step
        assert joined(*map(seen, ranks)) == whole[step:]  # type: ignore[arg-type]
        assert {json.dumps(rank.state_dict()) for rank in ranks} == {json.dumps(states[-1])}


def test_mixture_has_every_row_of_every_epoch_once(corpora: dict[str, Corpus]) -> None:
    mixture = mixture_of(corpora, schedule={2: {"web": 1, "code": 5}, 9: {"web": 5, "code": 1}}, steps=40)
    seen_rows: Counter[tuple[int, int]] = Counter(pair for batch in seen(mixture) for pair in batch)
    for number, name in enumerate(corpora):
        counts = [seen_rows[number, row] for row in range(corpora[name].rows)]
        assert max(counts) - min(counts) <= 2  # lanes drift: one may be an epoch ahead, or behind
        assert sum(counts) == mixture.stats.corpora[name].rows
    assert mixture.stats.rows == 40 * BATCH


def test_mixture_resumes_with_another_batch_size_where_the_last_one_stopped(
    corpora: dict[str, Corpus],
) -> None:
    mixture = mixture_of(corpora, steps=5)
    seen(mixture)
    other = Mixture(corpora, WEIGHTS, 16, lanes=LANES, steps=10, source=True)
    other.load_state_dict(mixture.state_dict())
    batches = seen(other)
    assert len(batches) == 2  # position 30 of 40, by 4
    draws = [mixture.order.rows(lane, 30, 38) for lane in range(LANES)]
    wanted = [list(zip(draw.corpora.tolist(), draw.rows.tolist(), strict=True)) for draw in draws]
    assert batches == [[pair for lane in wanted for pair in lane[at : at + 4]] for at in (0, 4)]


def test_mixture_goes_on_where_it_was_left_and_leaves_no_thread(corpora: dict[str, Corpus]) -> None:
    mixture = mixture_of(corpora, steps=None)
    for _ in mixture:
        break
    assert not [t.name for t in threading.enumerate() if t.name.startswith("tiering-read")]
    batches = iter(mixture)
    rows = list(zip(next(batches)["row"].tolist(), strict=True))
    assert [row for (row,) in rows] == [row for _, row in promised(mixture, 1, 2)[0]]
    new = iter(mixture)
    next(new)
    with pytest.raises(UsageError, match="ended by a newer one"):
        next(batches)
    assert mixture.step == 3
    mixture.load_state_dict(mixture.state_dict())
    with pytest.raises(UsageError, match="ended by a newer one"):
        next(new)


def test_mixture_length_is_its_steps(corpora: dict[str, Corpus]) -> None:
    assert len(mixture_of(corpora)) == 12
    endless = mixture_of(corpora, steps=None)
    assert endless
    with pytest.raises(TypeError, match="without steps"):
        len(endless)


def test_weights_set_in_a_loop_hold_from_the_next_batch_on(corpora: dict[str, Corpus]) -> None:
    mixture = mixture_of(corpora, weights={"web": 1, "code": 0})
    found = []
    for batch in mixture:
        found.append(batch["source"].tolist())
        if mixture.step == 2:
            mixture.set_weights({"web": 0, "code": 1})
    assert found == [[0] * BATCH] * 2 + [[1] * BATCH] * 10  # what was planned is dropped
    assert mixture.state_dict()["weights"] == [[0, [1, 0]], [12, [0, 1]]]
    assert mixture.stats.batches == 12


def test_weights_set_ahead_are_in_the_state(corpora: dict[str, Corpus]) -> None:
    mixture = mixture_of(corpora)
    mixture.set_weights({"web": 1, "code": 2}, step=5)
    other = mixture_of(corpora, schedule=None)
    other.load_state_dict(mixture.state_dict())
    assert other.order == mixture.order
    assert list(mixture.order.changes) == [18, 30]
    mixture.set_weights({"web": 2, "code": 3})
    assert mixture.order.changes == {}
    next(iter(mixture))
    with pytest.raises(UsageError, match="batch 0 was handed out before; the next one is 1"):
        mixture.set_weights(WEIGHTS, step=0)


def test_mixture_hands_out_what_transform_returns_and_only_columns_asked_for(
    corpora: dict[str, Corpus],
) -> None:
    mixture = mixture_of(corpora, columns=["row"], source=False, steps=2, transform=lambda batch: dict(batch))
    assert [list(batch) for batch in mixture] == [["row"], ["row"]]


def test_mixture_pickled_goes_on_where_it_stood(tmp_path: Path) -> None:
    tier = open_tier(tmp_path / "tier", "disk")
    made = {"a": make_corpus(tier, 60, 8, 4, "a"), "b": make_corpus(tier, 40, 8, 4, "b")}
    mixture = Mixture(made, {"a": 2, "b": 1}, 12, lanes=2, steps=4, source=True)
    next(iter(mixture))
    assert seen(pickle.loads(pickle.dumps(mixture))) == promised(mixture, 1, 4)


def test_state_of_a_mixture_is_small_and_refused_by_others(corpora: dict[str, Corpus]) -> None:
    web, code = corpora.values()
    many = {"web-pages": web, "source-code": code, "books": web, "wiki": code}
    weights = dict.fromkeys(many, 0.25)
    mixture = Mixture(
        many, weights, 64, lanes=32, seed=2**64 - 1, schedule={10**9: weights, 2 * 10**9: weights}
    )
    state = mixture.state_dict()
    assert len(json.dumps(state)) < 400
    with pytest.raises(Conflict, match="in that order, by those names"):
        mixture_of(corpora).load_state_dict(state)
    turned = mixture_of(dict(reversed(corpora.items())))
    with pytest.raises(Conflict, match="in that order"):
        turned.load_state_dict(mixture_of(corpora).state_dict())
    with pytest.raises(FormatError, match="not a loader state"):
        Loader(web, 24).load_state_dict(state)
    with pytest.raises(FormatError, match="not a mixture's state"):
        mixture.load_state_dict(Loader(web, 24).state_dict())


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"v": 2}, UnsupportedVersion),
        ({"v": None}, FormatError),
        ({"extra": 1}, FormatError),
        ({"position": 1 << 60}, FormatError),
        ({"position": -1}, FormatError),
        ({"lanes": True}, FormatError),
        ({"lanes": 5}, UsageError),
        ({"mode": 5}, FormatError),
        ({"mode": "sideways"}, UsageError),
        ({"corpora": ["web", "code"]}, FormatError),
        ({"corpora": {"web": 1, "code": 2}}, FormatError),
        ({"weights": []}, FormatError),
        ({"weights": [[0]]}, FormatError),
        ({"weights": [[0, [1]]]}, FormatError),
        ({"weights": [[1, [1, 1]]]}, FormatError),
        ({"weights": [[0, [1, 1]], [5, [1, 1]], [5, [2, 1]]]}, FormatError),
        ({"weights": [[0, [1, -1]]]}, FormatError),
        ({"weights": [[0, [0, 0]]]}, UsageError),
    ],
)
def test_state_that_does_not_fit_is_refused_and_changes_nothing(
    corpora: dict[str, Corpus], changes: dict[str, Any], kind: type[Exception]
) -> None:
    mixture = mixture_of(corpora)
    before = mixture.state_dict()
    with pytest.raises(kind):
        mixture.load_state_dict({**before, **changes})
    assert mixture.state_dict() == before


def test_state_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(FormatError, match="not a mixture's state"):
        MixtureState.from_dict([])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"web": 1}}, "weights are of 'web'; the corpora are 'web', 'code'"),
        ({"weights": {"web": 1, "code": 1, "books": 1}}, "weights are of .*'books'"),
        ({"weights": {"web": 1, "code": -1}}, "weights must be above 0"),
        ({"weights": {"web": 0, "code": 0}}, "weights must be above 0"),
        ({"schedule": {0: WEIGHTS}}, "weights cannot change at step 0"),
        ({"schedule": {1.5: WEIGHTS}}, "weights cannot change at step 1.5"),
        ({"schedule": {3: {"code": 1}}}, "Give each corpus a weight; with 0 it rests"),
        ({"steps": -1}, "steps = -1"),
        ({"prefetch": 0}, "prefetch = 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"shuffle": "some"}, "mode must be one of"),
        ({"lanes": 5}, "does not divide the global batch"),
        ({"columns": ["rows"]}, "no column 'rows'"),
    ],
)
def test_mixture_arguments_that_do_not_fit_are_refused(
    corpora: dict[str, Corpus], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        mixture_of(corpora, **options)


def test_mixture_of_corpora_that_cannot_be_mixed_is_refused(corpora: dict[str, Corpus]) -> None:
    with pytest.raises(UsageError, match="0 corpora cannot be mixed"):
        Mixture({}, {})
    with pytest.raises(UsageError, match="corpus 'code' has 61 rows, fewer than the 64 lanes"):
        Mixture(corpora, WEIGHTS, 64)
    web = corpora["web"]
    with closing(open_tier("memory://mixture-columns")) as tier:
        row = np.arange(40)
        data = {"row": row, "pair": np.zeros((40, 3, 3), np.uint16)}
        other = ingest(data, tier, "c", block_rows=8, progress=False)
        with pytest.raises(
            UsageError, match=r"'pair' is uint16 of shape \(3, 2\) in corpus 'web', but .*\['row'\]"
        ):
            Mixture({"web": web, "other": other}, {"web": 1, "other": 1}, 8)
        more = ingest({**columns(row), "source": row}, tier, "d", block_rows=8, progress=False)
        with pytest.raises(UsageError, match="'source' is missing in corpus 'web', but int64"):
            Mixture({"web": web, "more": more}, {"web": 1, "more": 1}, 8)
        with pytest.raises(UsageError, match="have a column 'source' themselves"):
            Mixture({"more": more}, {"more": 1}, 8, source=True)
        batch = next(
            iter(Mixture({"other": other, "more": more}, {"other": 1, "more": 1}, 8, columns=["row"]))
        )
        assert list(batch) == ["row"]


def make(folder: Path, rows: int, **options: Any) -> Corpus:
    """Rows of 320 bytes, long enough to be read straight to their places, in blocks of 8."""
    data = {"row": np.arange(rows), "wide": wide(np.arange(rows))}
    tier = open_tier(folder, "disk")
    return ingest(data, tier, "c", shard_size=4 * 8 * 400, block_rows=8, progress=False, **options)


def wide(rows: Any) -> np.ndarray[Any, Any]:
    return (np.asarray(rows)[:, None] * 3 + np.arange(160)).astype(np.uint16)


def check_wide(mixture: Mixture, steps: int) -> None:
    for number, batch in enumerate(mixture):
        (wanted,) = promised(mixture, number, number + 1)
        assert batch["row"].tolist() == [row for _, row in wanted]
        np.testing.assert_array_equal(batch["wide"], wide(batch["row"]))
    assert mixture.step == steps


@pytest.mark.parametrize("options", [{}, {"codec": "zstd:1"}, {"format": "arrow"}])
def test_blocks_of_a_corpus_drawn_seldom_are_read_once_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(file_kept, "_SETTLED_NS", 0)
    corpora = {"often": make(tmp_path / "a", 200, **options), "seldom": make(tmp_path / "b", 40, **options)}
    mixture = Mixture(corpora, {"often": 14, "seldom": 1}, 30, lanes=1, window_blocks=2, steps=41)
    check_wide(mixture, 41)
    stats = mixture.stats
    for name, epochs in (("often", 1230 * 14 / 15 / 200), ("seldom", 1230 / 15 / 40)):
        stored = mixture._readers[name].stored_bytes
        assert stats.corpora[name].bytes_needed <= (int(epochs) + 1) * stored
    assert stats.bytes_needed == sum(corpus.bytes_needed for corpus in stats.corpora.values())
    assert [corpus.epoch for corpus in stats.corpora.values()] == [5, 2]


def test_memory_of_batches_is_that_of_the_windows_whatever_the_weights(corpora: dict[str, Corpus]) -> None:
    for weights in ({"web": 1, "code": 1}, {"web": 199, "code": 1}):
        mixture = mixture_of(corpora, weights=weights, schedule=None, steps=60)
        addresses = {batch["pair"].__array_interface__["data"][0] for batch in mixture}
        assert len(addresses) <= mixture_ahead(mixture.order, 6) + 3  # those of this loop, and one looked at


def test_mixture_reads_through_one_cache_and_tells_what_each_corpus_took(tmp_path: Path) -> None:
    corpora = {"a": make(tmp_path / "a", 64), "b": make(tmp_path / "b", 64)}
    total = sum(corpus.nbytes for corpus in corpora.values())
    with closing(NodeCache(tmp_path / "cache", 2 * total)) as cache:
        for fetched in (True, False):
            mixture = Mixture(corpora, {"a": 3, "b": 1}, 16, lanes=2, window_blocks=1, steps=20, cache=cache)
            check_wide(mixture, 20)
            stats = mixture.stats
            for corpus in stats.corpora.values():
                assert (corpus.bytes_fetched > 0) == fetched
                assert (corpus.hit_ratio == 1) == (not fetched)
            assert stats.bytes_fetched == sum(corpus.bytes_fetched for corpus in stats.corpora.values())
            assert stats.bytes_fetched <= total
            assert (stats.hit_ratio == 1) == (not fetched)
            assert stats.seconds > 0
            assert stats.rows_per_second > 0


def test_mixture_meets_a_damaged_block_as_a_loader_does(tmp_path: Path) -> None:
    corpora = {"a": make(tmp_path / "a", 64), "b": make(tmp_path / "b", 64)}
    (shard,) = (tmp_path / "b").rglob("c/wide/c/0/0")
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    mixture = Mixture(corpora, {"a": 1, "b": 1}, 16, lanes=2, steps=20)
    with pytest.raises(Corrupt, match="no good copy"):
        check_wide(mixture, 20)
    # Every thread that came upon it says so.
    assert set(mixture.stats.damaged) == {("disk", "c/wide/c/0/0")}


def test_mixture_takes_weights_for_its_next_batch_after_a_state_of_another_batch_size(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    rows = {name: {"x": np.arange(64) + start} for name, start in (("a", 0), ("b", 1000))}
    corpora = {name: ingest(some, tier, name, progress=False) for name, some in rows.items()}
    small = Mixture(corpora, {"a": 1, "b": 1}, 4, lanes=4)
    for _ in itertools.islice(small, 3):
        pass
    large = Mixture(corpora, {"a": 1, "b": 1}, 8, lanes=4, steps=5)
    large.load_state_dict(small.state_dict())
    large.set_weights({"a": 0, "b": 1}, large.step + 1)
    large.set_weights({"a": 1, "b": 0}, large.step)
    assert (next(iter(large))["x"] < 1000).all()
    with pytest.raises(UsageError, match="was handed out before"):
        large.set_weights({"a": 0, "b": 1}, large.step - 1)
    large.set_weights({"a": 0, "b": 1}, large.step + 1)
    first, second = itertools.islice(large, 2)
    assert (first["x"] < 1000).all()
    assert (second["x"] >= 1000).all()
