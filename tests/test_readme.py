"""The README keeps its word: its commands are those of CI, and its script runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]


def blocks(language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )


def test_first_two_commands_are_what_ci_runs() -> None:
    demo, tests = blocks("")[0].splitlines()
    assert demo.endswith("pip install . && tiering demo")
    assert tests.endswith("pip install '.[test]' && pytest")
    assert "pip install '.[test]' && pytest\n" in (ROOT / ".ci" / "run").read_text()


def test_training_script_runs(tmp_path: Path) -> None:
    script = blocks("python")[0]
    for url in ("s3://bucket/prefix", "/mnt/nvme/tier", "/mnt/nvme/cache"):
        assert url in script
        script = script.replace(url, str(tmp_path / url.split("/")[-1]))
    seen: list[np.ndarray] = []
    tokens = np.arange(1024 * 2049, dtype=np.uint32).reshape(1024, 2049).astype(np.uint16)
    exec(compile(script, "README.md", "exec"), {"tokens": tokens, "step": seen.append})
    assert sorted(row[0] for batch in seen for row in batch) == sorted(tokens[:, 0])
