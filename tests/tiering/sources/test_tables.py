from __future__ import annotations

import itertools
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiering.errors import Conflict, FormatError, NotFound, UsageError
from tiering.sources.open import open_source
from tiering.sources.tables import DatasetSource, TableSource, parquet_source


def table(rows: int, start: int = 0) -> pa.Table:
    texts = pa.array([f"t{i}" * (i % 4) for i in range(rows)], pa.string())
    return pa.table({"id": np.arange(start, start + rows), "text": texts})


def read(source: Any, start: int, stop: int) -> pa.Table:
    part = source.part(start, stop)
    return pickle.loads(pickle.dumps(part))() if callable(part) else part


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three files of 7, 0 and 12 rows in row groups of 5."""
    paths = [tmp_path / f"{number}.parquet" for number in range(3)]
    for path, (rows, start) in zip(paths, [(7, 0), (0, 7), (12, 7)], strict=True):
        pq.write_table(table(rows, start), path, row_group_size=5)
    return paths


def test_table_is_cut_where_asked() -> None:
    source = open_source(table(10))
    assert isinstance(source, TableSource)
    assert source.in_memory
    assert read(source, 3, 8).equals(table(10).slice(3, 5).cast(source.schema))


@given(st.lists(st.integers(0, 12), max_size=4))
def test_table_fingerprint_does_not_depend_on_its_chunks(cuts: list[int]) -> None:
    whole = table(12)
    edges = [0, *sorted(cuts), 12]
    chunked = pa.concat_tables([whole.slice(a, b - a) for a, b in itertools.pairwise(edges)])
    assert TableSource(chunked).fingerprint == TableSource(whole).fingerprint
    assert TableSource(whole.slice(0, 11)).fingerprint != TableSource(whole).fingerprint


def test_table_without_rows_or_columns_is_refused() -> None:
    with pytest.raises(UsageError, match="0 rows"):
        open_source(table(0))
    with pytest.raises(UsageError, match="columns must have names"):
        open_source(pa.table({}))


def test_table_with_nulls_in_a_column_that_has_none_is_refused() -> None:
    schema = pa.schema([pa.field("a", pa.int64(), nullable=False)])
    bad = pa.Table.from_arrays([pa.array([1, None])], schema=schema)
    with pytest.raises(UsageError, match="a"):
        open_source(bad).part(0, 2)


def test_table_of_nothing_but_nulls_has_rows() -> None:
    source = open_source(pa.table({"a": pa.nulls(3)}))
    assert source.row_bytes >= 1


def test_parquet_rows_keep_the_order_of_files_and_groups(files: list[Path]) -> None:
    source = open_source([*files])
    assert isinstance(source, DatasetSource)
    assert (source.rows, source.in_memory) == (19, False)
    for start in range(19):
        for stop in range(start + 1, 20):
            assert read(source, start, stop)["id"].to_pylist() == list(range(start, stop))


def test_parquet_folders_give_their_parquet_files_in_order(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "readme.md").write_text("no")
    pq.write_table(table(2, 19), tmp_path / "z.pq")
    source = open_source(tmp_path, "parquet")
    assert read(source, 0, source.rows)["id"].to_pylist() == list(range(21))
    assert parquet_source([tmp_path, files[0]]).fingerprint == source.fingerprint
    (tmp_path / "link.parquet").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FormatError, match=r"link\.parquet"):
        parquet_source([tmp_path])


def test_parquet_dictionary_columns_become_values(tmp_path: Path) -> None:
    words = pa.array(["a", "b", "a", None]).dictionary_encode()
    pq.write_table(pa.table({"word": words}), tmp_path / "a.parquet", row_group_size=2)
    source = open_source(tmp_path / "a.parquet")
    assert source.schema.field("word").type == pa.string()
    assert read(source, 1, 4)["word"].to_pylist() == ["b", "a", None]


@pytest.mark.parametrize(
    "other",
    [
        pa.table({"id": ["x"], "text": ["y"]}),
        pa.table({"id": [1]}),
        pa.table({"id": [1], "text": ["y"], "more": [2]}),
        pa.table({"text": ["y"], "id": [1]}),
    ],
    ids=["type", "fewer", "more", "order"],
)
def test_parquet_files_of_different_columns_are_refused_by_name(
    tmp_path: Path, files: list[Path], other: pa.Table
) -> None:
    pq.write_table(other, tmp_path / "other.parquet")
    with pytest.raises(FormatError, match=r"other\.parquet' has other columns than .*0\.parquet"):
        parquet_source([*files, tmp_path / "other.parquet"])


def test_parquet_that_is_missing_empty_or_garbage_is_answered_by_name(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        parquet_source([tmp_path / "nowhere"])
    with pytest.raises(UsageError, match="no Parquet file"):
        parquet_source([tmp_path])
    pq.write_table(table(0), tmp_path / "empty.parquet")
    with pytest.raises(UsageError, match="0 rows"):
        parquet_source([tmp_path])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(FormatError, match=r"bad\.parquet"):
        parquet_source([tmp_path / "bad.parquet"])
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(NotFound, match=r"pipe\.parquet"):
        parquet_source([tmp_path / "pipe.parquet"])


def test_parquet_file_that_changed_between_look_and_read_is_a_conflict(files: list[Path]) -> None:
    part = parquet_source(files).part(0, 19)
    pq.write_table(table(12, 50), files[2], row_group_size=5)
    os.utime(files[2], ns=(1, 1))
    with pytest.raises(Conflict, match=r"2\.parquet' changed meanwhile"):
        part()


def test_parquet_file_that_was_damaged_after_the_look_is_a_format_error_by_name(files: list[Path]) -> None:
    part = parquet_source(files).part(0, 19)
    data = bytearray(files[2].read_bytes())
    data[4:200] = bytes(196)
    files[2].write_bytes(data)
    with pytest.raises(FormatError, match=r"2\.parquet' cannot be read"):
        part()


def test_dataset_in_memory_is_told_apart_by_its_rows() -> None:
    first, same, other = (open_source(pads.dataset(table(5, start))) for start in (0, 0, 1))
    assert first.in_memory
    assert first.fingerprint == same.fingerprint != other.fingerprint
    union = open_source(pads.dataset([pads.dataset(table(5)), pads.dataset(table(3, 5))]))
    assert union.in_memory
    assert read(union, 2, 7)["id"].to_pylist() == [2, 3, 4, 5, 6]


def test_dataset_of_other_files_is_read_too(tmp_path: Path) -> None:
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table(6).schema) as writer:
        writer.write_table(table(6))
    source = open_source(pads.dataset(tmp_path / "a.arrow", format="ipc"))
    assert not source.in_memory
    assert read(source, 2, 5)["id"].to_pylist() == [2, 3, 4]


def test_dataset_with_a_filter_is_refused(files: list[Path]) -> None:
    filtered = pads.dataset(list(map(str, files))).filter(pads.field("id") > 3)
    with pytest.raises(UsageError, match="cannot be taken apart"):
        open_source(filtered)
