"""What worker processes import: a corpus on a file tier, and loaders of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from loaders import Loader
from tests.corpora import ROOT, columns, make_corpus
from tiering import Corpus, ingest, open_tier

ROWS, BATCH, LANES = 602, 48, 12  # lanes of 50 and 51 rows


def make(folder: Path) -> Corpus:
    return make_corpus(open_tier(folder, "disk"), ROWS, 16, 4)


def loader(corpus: Corpus, **options: Any) -> Loader:
    return Loader(corpus, BATCH, **{"rank": 0, "world_size": 1, "lanes": LANES, **options})


def numbers(batches: Any) -> list[list[int]]:
    """The row numbers of batches of tensors or arrays, after a check of the other column."""
    found = []
    for batch in batches:
        rows = batch["row"].tolist()
        assert batch["pair"].tolist() == columns(rows)["pair"].tolist()
        found.append(rows)
    return found


def run_page(title: str, folder: Path) -> list[tuple[Any, ...]]:
    """Run the script of a section of the page about frameworks; what it called `step` with."""
    page = (ROOT / "docs" / "frameworks.md").read_text()
    section = page.split(f"\n## {title}\n")[1].split("\n## ")[0]
    (script,) = re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    tier = open_tier(folder / "tier")
    tokens = np.arange(600 * 9).reshape(600, 9).astype(np.uint16)
    ingest({"tokens": tokens}, tier, "web-text", block_rows=16, progress=False)
    tier.close()
    steps: list[tuple[Any, ...]] = []
    script = script.replace("/mnt/nvme/tier", str(folder / "tier"))
    exec(compile(script, f"frameworks.md, {title}", "exec"), {"step": lambda *given: steps.append(given)})
    return steps
