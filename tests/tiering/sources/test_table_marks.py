"""When a dataset counts as the same source as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.dataset as pads
import pyarrow.fs as pf
import pyarrow.parquet as pq
import pytest

from tiering.errors import Conflict
from tiering.sources.tables import DatasetSource


def test_values_that_count_as_null_are_of_the_source(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,NA\n2,y\n")

    def source(**options: Any) -> DatasetSource:
        format_ = pads.CsvFileFormat(convert_options=pc.ConvertOptions(**options))
        return DatasetSource(pads.dataset(tmp_path / "x.csv", format=format_))

    plain = source().fingerprint
    assert source().fingerprint == plain
    assert source(null_values=["NA"], strings_can_be_null=True).fingerprint != plain


def test_columns_of_folders_are_of_the_source(tmp_path: Path) -> None:
    pq.write_table(pa.table({"v": [1, 2]}), tmp_path / "p.parquet")

    def fingerprint(lang: str) -> str:
        return DatasetSource(
            pads.FileSystemDataset.from_paths(
                [str(tmp_path / "p.parquet")],
                schema=pa.schema([("v", pa.int64()), ("lang", pa.string())]),
                format=pads.ParquetFileFormat(),
                filesystem=pf.LocalFileSystem(),
                partitions=[pads.field("lang") == lang],
            )
        ).fingerprint

    assert fingerprint("en") == fingerprint("en") != fingerprint("de")


@pytest.mark.parametrize("timed", [True, False])
def test_file_without_a_time_is_known_by_what_its_store_says_or_its_bytes(
    monkeypatch: pytest.MonkeyPatch, timed: bool
) -> None:
    memory = fsspec.filesystem("memory")
    path = f"/marks-{timed}.parquet"
    real = type(memory).info

    def info(self: Any, path: str, **options: Any) -> dict[str, Any]:
        return {key: value for key, value in real(self, path, **options).items() if timed or key != "created"}

    monkeypatch.setattr(type(memory), "info", info)

    def put(value: int) -> None:
        with memory.open(path, "wb") as file:
            pq.write_table(pa.table({"v": [value] * 9}), file, use_dictionary=False, compression="none")

    def source() -> DatasetSource:
        handler = pf.PyFileSystem(pf.FSSpecHandler(memory))
        return DatasetSource(pads.dataset(path, filesystem=handler))

    try:
        put(1)
        first = source()
        assert source().fingerprint == first.fingerprint
        put(2)
        assert source().fingerprint != first.fingerprint
        with pytest.raises(Conflict, match="changed meanwhile"):
            first.part(0, 9)()
    finally:
        memory.rm(path)
