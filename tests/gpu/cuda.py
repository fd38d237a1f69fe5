"""A corpus of several columns for tests on a real GPU, and what says why they are skipped."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders.gpu_device import open_device
from tiering import Corpus, ingest, open_tier
from tiering.errors import UsageError

ROWS = 5000
COLUMNS: dict[str, np.ndarray[Any, Any]] = {
    "tokens": np.random.default_rng(3).integers(0, 1 << 16, (ROWS, 512), dtype=np.uint16),
    "label": np.arange(ROWS, dtype=np.int64),
    "mask": np.random.default_rng(5).integers(0, 2, (ROWS, 3, 5)).astype(np.bool_),
    "weight": np.random.default_rng(7).random(ROWS).astype(np.float16),
}


@pytest.fixture(scope="module")
def cupy() -> Any:
    """Cupy, where there is a GPU with all that the loader needs."""
    try:
        open_device("cuda:0")
    except UsageError as error:
        pytest.skip(error.message)
    return pytest.importorskip("cupy")


def make(folder: Path, codec: str | None = None) -> Corpus:
    tier = open_tier(folder, name="lake")
    return ingest(COLUMNS, tier, "web", shard_size="512KiB", block_rows=64, codec=codec, progress=False)
