"""Which reader paths get when none is named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tiering.errors import FormatError, TieringError, UsageError
from tiering.sources.open import open_source
from tiering.sources.tables import DatasetSource
from tiering.sources.text import TextSource


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.parquet", "B.PARQUET", "c.pq"):
        pq.write_table(pa.table({"id": [1, 2, 3]}), tmp_path / name)
    return tmp_path


def test_parquet_files_are_known_in_folders_and_by_any_spelling(folder: Path) -> None:
    (folder / "_SUCCESS").touch()  # Spark leaves it
    (folder / "a.parquet").rename(folder / "_a.parquet")
    assert open_source(folder / "_a.parquet").rows == 3
    (folder / "_a.parquet").rename(folder / "a.parquet")
    for paths, rows in (
        ([folder], 9),
        ([folder / "B.PARQUET"], 3),
        ([folder / "c.pq", folder / "a.parquet"], 6),
    ):
        source = open_source(paths)
        assert isinstance(source, DatasetSource)
        assert source.rows == rows


def test_folders_behind_links_are_walked_once_and_those_of_writers_at_work_not(folder: Path) -> None:
    other = folder.with_name("other")
    other.mkdir()
    pq.write_table(pa.table({"id": [4]}), other / "d.parquet")
    (folder / "link").symlink_to(other)
    (other / "back").symlink_to(folder)
    for name in ("_temporary", ".hidden"):
        (folder / name).mkdir()
        pq.write_table(pa.table({"id": [5]}), folder / name / "e.parquet")
    assert open_source(folder).rows == 10
    texts = folder.with_name("texts")
    (texts / "inside").mkdir(parents=True)
    (texts / "inside/a.txt").write_text("a" * 10)
    (texts / "link").symlink_to(texts / "inside")
    source = open_source(texts, options={"row_tokens": 1})
    assert isinstance(source, TextSource)
    assert source.notes == {"files": 1, "empty": 0, "unreadable": []}


def test_folders_of_partitions_and_names_that_are_no_text_are_refused(folder: Path) -> None:
    parted = folder.with_name("parted")
    (parted / "lang=en").mkdir(parents=True)
    pq.write_table(pa.table({"id": [1]}), parted / "lang=en/a.parquet")
    with pytest.raises(UsageError, match=r"'lang=en' would be left out.*partitioning='hive'"):
        open_source(parted)
    (folder / "a.parquet").rename(os.fsdecode(os.fsencode(folder) + b"/\xff.parquet"))
    with pytest.raises(FormatError, match="is not UTF-8"):
        open_source(folder)


@pytest.mark.parametrize(
    "options", [["x"], "row_tokens", {"row_tokens": True}, {"suffixes": [1]}, {"suffixes": 3}]
)
def test_wrong_options_are_told(tmp_path: Path, options: Any) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UsageError, match=r"reader_options|row_tokens|suffixes"):
        open_source(tmp_path, options=options)


def test_parquet_never_becomes_text_unasked(folder: Path) -> None:
    (folder / "notes.txt").write_text("notes")
    for paths in ([folder], [folder / "notes.txt", folder / "a.parquet"]):
        with pytest.raises(UsageError, match=r"of \d files are Parquet.*--reader"):
            open_source(paths)
    assert open_source([folder], "parquet").rows == 9
    assert isinstance(open_source([folder], "text"), TextSource)
    with pytest.raises(UsageError, match="the reader 'parquet' has no options"):
        open_source([folder / "a.parquet"], options={"row_tokens": 5})


@pytest.mark.parametrize("ending", ["npy", "npz", "GZ", "zst", "arrow", "zip"])
def test_other_formats_never_become_text_unasked(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"x.{ending}"
    file.write_bytes(b"bytes")
    with pytest.raises(UsageError, match="does not look like text"):
        open_source(file)
    assert isinstance(open_source(file, "text"), TextSource)
    assert isinstance(open_source(tmp_path), TextSource)  # a folder of sources may hold anything


def test_paths_below_the_home_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text("x" * 100)
    monkeypatch.setenv("HOME", str(tmp_path))
    source = open_source(["~/notes.txt"], "text", {"row_tokens": 10})
    assert source.notes["files"] == 1
    for odd in ("~nobody-of-that-name/notes.txt", "~"):
        with pytest.raises(TieringError):
            open_source(odd, "text")
