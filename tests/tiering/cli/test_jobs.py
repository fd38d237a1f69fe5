"""The command run: exit codes of whole, part and no success."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tiering.jobs.lock import job_lock

JOB = '[[jobs]]\nname = "{name}"\nkind = "stage"\ncorpus = "{corpus}"\nfrom = "lake"\nto = "disk"\n'


@pytest.fixture
def folder(tiering: Any, parquet: Path, tmp_path: Path) -> Path:
    tiering("ingest", parquet, "--to", tmp_path / "lake", "--name", "rows", "--shard-size", "8KiB")
    return tmp_path


def job_file(folder: Path, *corpora: str) -> Path:
    tiers = "".join(f'[tiers.{name}]\nurl = "{folder}/{name}"\n' for name in ("lake", "disk"))
    path = folder / "jobs.toml"
    path.write_text(tiers + "".join(JOB.format(name=f"job {name}", corpus=name) for name in corpora))
    return path


@pytest.mark.parametrize(("corpora", "code"), [(["rows"], 0), (["rows", "gone"], 3), (["gone"], 1), ([], 2)])
def test_run_tells_how_much_was_done(tiering: Any, folder: Path, corpora: list[str], code: int) -> None:
    assert tiering("run", job_file(folder, *corpora), "--json").code == code


def test_run_dry_prints_the_plan(tiering: Any, folder: Path) -> None:
    answer = tiering("run", job_file(folder, "rows"), "--dry-run")
    assert "requests" in answer.out
    assert "planned" in answer.out
    assert not (folder / "disk").exists()


def test_run_twice_at_once_is_locked_out(tiering: Any, folder: Path) -> None:
    path = job_file(folder, "rows")
    with job_lock(path):
        assert tiering("run", path).code == 11
