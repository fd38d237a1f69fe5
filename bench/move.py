"""A verified move between two file tiers, against copying the same files with shutil (no digest, no fsync).

Also a plan for a million shards: seconds and peak memory.
"""

from __future__ import annotations

import resource
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa

from tiering import ingest, open_tier, plan_move
from tiering.catalog import Record
from tiering.corpus import Corpus
from tiering.manifest import MANIFEST_SCHEMA, Manifest
from tiering.schema import schema_of
from tiering.layout.zarr import ZarrColumn

ROWS, TOKENS, ROUNDS, SHARDS = 262_144, 2_048, 3, 1_000_000


def run() -> dict[str, object]:
    """Megabytes a second of both, their ratio, and the cost of a large plan."""
    with tempfile.TemporaryDirectory() as folder:
        data = np.random.default_rng(7).integers(0, 257, (ROWS // 2, TOKENS), dtype=np.uint16)
        corpus = ingest({"tokens": data}, open_tier(f"{folder}/lake", "lake"), "bench")
        moves, copies = [], []
        for number in range(ROUNDS):
            begun = time.perf_counter()
            shutil.copytree(f"{folder}/lake", f"{folder}/copy{number}")
            copies.append(corpus.nbytes / 1e6 / (time.perf_counter() - begun))
            begun = time.perf_counter()
            plan_move(corpus, open_tier(f"{folder}/disk{number}", "disk")).run(progress=False)
            moves.append(corpus.nbytes / 1e6 / (time.perf_counter() - begun))
            for name in ("copy", "disk"):
                shutil.rmtree(f"{folder}/{name}{number}")
        seconds, peak = plan_a_million(Path(folder))
    return {
        "megabytes": round(corpus.nbytes / 1e6),
        "move_mb_per_second": round(median(moves)),
        "copytree_mb_per_second": round(median(copies)),
        "ratio": round(median(moves) / median(copies), 3),
        "plan_shards": SHARDS,
        "plan_seconds": round(seconds, 2),
        "plan_peak_extra_mib": peak,
    }


def plan_a_million(folder: Path) -> tuple[float, int]:
    """Seconds and additional peak MiB of planning a move of a million shards."""
    numbers = np.arange(SHARDS)
    table = pa.table(
        {
            "key": [f"x/c/{number}" for number in range(SHARDS)],
            "column": ["x"] * SHARDS,
            "shard": numbers,
            "rows": np.full(SHARDS, 1024),
            "nbytes": np.full(SHARDS, 64 << 20),
            "digest": [f"{number:064x}" for number in range(SHARDS)],
            "row_start": numbers * 1024,
            "block_offsets": pa.nulls(SHARDS, pa.list_(pa.int64())),
            "block_crcs": pa.nulls(SHARDS, pa.list_(pa.uint32())),
        },
        schema=MANIFEST_SCHEMA,
    )
    column = ZarrColumn("x", np.dtype("<i8"))
    manifest = Manifest(table, "zarr", schema_of([column]), SHARDS * 1024, 1024, "0" * 64)
    corpus = Corpus("million", open_tier(folder / "nowhere", "lake"), Record(1, "0" * 64), manifest)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    plan = plan_move(corpus, open_tier("memory://bench-plan", "target"))
    str(plan)
    seconds = time.perf_counter() - begun
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
