"""A verified move between two file tiers, against copying and syncing the same files without verification.

Interleaved rounds; the ratio is the median of theirs. A move hashes each byte twice, as it was read and as it
was read back: ``digest_share_of_cpu`` is what that takes of its processor time. Also a plan for a million
shards: seconds and peak memory.
"""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import pyarrow as pa

from tiering import catalog, ingest, open_corpus, open_tier, plan_move
from tiering.digest import digest
from tiering.layout.zarr import ZarrColumn, ZarrLayout
from tiering.manifest import MANIFEST_SCHEMA, Manifest
from tiering.schema import schema_of

ROWS, TOKENS, ROUNDS, HASHED_BYTES = 262_144, 2_048, 7, 64 << 20
SHARDS, BLOCKS, BLOCK_ROWS = 1_000_000, 64, 128


def run() -> dict[str, object]:
    """Megabytes a second of both, their ratio, and the cost of a large plan."""
    with tempfile.TemporaryDirectory() as folder:
        data = np.random.default_rng(7).integers(0, 257, (ROWS // 2, TOKENS), dtype=np.uint16)
        corpus = ingest({"tokens": data}, open_tier(f"{folder}/lake", "lake"), "bench")
        moves, copies = [], []
        for number in range(ROUNDS):
            source, copy, disk = (f"{folder}/{name}" for name in ("lake", f"copy{number}", f"disk{number}"))
            copies.append(timed(partial(shutil.copytree, source, copy, copy_function=copy_and_sync)))
            plan = plan_move(corpus, open_tier(disk, "disk"))
            moves.append(timed(partial(plan.run, progress=False)))
            for done in (copy, disk):
                shutil.rmtree(done)
        _, hash_cpu = timed(partial(digest, memoryview(data).cast("B")[:HASHED_BYTES]))
        million = plan_a_million()
    megabytes = corpus.nbytes / 1e6
    move_cpu, copy_cpu = (median(cpu for _, cpu in runs) for runs in (moves, copies))
    return {
        "megabytes": round(megabytes),
        "rounds": ROUNDS,
        "move_mb_per_second": round(megabytes / median(seconds for seconds, _ in moves)),
        "copy_and_sync_mb_per_second": round(megabytes / median(seconds for seconds, _ in copies)),
        "ratio": round(median(slow / fast for (slow, _), (fast, _) in zip(copies, moves, strict=True)), 3),
        "move_cpu_seconds_per_gb": round(move_cpu / megabytes * 1e3, 3),
        "copy_cpu_seconds_per_gb": round(copy_cpu / megabytes * 1e3, 3),
        "digest_share_of_cpu": round(2 * hash_cpu / HASHED_BYTES * corpus.nbytes / move_cpu, 3),
        **million,
    }


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    cpu, begun = time.process_time(), time.perf_counter()
    work()
    return time.perf_counter() - begun, time.process_time() - cpu


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
