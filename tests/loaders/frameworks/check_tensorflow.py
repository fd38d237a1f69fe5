from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders import Loader
from tests.corpora import columns, memory_corpus, promised
from tests.loaders.frameworks.training import run_page
from tiering.errors import UsageError

tf: Any = pytest.importorskip(
    "tensorflow", reason="tensorflow is not installed: pip install 'corpus-tiering[tensorflow]'"
)

from loaders.tensorflow import signature, to_dataset  # noqa: E402


def test_dataset_gives_an_epoch_in_order_for_each_iteration() -> None:
    with memory_corpus(100, 8, 3) as corpus:
        loader = Loader(corpus, 32)
        dataset = to_dataset(loader)
        assert dataset.element_spec == signature(loader)
        assert dataset.element_spec["pair"] == tf.TensorSpec((32, 3, 2), tf.uint16)
        for epoch in range(2):
            found = [{name: value.numpy() for name, value in batch.items()} for batch in dataset]
            assert [batch["row"].tolist() for batch in found] == promised(loader.order, 32, epoch=epoch)
            assert all(np.array_equal(batch["pair"], columns(batch["row"])["pair"]) for batch in found)
        assert loader.state_dict()["epoch"] == 2


def test_dataset_of_a_short_last_batch_has_no_static_rows() -> None:
    with memory_corpus(100, 8, 3) as corpus:
        dataset = to_dataset(Loader(corpus, 32, columns=["row"], drop_last=False))
        assert dataset.element_spec == {"row": tf.TensorSpec((None,), tf.int64)}
        assert sorted(row for batch in dataset for row in batch["row"].numpy()) == list(range(100))


def test_dataset_of_a_transform_needs_its_signature() -> None:
    with memory_corpus(100, 8, 3) as corpus:
        loader = Loader(corpus, 32, transform=lambda batch: batch["row"])
        with pytest.raises(UsageError, match="output_signature"):
            to_dataset(loader)
        dataset = to_dataset(loader, tf.TensorSpec((32,), tf.int64))
        assert next(iter(dataset)).numpy().tolist() == promised(loader.order, 32)[0]


def test_page_runs(tmp_path: Path) -> None:
    steps = run_page("TensorFlow", tmp_path)
    assert [tokens.shape for (tokens,) in steps] == [(256, 9)] * 2
