"""A verified move between two file tiers, against copying and syncing the same files without verification.

Also a plan for a million shards: seconds and peak memory.
"""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from statistics import median

import numpy as np
import pyarrow as pa

from tiering import catalog, ingest, open_corpus, open_tier, plan_move
from tiering.digest import digest
from tiering.layout.zarr import ZarrColumn, ZarrLayout
from tiering.manifest import MANIFEST_SCHEMA, Manifest
from tiering.schema import schema_of

ROWS, TOKENS, ROUNDS = 262_144, 2_048, 3
SHARDS, BLOCKS, BLOCK_ROWS = 1_000_000, 64, 128


def run() -> dict[str, object]:
    """Megabytes a second of both, their ratio, and the cost of a large plan."""
    with tempfile.TemporaryDirectory() as folder:
        data = np.random.default_rng(7).integers(0, 257, (ROWS // 2, TOKENS), dtype=np.uint16)
        corpus = ingest({"tokens": data}, open_tier(f"{folder}/lake", "lake"), "bench")
        moves, copies = [], []
        for number in range(ROUNDS):
            begun = time.perf_counter()
            shutil.copytree(f"{folder}/lake", f"{folder}/copy{number}", copy_function=copy_and_sync)
            copies.append(corpus.nbytes / 1e6 / (time.perf_counter() - begun))
            begun = time.perf_counter()
            plan_move(corpus, open_tier(f"{folder}/disk{number}", "disk")).run(progress=False)
            moves.append(corpus.nbytes / 1e6 / (time.perf_counter() - begun))
            for name in ("copy", "disk"):
                shutil.rmtree(f"{folder}/{name}{number}")
        plan = plan_a_million()
    return {
        "megabytes": round(corpus.nbytes / 1e6),
        "move_mb_per_second": round(median(moves)),
        "copy_and_sync_mb_per_second": round(median(copies)),
        "ratio": round(median(moves) / median(copies), 3),
        **plan,
    }


def copy_and_sync(source: str, target: str) -> None:
    """What a plain copy has to do to survive a power cut."""
    shutil.copyfile(source, target)
    fd = os.open(target, os.O_RDONLY)
    os.fdatasync(fd)
    os.close(fd)


def plan_a_million() -> dict[str, object]:
    """Seconds of opening a corpus of a million shards and of planning its move, and the peak memory."""
    numbers = np.arange(SHARDS)
    table = pa.table(
        {
            "key": [f"x/c/{number}/0" for number in range(SHARDS)],
            "column": ["x"] * SHARDS,
            "shard": numbers,
            "rows": np.full(SHARDS, BLOCKS * BLOCK_ROWS),
            "nbytes": np.full(SHARDS, 64 << 20),
            "digest": [digest(number.to_bytes(8)) for number in range(SHARDS)],
            "row_start": numbers * BLOCKS * BLOCK_ROWS,
            "block_offsets": pa.nulls(SHARDS, pa.list_(pa.int64())),
            "block_crcs": pa.ListArray.from_arrays(
                np.arange(SHARDS + 1, dtype=np.int32) * BLOCKS,
                np.random.default_rng(7).integers(0, 1 << 32, SHARDS * BLOCKS, dtype=np.uint32),
            ),
        },
        schema=MANIFEST_SCHEMA,
    )
    column = ZarrColumn("x", np.dtype("<i8"), (1024,))
    layout = ZarrLayout((column,), SHARDS * BLOCKS * BLOCK_ROWS, BLOCKS * BLOCK_ROWS, BLOCK_ROWS)
    manifest = Manifest(
        table=table,
        format="zarr",
        schema=schema_of(layout.columns),
        rows=layout.rows,
        block_rows=layout.block_rows,
        intent="0" * 64,
        shard_rows=layout.shard_rows,
        documents=layout.documents(),
    )
    lake = open_tier("memory://bench-lake", "lake")
    catalog.publish(lake.store, "million", 1, manifest, manifest.encode())
    del table, manifest, numbers
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    corpus = open_corpus(lake, "million")
    opened = time.perf_counter()
    str(plan_move(corpus, open_tier("memory://bench-target", "target")))
    planned = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "plan_shards": SHARDS,
        "open_seconds": round(opened - begun, 2),
        "plan_seconds": round(planned - opened, 2),
        "peak_rss_mib": peak >> 10,
        "peak_rss_extra_mib": (peak - before) >> 10,
    }
