"""The loader beside its bounds and its peers: ``python -m bench.loader``, and docs/performance.md.

Invariant: what is compared is measured in the same run, in interleaved rounds, from the same rows.
"""

from __future__ import annotations

import importlib
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench.loader.scale import Scale, own_folder

CASES: Final = ("warm", "codec", "cold", "start", "objects", "images")
"""Modules of this package with a `run(scale, folder)`."""


def run(names: Sequence[str] = CASES, scale: Scale | None = None) -> dict[str, Any]:
    """Figures of the cases, by name. TMPDIR chooses the disk."""
    figures: dict[str, Any] = {}
    for name in names:
        load, begun = os.getloadavg()[0], time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            module = importlib.import_module(f"bench.loader.{name}")
            found = module.run(scale or Scale(), own_folder(Path(folder), name))
        took = {"load_average": round(load, 2), "took_seconds": round(time.perf_counter() - begun)}
        figures[name] = {**took, **found}
    return figures
