"""The loader beside its bounds and its peers: ``python -m bench.loader``, and docs/performance.md.

Invariant: what is compared is measured in the same run, in interleaved rounds, from the same rows.
"""

from __future__ import annotations

import importlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from bench.loader.scale import Scale, own_folder

CASES: Final = ("warm", "codec", "cold", "start", "objects", "images")
"""Modules of this package with a `run(scale, folder)`."""


def run() -> dict[str, Any]:
    """Figures of all cases, by name, below ``cases``."""
    return {"cases": {name: measure(name, Scale()) for name in CASES}}


def measure(name: str, scale: Scale) -> dict[str, Any]:
    """Figures of one case. TMPDIR chooses the disk."""
    load, begun = os.getloadavg()[0], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        module = importlib.import_module(f"bench.loader.{name}")
        found = module.run(scale, own_folder(Path(folder), name))
    return {
        "load_average": round(load, 2),
        "took_seconds": round(time.perf_counter() - begun),
        **found,
    }
