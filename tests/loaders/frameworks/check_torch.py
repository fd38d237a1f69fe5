"""Tensors, the loader without workers, and what Lightning and Accelerate ask of a loader."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.corpora import promised
from tests.loaders.frameworks.training import BATCH, LANES, ROWS, loader, make, numbers, run_page
from tiering import Corpus
from tiering.errors import UsageError

torch: Any = pytest.importorskip(
    "torch", reason="torch is not installed: pip install 'corpus-tiering[torch]'"
)

from loaders.torch import TorchDataset, TorchLoader, to_torch  # noqa: E402
from loaders.torch_workers import joined  # noqa: E402

DTYPES = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32",
    "float64", "complex64", "complex128",
]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Corpus]:
    made = make(tmp_path_factory.mktemp("torch"))
    yield made
    made.tier.close()


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensor_shares_the_memory_and_dtype_of_the_array(dtype: str) -> None:
    array = np.arange(6).reshape(3, 2).astype(dtype)
    tensor = to_torch({"x": array})["x"]
    assert tensor.dtype == getattr(torch, dtype)
    assert tensor.data_ptr() == array.ctypes.data
    assert np.array_equal(tensor.numpy(), array)


def test_tensor_of_a_read_only_array_is_a_copy() -> None:
    array = np.arange(3)
    array.flags.writeable = False
    tensor = to_torch(array)
    tensor[0] = 7
    assert array.tolist() == [0, 1, 2]


def test_tensors_stand_where_the_arrays_stood() -> None:
    words = np.array(["a", "b"])
    found = to_torch({"x": [np.arange(2), (np.arange(3)[::-1], "text")], "words": words, "n": 4})
    assert found["x"][0].tolist() == [0, 1]
    assert found["x"][1][0].tolist() == [2, 1, 0]
    assert found["x"][1][1] == "text"
    assert found["words"] is words
    assert found["n"] == 4


def test_parts_of_a_batch_are_joined_by_rows() -> None:
    parts = [{"x": torch.full((2, 3), 7, dtype=torch.uint16), "y": [np.arange(2)]} for _ in range(2)]
    found = joined(parts)
    assert found["x"].shape == (4, 3)
    assert found["x"].dtype == torch.uint16
    assert found["y"][0].tolist() == [0, 1, 0, 1]
    with pytest.raises(UsageError, match="a transform gave a str"):
        joined(["a", "b"])
    assert joined(["a"]) == "a"


def test_loader_gives_the_batches_of_the_order_epoch_after_epoch(corpus: Corpus) -> None:
    own = loader(corpus)
    batches = TorchLoader(own)
    assert len(batches) == len(own) == ROWS // BATCH
    for epoch in range(2):
        found = list(batches)
        assert all(batch["pair"].dtype == torch.uint16 for batch in found)
        assert numbers(found) == promised(own.order, BATCH, epoch=epoch)


def test_loader_resumes_where_its_state_says(corpus: Corpus) -> None:
    batches = TorchLoader(loader(corpus))
    batches.set_epoch(3)
    for _, _batch in zip(range(4), batches, strict=False):
        pass
    state = json.loads(json.dumps(batches.state_dict()))
    assert (state["epoch"], state["position"]) == (3, 4 * BATCH // LANES)
    wanted = promised(batches.loader.order, BATCH, epoch=3, start=state["position"])
    again = TorchLoader(loader(corpus))
    again.load_state_dict(state)
    assert numbers(again) == wanted
    assert again.state_dict()["epoch"] == 4


def test_loader_left_early_begins_the_epoch_anew(corpus: Corpus) -> None:
    batches = TorchLoader(loader(corpus))
    next(iter(batches))
    assert numbers(batches) == promised(batches.loader.order, BATCH)


def test_loader_keeps_the_protocol_of_lightning(corpus: Corpus) -> None:
    """Its fit loop saves `state_dict` where there is one, and calls `sampler.set_epoch` after it."""
    batches = TorchLoader(loader(corpus))
    batches.set_epoch(2)
    next(iter(batches))
    state = batches.state_dict()
    resumed = TorchLoader(loader(corpus))
    resumed.load_state_dict(state)
    found = []
    for epoch in (2, 3):
        for sampler in (resumed.sampler, getattr(resumed.batch_sampler, "sampler", None)):
            if callable(getattr(sampler, "set_epoch", None)):
                sampler.set_epoch(epoch)
        found.append(numbers(resumed))
    order = resumed.loader.order
    assert found == [promised(order, BATCH, epoch=2, start=BATCH // LANES), promised(order, BATCH, epoch=3)]
    assert (resumed.batch_size, resumed.drop_last, resumed.num_workers) == (BATCH, True, 0)
    assert isinstance(resumed.dataset, torch.utils.data.IterableDataset)


def test_loader_passes_accelerate_untouched(corpus: Corpus) -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    batches = TorchLoader(loader(corpus))
    prepared = accelerate.Accelerator(cpu=True).prepare(batches)
    assert prepared is batches


@pytest.mark.parametrize("options", [{"num_workers": -1}, {"prefetch_factor": 0}])
def test_loader_arguments_that_do_not_fit_are_refused(corpus: Corpus, options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="is below 0 or prefetch_factor"):
        TorchLoader(loader(corpus), **options)


@pytest.mark.parametrize("options", [{"num_workers": 2}, {"pin_memory": True}])
def test_loader_whose_batches_are_on_a_gpu_has_neither_workers_nor_pinned_memory(
    corpus: Corpus, options: dict[str, int]
) -> None:
    with pytest.raises(UsageError, match=r"not on device 'cuda:0'.*Leave them out"):
        TorchLoader(loader(corpus, device="cuda:0"), **options)


def test_dataset_gives_no_batches_of_a_gpu_in_a_worker(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = TorchDataset(loader(corpus, device="cuda:0"))
    monkeypatch.setattr("loaders.torch.get_worker_info", lambda: object())
    with pytest.raises(UsageError, match=r"no batches on device 'cuda:0'.*num_workers=0"):
        next(iter(dataset))


def test_loader_of_workers_that_do_not_divide_the_lanes_is_refused(corpus: Corpus) -> None:
    with pytest.raises(UsageError, match="5 workers on each of 2 ranks do not divide its 12 lanes") as caught:
        TorchLoader(loader(corpus, rank=0, world_size=2), num_workers=5)
    assert caught.value.hint == "Set num_workers to one of [1, 2, 3, 6]"


def test_loader_pins_memory_or_says_that_it_cannot(corpus: Corpus) -> None:
    if torch.accelerator.is_available():
        assert next(iter(TorchLoader(loader(corpus), pin_memory=True)))["row"].is_pinned()
    else:
        with pytest.warns(UserWarning, match="torch finds no accelerator"):
            batches = TorchLoader(loader(corpus), pin_memory=True)
        assert numbers(batches) == promised(batches.loader.order, BATCH)


def test_dataset_without_workers_is_the_loader(corpus: Corpus) -> None:
    own = loader(corpus)
    dataset = TorchDataset(own)
    batches = torch.utils.data.DataLoader(dataset, batch_size=None)
    assert len(batches) == len(own)
    assert numbers(batches) == promised(own.order, BATCH)
    assert dataset.state_dict() == own.state_dict()
    dataset.set_epoch(5)
    next(iter(batches))
    state = dataset.state_dict()
    dataset.set_epoch(0)
    dataset.load_state_dict(state)
    assert numbers(batches) == promised(own.order, BATCH, epoch=5, start=BATCH // LANES)


def test_corpus_is_a_map_style_dataset(corpus: Corpus) -> None:
    batches = torch.utils.data.DataLoader(corpus, batch_size=43, shuffle=True)
    found = numbers(batches)
    assert sorted(row for rows in found for row in rows) == list(range(ROWS))
    assert [len(rows) for rows in found] == [43] * (ROWS // 43)


def test_page_runs(tmp_path: Path) -> None:
    steps = run_page("torch", tmp_path)
    assert [tokens.shape for (tokens,) in steps] == [(256, 9)] * 2
    assert steps[0][0].dtype == torch.int64
