from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from loaders import Loader
from loaders.arrow import to_polars, to_record_batch
from tests.corpora import columns, memory_corpus, promised
from tests.loaders.frameworks.training import run_page
from tiering.errors import UsageError

BATCH: dict[str, Any] = {**columns(range(5)), "flag": np.arange(5) % 2 == 0, "wave": np.arange(5) * 1j}


def test_record_batch_has_the_values_types_and_memory_of_the_batch() -> None:
    found = to_record_batch(BATCH)
    found.validate(full=True)
    assert found.num_rows == 5
    assert found["row"].to_pylist() == BATCH["row"].tolist()
    assert found["pair"].to_pylist() == BATCH["pair"].tolist()
    assert found["flag"].to_pylist() == BATCH["flag"].tolist()
    assert found["row"].buffers()[1].address == BATCH["row"].ctypes.data
    assert found["pair"].flatten().flatten().buffers()[-1].address == BATCH["pair"].ctypes.data
    assert not any(field.nullable for field in found.schema)


def test_record_batch_takes_order_nullability_and_metadata_from_a_schema() -> None:
    schema = pa.schema(
        [pa.field("extra", pa.string()), pa.field("flag", pa.bool_()), pa.field("row", pa.int64())],
        {"a": "b"},
    )
    found = to_record_batch({name: BATCH[name] for name in ("row", "flag")}, schema)
    assert found.schema.equals(pa.schema([schema.field(1), schema.field(2)], {"a": "b"}), check_metadata=True)
    assert found.to_pylist()[3] == {"flag": False, "row": 3}


@pytest.mark.parametrize(
    ("batch", "schema", "message"),
    [
        ({"row": np.arange(3)}, pa.schema([("text", pa.string())]), "no column 'row'"),
        ({"row": np.arange(300)}, pa.schema([("row", pa.int8())]), "no record batch of that schema"),
        ({"row": np.arange(3), "other": np.arange(4)}, None, "no record batch of that schema"),
        ({"text": np.array(["a"])}, None, "which the Zarr layout does not store"),
    ],
)
def test_record_batch_that_does_not_fit_is_refused(batch: Any, schema: pa.Schema, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        to_record_batch(batch, schema)


def test_record_batch_without_rows_keeps_its_types() -> None:
    found = to_record_batch({name: values[:0] for name, values in BATCH.items()})
    assert found.num_rows == 0
    assert found.schema.equals(to_record_batch(BATCH).schema)


def test_loader_gives_record_batches_by_a_transform() -> None:
    with memory_corpus(100, 8, 3) as corpus:
        loader = Loader(corpus, 32, transform=to_record_batch)
        found = list(loader)
        assert [batch["row"].to_pylist() for batch in found] == promised(loader.order, 32)
        assert all(batch.schema.equals(corpus.schema) for batch in found)


def test_polars_frame_has_the_values_of_the_batch() -> None:
    polars = pytest.importorskip(
        "polars", reason="polars is not installed: pip install 'corpus-tiering[polars]'"
    )
    found = to_polars({name: BATCH[name] for name in ("row", "pair", "flag")})
    assert found.schema["pair"] == polars.Array(polars.Array(polars.UInt16, 2), 3)
    assert found["row"].to_list() == BATCH["row"].tolist()
    assert np.array_equal(found["pair"].to_numpy(), BATCH["pair"])


def test_page_runs(tmp_path: Path) -> None:
    pytest.importorskip("polars", reason="polars is not installed: pip install 'corpus-tiering[polars]'")
    (first, rows), *_ = steps = run_page("Arrow and polars", tmp_path)
    assert first.names == ["tokens"]
    assert rows == 256
    assert len(steps) == 4
