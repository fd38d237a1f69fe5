"""A corpus of several columns for tests on a real GPU."""

from pathlib import Path
from typing import Any

import numpy as np

from tiering import Corpus, ingest, open_tier

ROWS = 5000
COLUMNS: dict[str, np.ndarray[Any, Any]] = {
    "tokens": np.random.default_rng(3).integers(0, 1 << 16, (ROWS, 512), dtype=np.uint16),
    "label": np.arange(ROWS, dtype=np.int64),
    "mask": np.random.default_rng(5).integers(0, 2, (ROWS, 3, 5)).astype(np.bool_),
    "weight": np.random.default_rng(7).random(ROWS).astype(np.float16),
}


def make(folder: Path, codec: str | None = None) -> Corpus:
    tier = open_tier(folder, name="lake")
    return ingest(COLUMNS, tier, "web", shard_size="512KiB", block_rows=64, codec=codec, progress=False)
