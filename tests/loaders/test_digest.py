"""The digest of what was handed out: equal for equal rows however they came, and for no others."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Any

import numpy as np
import pytest

from loaders import Loader
from loaders.digest import RowsDigest, RowsHasher
from tests.corpora import make_corpus, memory_corpus
from tiering import Corpus, open_tier
from tiering.errors import UsageError


@pytest.fixture(scope="module")
def corpus() -> Iterator[Corpus]:
    """200 rows in shards of 32, blocks of 8."""
    with memory_corpus(200, 8, 4) as made:
        yield made


def whole(corpus: Corpus, rank: int = 0, world: int = 1, **options: Any) -> RowsDigest:
    loader = Loader(corpus, 24 // world, rank=rank, world_size=world, lanes=12, digest=True, **options)
    for _ in loader:
        pass
    return loader.digest()


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("world", [2, 3, 12])
def test_digests_of_all_ranks_add_up_to_that_of_one(corpus: Corpus, world: int, drop_last: bool) -> None:
    parts = [whole(corpus, rank, world, drop_last=drop_last) for rank in range(world)]
    one = whole(corpus, drop_last=drop_last)
    assert reduce(RowsDigest.__add__, parts) == one
    assert one.rows == (192 if drop_last else 200)
    assert len({part.value for part in parts}) == world


def test_digests_before_and_after_a_resume_add_up(corpus: Corpus) -> None:
    first = Loader(corpus, 24, lanes=12, digest=True)
    batches = iter(first)
    for _ in range(3):
        next(batches)
    ranks = [Loader(corpus, 8, rank=rank, world_size=3, lanes=12, digest=True) for rank in range(3)]
    for loader in ranks:
        loader.load_state_dict(first.state_dict())
        for _ in loader:
            pass
    rest = reduce(RowsDigest.__add__, [loader.digest() for loader in ranks])
    assert first.digest() + rest == whole(corpus)


def test_format_tier_and_threads_change_nothing(corpus: Corpus, tmp_path: Any) -> None:
    arrow = make_corpus(open_tier(tmp_path), 200, 8, 4, format="arrow")
    assert whole(arrow).value == whole(corpus).value == whole(corpus, prefetch=1).value


@pytest.mark.parametrize(
    "other",
    [{"seed": 8}, {"shuffle": "none"}, {"rows": range(199)}, {"columns": ["row"]}, {"window_blocks": 1}],
)
def test_other_rows_or_places_have_another_digest(corpus: Corpus, other: dict[str, Any]) -> None:
    assert whole(corpus, **other).value != whole(corpus).value


def test_epochs_have_digests_of_their_own(corpus: Corpus) -> None:
    loader = Loader(corpus, 24, digest=True)
    found = []
    for _ in range(2):
        for _ in loader:
            pass
        found.append(loader.digest())
    assert [one.epoch for one in found] == [0, 1]
    assert found[0].value != found[1].value
    with pytest.raises(UsageError, match="do not join"):
        _ = found[0] + found[1]


def test_a_single_bit_or_two_rows_exchanged_show() -> None:
    rows = np.random.default_rng(7).integers(0, 255, (16, 11), np.uint8)
    digests = set()
    for change in range(20):
        changed = rows.copy()
        if change < 16:
            changed[change, change % 11] ^= 1 << change % 8
        elif change < 19:
            changed[[change - 16, change - 10]] = changed[[change - 10, change - 16]]
        hasher = RowsHasher(0, 0, range(2), [8, 8])
        digests.add(hasher.update({"x": changed}, 8).value)
    assert len(digests) == 20


def test_the_digest_is_what_it_ever_was() -> None:
    hasher = RowsHasher(1, 3, range(2, 4), [7, 6])
    batch = {"x": np.arange(14, dtype="<u2").reshape(7, 2), "y": np.arange(7, dtype="<f8")}
    assert str(hasher.update(batch, 7)) == "epoch 1, positions 3-7, 7 rows: dd7e2557724680d843b804160c8468e1"


def test_without_asking_for_it_there_is_none(corpus: Corpus) -> None:
    loader = Loader(corpus, 24)
    next(iter(loader))
    with pytest.raises(UsageError, match="digest=True"):
        loader.digest()
    with pytest.raises(UsageError, match="begin a loop"):
        Loader(corpus, 24, digest=True).digest()
