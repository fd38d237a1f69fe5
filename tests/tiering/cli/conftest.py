"""A command line run in this process, with what it printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tiering.cli.main import run


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Outcome]


@pytest.fixture
def tiering(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call ``tiering("ls", folder)`` in an empty folder."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Outcome:
        code = run([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return call


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """A Parquet file of 1,000 rows with a ragged column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"id": range(1000), "text": [f"row {i} " * (i % 7) for i in range(1000)]})
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path, row_group_size=300)
    return path
