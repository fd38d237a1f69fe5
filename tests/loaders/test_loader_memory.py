"""Memory of a loader: that of two windows, and flat however many epochs there are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.corpora import make_corpus, run_python
from tiering import open_tier


@pytest.mark.parametrize("cached", [False, True])
def test_memory_is_flat_over_fifty_epochs(tmp_path: Path, cached: bool) -> None:
    corpus = make_corpus(open_tier(tmp_path / "tier", "disk"), 96, 16, 4)
    traced = json.loads(run_python(TRACED, tmp_path, corpus.nbytes // 2 * cached, corpus.name))
    assert len(traced) == 50
    # The first epochs fill what is remembered; a list of every epoch's batches alone would be 5 MB.
    assert max(traced[25:]) - traced[10] < 100_000


TRACED = """
import gc, json, sys, tracemalloc
from pathlib import Path
from loaders import Loader
from tiering import NodeCache, open_corpus, open_tier
from tiering.stores import file_kept

file_kept._SETTLED_NS = 0
folder, cached = Path(sys.argv[1]), int(sys.argv[2])
cache = NodeCache(folder / "cache", cached) if cached else None
(name,) = sys.argv[3:]
loader = Loader(open_corpus(open_tier(folder / "tier", "disk"), name), 32, cache=cache, lanes=4)
traced = []
tracemalloc.start()
for _ in range(50):
    for _batch in loader:
        pass
    gc.collect()
    traced.append(tracemalloc.get_traced_memory()[0])
print(json.dumps(traced))
"""


def test_resident_memory_of_many_epochs_is_that_of_two_windows(tmp_path: Path) -> None:
    """128 MB of rows in windows of 2 MB, in a process of its own: what ten epochs add to the first block."""
    make = "import numpy as np; from tiering import ingest, open_tier"
    run_python(
        f"{make}; import sys; data = np.zeros((16_000, 4000), np.uint8);"
        " ingest({'x': data}, open_tier(sys.argv[1], 'disk'), 'c', block_rows=64, progress=False)",
        tmp_path,
    )
    grown = int(run_python(PEAK, tmp_path))
    assert grown < 48 << 20, grown


PEAK = """
import resource, sys
from loaders import Loader
from tiering import open_corpus, open_tier

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

loader = Loader(open_corpus(open_tier(sys.argv[1], "disk"), "c"), 64, lanes=4, window_blocks=2)
next(iter(loader))
before = peak()
for _ in range(10):
    for batch in loader:
        pass
print(peak() - before)
"""
