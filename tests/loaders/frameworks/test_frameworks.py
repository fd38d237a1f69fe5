"""Each framework in a process of its own: their threads do not bear the forks of other tests."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.corpora import ROOT, SECONDS
from tests.loaders.frameworks.training import run_page


@pytest.mark.parametrize(
    ("framework", "checks"),
    [
        ("torch", "check_torch.py"),
        ("torch", "check_torch_workers.py"),
        ("jax", "check_jax.py"),
        ("tensorflow", "check_tensorflow.py"),
    ],
)
def test_framework_passes_its_checks(framework: str, checks: str) -> None:
    if find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed: pip install 'corpus-tiering[{framework}]'")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-q",
        str(Path(__file__).parent / checks),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=4 * SECONDS, check=False)
    assert done.returncode == 0, done.stdout[-4000:]


def test_page_of_random_access_runs(tmp_path: Path) -> None:
    ((count, row, some, same, table, rows),) = run_page("Random access", tmp_path)
    assert count == 600
    assert row["tokens"].tolist() == list(range(599 * 9, 600 * 9))
    assert some["tokens"].shape == (10, 9)
    assert same["tokens"][0].tolist() == same["tokens"][2].tolist() == list(range(45, 54))
    assert table["tokens"].to_pylist()[1] == list(range(27, 36))
    assert rows["tokens"].shape == (32, 9)
