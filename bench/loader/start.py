"""Time to the first batch in a fresh process, warm, cold and resumed in mid-epoch; memory of an epoch."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench.loader.cold import drop, files_of, sync
from bench.loader.scale import Scale, tokens
from bench.peers.rows import Seen
from loaders import Loader
from tiering import ingest, open_tier

AIM_SECONDS, AIM_MIB, MIB = 0.3, 256, 1 << 20
ROUNDS: Final = 5


def run(scale: Scale, folder: Path) -> dict[str, object]:
    """Seconds, bytes of the state and MiB, with the aim beside each."""
    tier = open_tier(folder / "disk", "disk")
    corpus = ingest({"tokens": tokens(scale)}, tier, "bench")
    files = files_of(corpus, folder / "disk")
    sync(files)
    loader = Loader(corpus, scale.batch)
    batches = iter(loader)
    for _ in itertools.islice(batches, len(loader) // 2):
        pass
    state = loader.state_dict()
    seen = Seen()
    seen.add(next(batches)["tokens"])
    batches.close()  # type: ignore[attr-defined]
    asked = {"tier": str(folder / "disk"), "batch": scale.batch}
    asks: dict[str, dict[str, Any]] = {"warm": asked, "resumed": {**asked, "state": state}, "cold": asked}
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in asks}
    latencies = []
    for _ in range(min(ROUNDS, scale.rounds)):
        for name, ask in asks.items():
            if name == "cold":
                drop(files)
                latencies.append(block_latency(files[-1], corpus.nbytes // len(files)))
                drop(files)
            taken[name].append(fresh(ask))
    if any(one["digest"] != seen.digest() for one in taken["resumed"]):
        raise RuntimeError("a resumed loader went on with another batch")
    order = loader.order
    window = order.lanes * order.window_blocks * order.block_rows * scale.row_bytes
    memory = fresh({**asked, "epoch": True})
    latency = median(latencies)
    return {
        "first_batch_seconds": {
            name: {
                "seconds": round(median(one["first_batch_seconds"] for one in found), 4),
                "open_corpus_seconds": round(median(one["open_corpus_seconds"] for one in found), 4),
                "aim": round(AIM_SECONDS + (latency if name == "cold" else 0), 4),
            }
            for name, found in taken.items()
        },
        "cold_block_seconds": round(latency, 5),
        "state_bytes": len(json.dumps(state)),
        "memory": {
            "imported_mib": round(memory["imported_mib"]),
            "peak_mib": round(memory["peak_mib"]),
            "two_windows_mib": round(2 * window / MIB),
            "aim_mib": round(2 * window / MIB) + AIM_MIB,
        },
    }


def fresh(ask: dict[str, Any]) -> dict[str, Any]:
    """What `bench.loader.fresh` says."""
    command = [sys.executable, "-m", "bench.loader.fresh"]
    done = subprocess.run(command, input=json.dumps(ask), stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def block_latency(file: Path, nbytes: int) -> float:
    """Seconds to read a block of at most a MiB from the middle of a cold file."""
    fd = os.open(file, os.O_RDONLY)
    begun = time.perf_counter()
    os.pread(fd, MIB, nbytes // 2 // MIB * MIB)
    seconds = time.perf_counter() - begun
    os.close(fd)
    return seconds
