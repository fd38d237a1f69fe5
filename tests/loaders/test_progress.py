"""The bar around a loader: it changes no batch, tells where bytes come from, and needs a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from loaders import Loader, progress
from loaders.stats import LoaderStats
from tests.corpora import memory_corpus, promised
from tiering import Corpus, NodeCache


@pytest.fixture(scope="module")
def corpus() -> Iterator[Corpus]:
    with memory_corpus(96, 16, 4) as made:
        yield made


def test_progress_gives_the_batches_and_draws_a_bar(corpus: Corpus, tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, "1MiB")
    loader = Loader(corpus, 24, cache=cache)
    for epoch in range(2):
        written = io.StringIO()
        console = Console(file=written, force_terminal=True, width=160, color_system=None)
        found = [batch["row"].tolist() for batch in progress(loader, show=True, console=console)]
        assert found == promised(loader.order, 24, epoch=epoch)
        last = written.getvalue().splitlines()[-2]
        assert f"epoch {epoch}" in last
        assert "4/4" in last
        assert "rows/s" in last
        assert ("corpora-" in last) == (epoch == 0)  # from the tier at first, then from the cache
        assert "node cache" in last
        assert ("hits 100%" in last) == (epoch == 1)
    cache.close()


def test_progress_counts_from_where_a_state_was_taken(corpus: Corpus) -> None:
    loader = Loader(corpus, 24)
    for step, _ in enumerate(progress(loader)):
        if step == 2:
            break
    fresh = Loader(corpus, 24)
    fresh.load_state_dict(loader.state_dict())
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=160, color_system=None)
    assert len(list(progress(fresh, show=True, console=console))) == 1
    assert "4/4" in written.getvalue().splitlines()[-2]


def test_progress_is_silent_without_a_terminal(corpus: Corpus, capfd: pytest.CaptureFixture[str]) -> None:
    assert len(list(progress(Loader(corpus, 24)))) == 4
    assert capfd.readouterr() == ("", "")


def test_shares_of_an_epoch_that_has_not_begun_are_zero() -> None:
    stats = LoaderStats(0, 0.0)
    assert (stats.stall_share, stats.hit_ratio, stats.rows_per_second) == (0, 0, 0)
