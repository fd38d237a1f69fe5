"""What a task of an ingest refuses to write."""

from __future__ import annotations

import sys
from typing import Any

import dask.array as da
import numpy as np
import pytest

from tests.tiering.corpora import objects
from tiering import Tier, ingest, verify
from tiering.claim import claims
from tiering.errors import Conflict, UsageError


@pytest.mark.parametrize("layout", ["arrow", "zarr"])
@pytest.mark.parametrize("told", ["f4", "i4"])
def test_rows_of_another_type_than_the_source_said_are_refused(lake: Tier, layout: str, told: str) -> None:
    meta = np.array((), told)
    array = da.arange(1000, chunks=100).map_blocks(lambda part: part * 1e-3 + 1e300, dtype=told, meta=meta)
    with pytest.raises(UsageError, match=r"column 'x'.*float64"):
        ingest({"x": array}, lake, "a", format=layout)
    assert not [key for key in objects(lake) if "/.tiering/" not in key]


def test_dask_array_of_objects_is_refused(lake: Tier) -> None:
    with pytest.raises(UsageError, match="column 'x' has dtype object"):
        ingest({"x": da.from_array(np.array(["a", "b"], object), chunks=1)}, lake, "a")


def test_task_whose_claim_another_process_took_over_writes_nothing(
    lake: Tier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a cluster that outlives its client: the worker goes on while somebody else has the name."""
    module: Any = sys.modules["tiering.ingest"]
    real = module.write_shard

    def late(part: Any, target: Any, number: int) -> Any:
        line = claims(lake.store, "web")
        for claim in line.all():
            lake.store.delete(line.key(claim.number))
        return real(part, target, number)

    monkeypatch.setattr(module, "write_shard", late)
    with pytest.raises(Conflict, match="not held any more"):
        ingest({"x": np.arange(1000)}, lake, "web")
    assert not [key for key in objects(lake) if "/.tiering/" not in key]


def test_dask_array_of_the_same_name_and_other_rows_is_not_taken_for_what_is_there(lake: Tier) -> None:
    ones = {"x": da.ones((1000, 4), dtype="i4", chunks=100)}
    corpus = ingest(ones, lake, "web", shard_size="8KiB")
    assert ingest(ones, lake, "web", shard_size="8KiB").record == corpus.record
    zeros = {"x": da.from_array(np.zeros((1000, 4), "i4"), chunks=100, name=ones["x"].name)}
    with pytest.raises(Conflict, match="gives other rows than it did"):
        ingest(zeros, lake, "web", shard_size="8KiB")
    key = corpus.key(corpus.manifest["key"][1].as_py())
    lake.store.delete(key)  # so that some of it has to be written again
    before = {key: data for key, data in objects(lake).items() if "/.tiering/" not in key}
    with pytest.raises(Conflict, match="gives other rows than it did"):
        ingest(zeros, lake, "web", shard_size="8KiB")
    assert {key: data for key, data in objects(lake).items() if "/.tiering/" not in key} == before
    ingest(ones, lake, "web", shard_size="8KiB")
    assert verify(corpus).ok
