"""What the dashboard hears of loops: all rows, and the time they took, of one loop after another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from loaders import Loader, Mixture
from loaders.tally import Tally
from tests.corpora import memory_corpus
from tiering import Corpus
from tiering.monitor.stats import COUNTERS


@pytest.fixture
def corpus() -> Iterator[Corpus]:
    COUNTERS.reset()
    with memory_corpus(640, 4, 4) as corpus:
        yield corpus


def test_tally_adds_what_came_since_the_batch_before() -> None:
    COUNTERS.reset()
    tally = Tally()
    tally.add(8, 0.5, 0.125)
    tally.add(4, 2.0, 0.25)
    loaded = COUNTERS.snapshot()["loaded"]
    assert loaded == {"rows": 12, "nanoseconds": 2 * 10**9, "stall_nanoseconds": 25 * 10**7}


def test_loader_counts_the_rows_and_time_of_all_its_loops(corpus: Corpus) -> None:
    loader, seconds, stalls = Loader(corpus, 32), 0.0, 0.0
    for _epoch in range(2):
        assert sum(1 for _ in loader) == len(loader)
        seconds, stalls = seconds + loader.stats.seconds, stalls + loader.stats.stall_seconds
    loaded = COUNTERS.snapshot()["loaded"]
    assert loaded["rows"] == 2 * 32 * len(loader)
    assert loaded["nanoseconds"] == pytest.approx(seconds * 1e9, abs=1e4)
    assert loaded["stall_nanoseconds"] == pytest.approx(stalls * 1e9, abs=1e4)


def test_mixture_counts_its_rows_and_time(corpus: Corpus) -> None:
    mixture = Mixture({"a": corpus, "b": corpus}, {"a": 3, "b": 1}, 16, steps=20)
    assert sum(1 for _ in mixture) == 20
    loaded = COUNTERS.snapshot()["loaded"]
    assert loaded["rows"] == 20 * 16
    assert loaded["nanoseconds"] == pytest.approx(mixture.stats.seconds * 1e9, abs=1e4)
    assert loaded["stall_nanoseconds"] <= loaded["nanoseconds"]
