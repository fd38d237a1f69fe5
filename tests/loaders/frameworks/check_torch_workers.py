"""Workers in processes of their own, started in each of the three ways."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from tests.corpora import promised
from tests.loaders.frameworks.training import BATCH, LANES, loader, make, numbers
from tiering import Corpus
from tiering.errors import UsageError

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
