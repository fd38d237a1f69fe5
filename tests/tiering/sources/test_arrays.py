from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pyarrow as pa
import pytest

from tiering.errors import UsageError
from tiering.sources.arrays import ArraySource, checked_array
from tiering.sources.dask_arrays import DaskArraySource
from tiering.sources.open import open_source


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({}, "no column"),
        ({"a": np.zeros(0)}, "0 rows"),
        ({"a": np.zeros((0, 3))}, "0 rows"),
        ({"a": np.zeros(3), "b": np.zeros(5)}, "'a' has 3, 'b' has 5 rows"),
        ({"a": np.array([1, "x"], object)}, "column 'a' has dtype object"),
        ({"a": np.array(7)}, "column 'a' is a scalar"),
        ({"a": 7}, "column 'a' is a scalar"),
        ({"a": [[1], [2, 3]]}, "column 'a' is no array"),
        ({"a": np.ma.array([1, 2], mask=[0, 1])}, "column 'a' has masked values"),
        ({"a": np.array(["x"])}, "column 'a' has dtype <U1"),
        ({"a": np.array(["2020-01-01"], "M8[D]")}, "column 'a' has dtype datetime64"),
        ({"a": np.zeros(3, [("x", "i4")])}, "column 'a' has dtype"),
        ({"a": np.zeros((3, 0))}, "'a'"),
        ({"a/b": np.zeros(3)}, "'a/b' is nested"),
        ({"zarr.json": np.zeros(3)}, "reserved"),
        ({".hidden": np.zeros(3)}, "reserved"),
        ({"..": np.zeros(3)}, "'..'"),
    ],
)
def test_arrays_that_cannot_be_stored_are_refused_by_name(arrays: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_source(arrays)
    assert told in str(caught.value)


def test_arrays_in_memory_are_cut_without_a_copy() -> None:
    array = np.arange(30).reshape(10, 3)
    source = open_source({"a": array, "b": list(range(10))})
    part = source.part(3, 7)
    assert source.in_memory
    assert (source.rows, source.row_bytes, source.schema.names) == (10, 32, ["a", "b"])
    assert np.shares_memory(part["a"], array)
    np.testing.assert_array_equal(part["a"], array[3:7])
    assert part["b"].tolist() == [3, 4, 5, 6]


@pytest.mark.parametrize("dtype", ["bool", "i1", "u2", "<i4", ">i4", ">u2", "f2", "f4", ">f8", "c8", ">c16"])
def test_arrays_of_any_dtype_and_memory_order_have_a_schema(dtype: str) -> None:
    array = np.arange(24).reshape(4, 3, 2).astype(dtype)
    for given in (array, np.asfortranarray(array), array[::-1], array[:, ::2], array.transpose(0, 2, 1)):
        source = ArraySource({"a": given})
        assert source.rows == 4
        assert len(source.fingerprint) == 64


def test_arrays_fingerprint_follows_the_values() -> None:
    array = np.arange(12, dtype=np.int32).reshape(6, 2)
    first = ArraySource({"a": array}).fingerprint
    assert ArraySource({"a": np.asfortranarray(array)}).fingerprint == first
    assert ArraySource({"a": array.copy()}).fingerprint == first
    other = array.copy()
    other[5, 1] += 1
    for given in ({"a": other}, {"b": array}, {"a": array.reshape(6, 2, 1)}, {"a": array.astype(np.uint32)}):
        assert ArraySource(given).fingerprint != first


def test_arrays_mapped_from_a_file_are_read_in_place(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(20).reshape(10, 2))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    source = ArraySource({"a": mapped})
    assert np.shares_memory(source.part(2, 5)["a"], mapped)
    np.testing.assert_array_equal(source.part(2, 5)["a"], [[4, 5], [6, 7], [8, 9]])


def test_dask_arrays_of_unknown_length_are_refused() -> None:
    array = da.from_array(np.arange(10), chunks=5)
    with pytest.raises(UsageError, match=r"column 'a' is a Dask array of unknown shape.*compute_chunk_sizes"):
        open_source({"a": array[array > 3]})
    with pytest.raises(UsageError, match="unknown shape"):
        open_source({"a": da.from_array(np.array(3))})
    with pytest.raises(UsageError, match="unequal length"):
        open_source({"a": array, "b": da.ones(7)})


def test_dask_arrays_are_cut_across_chunks() -> None:
    array = np.arange(22).reshape(11, 2)
    source = open_source({"a": da.from_array(array, chunks=(3, 1)), "b": da.arange(11, chunks=4)})
    assert isinstance(source, DaskArraySource)
    assert not source.in_memory
    part = source.part(2, 8).compute(scheduler="synchronous")
    np.testing.assert_array_equal(part["a"], array[2:8])
    assert part["b"].tolist() == [2, 3, 4, 5, 6, 7]


def test_dask_arrays_beside_numpy_stay_in_this_process() -> None:
    source = open_source({"a": da.ones(5, chunks=2), "b": np.arange(5)})
    assert source.in_memory
    assert source.part(1, 3).compute(scheduler="synchronous")["b"].tolist() == [1, 2]


@pytest.mark.parametrize("source", [None, 7, [], {1, 2}, [np.zeros(3)], np.zeros(3)])
def test_sources_of_no_known_kind_say_what_to_give(source: Any) -> None:
    with pytest.raises(UsageError, match="cannot ingest"):
        open_source(source)


def test_sources_with_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="are for paths, not for dict"):
        open_source({"a": np.zeros(3)}, "text")
    with pytest.raises(UsageError, match="no reader 'csv'"):
        open_source(tmp_path, "csv")
    with pytest.raises(UsageError, match="'parquet' has no options"):
        open_source(tmp_path, "parquet", {"a": 1})
    source = ArraySource({"a": np.zeros(3)})
    assert open_source(source) is source
    assert open_source(pa.record_batch({"a": [1]})).rows == 1


def test_what_cannot_become_an_array_is_told() -> None:
    class OnAnotherDevice:
        def __array__(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("copy it to the host first")

    with pytest.raises(UsageError, match="column 'x' is no array: copy it to the host first"):
        checked_array("x", OnAnotherDevice())
