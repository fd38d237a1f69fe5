"""Workers in processes of their own, started in each of the three ways."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.corpora import promised
from tests.loaders.frameworks.training import BATCH, LANES, loader, make, numbers
from tiering import Corpus, NodeCache
from tiering.errors import UsageError
from tiering.monitor.stats import COUNTERS

torch: Any = pytest.importorskip(
    "torch", reason="torch is not installed: pip install 'corpus-tiering[torch]'"
)

from torch.utils.data import DataLoader  # noqa: E402

from loaders.torch import TorchDataset, TorchLoader  # noqa: E402

# From Python 3.12 on a fork warns where threads run: torch's do.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Corpus]:
    made = make(tmp_path_factory.mktemp("workers"))
    yield made
    made.tier.close()


@pytest.mark.parametrize("context", ["forkserver", "spawn", "fork"])
def test_workers_give_the_very_batches_of_the_loader(corpus: Corpus, context: str) -> None:
    own = loader(corpus)
    next(iter(own))  # files are open and locks were made before the workers start
    own.set_epoch(0)
    batches = TorchLoader(own, num_workers=2, multiprocessing_context=context)
    order = own.order
    assert numbers(batches) == promised(order, BATCH)
    assert batches.state_dict()["epoch"] == 1

    running = iter(batches)
    found = numbers(itertools.islice(running, 3))
    assert found == promised(order, BATCH, epoch=1)[:3]
    state = batches.state_dict()  # whatever the workers have read ahead
    assert (state["epoch"], state["position"]) == (1, 3 * BATCH // LANES)
    assert numbers(batches) == promised(order, BATCH, epoch=1)
    with pytest.raises(UsageError, match="ended by a newer one"):
        next(running)

    batches.load_state_dict(state)
    batches.set_epoch(1)
    assert numbers(batches) == promised(order, BATCH, epoch=1, start=state["position"])
    alone = loader(corpus)
    alone.load_state_dict(state)
    assert numbers(alone) == promised(order, BATCH, epoch=1, start=state["position"])


def test_workers_of_every_rank_give_its_share_with_short_batches_too(corpus: Corpus) -> None:
    own = loader(corpus, rank=1, world_size=2, drop_last=False)
    batches = TorchLoader(own, num_workers=2, multiprocessing_context="fork")
    assert numbers(batches) == promised(own.order, BATCH, 1, 2, drop_last=False)


def test_stats_of_workers_are_those_of_the_loader(corpus: Corpus, tmp_path: Path) -> None:
    with closing(NodeCache(tmp_path / "cache", "1GB")) as cache:
        batches = TorchLoader(loader(corpus, cache=cache), num_workers=2, multiprocessing_context="spawn")
        assert (batches.stats.rows, batches.stats.batches) == (0, 0)
        before = COUNTERS.snapshot()
        for number, _ in enumerate(batches, 1):
            assert (batches.stats.batches, batches.stats.rows) == (number, number * BATCH)
        alone = loader(corpus)
        for _ in alone:
            pass
        stats = batches.stats
        assert (stats.epoch, stats.rows) == (0, alone.stats.rows)
        assert stats.bytes_needed >= alone.stats.bytes_needed  # a block of two workers' lanes is read twice
        assert stats.bytes_read[corpus.tier.name] > 0
        assert stats.bytes_fetched > 0
        assert 0 < stats.stall_seconds <= stats.seconds
        found = COUNTERS.snapshot()
        assert found["loaded"]["rows"] - before["loaded"]["rows"] == 2 * stats.rows  # once here, once alone
        moved = found["moved"][corpus.tier.name]["read"] - before["moved"][corpus.tier.name]["read"]
        assert moved > alone.stats.bytes_read[corpus.tier.name]

        state = batches.state_dict()
        batches.load_state_dict(state | {"position": 2 * BATCH // LANES})
        for _ in batches:
            pass
        assert (batches.stats.epoch, batches.stats.passed_batches) == (1, 2)
        assert batches.stats.hit_ratio == 1.0
        assert batches.stats.bytes_fetched == 0


def test_dataset_in_workers_gives_each_row_once_and_the_rows_of_global_steps(corpus: Corpus) -> None:
    own = loader(corpus)
    dataset = TorchDataset(own)
    batches = DataLoader(
        dataset, batch_size=None, num_workers=2, multiprocessing_context="fork", persistent_workers=True
    )
    for epoch in (0, 4):
        dataset.set_epoch(epoch)
        wanted = promised(own.order, BATCH, epoch=epoch)
        found = numbers(batches)
        assert all(len(rows) == BATCH for rows in found)
        assert len(found) == len(wanted) // 2 * 2
        for step in range(0, len(found), 2):
            pair = slice(step, step + 2)
            assert sorted(itertools.chain(*found[pair])) == sorted(itertools.chain(*wanted[pair]))
