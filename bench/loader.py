"""Host loader, 65,536 rows of 4 KiB, batch 256, shuffled, warm, one process: beside a bound and others.

The bound is ``np.take(ram, rows, out=, mode="clip")`` of random rows. All alternate, a round each; medians.
Other loaders run where an environment variable names a Python that has them, such as
``BENCH_TORCH=/venvs/torch/bin/python`` (or BENCH_DATASETS); the others are said to be skipped.
``python -m bench.loader RESULT.json`` prints the table of `docs/performance.md`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from loaders import Loader
from tiering import ingest, open_tier

ROWS, TOKENS, BATCH, ROUNDS = 65_536, 2_049, 256, 15
SETTLE_SECONDS = 2.5  # a file is trusted when its last change is older
PEERS = Path(__file__).parent / "peers" / "loaders.py"
EVERY_ROW = "a permutation of all rows"
QUALITY = {"gather from RAM": EVERY_ROW, "torch": EVERY_ROW, "datasets": EVERY_ROW}


@dataclass(frozen=True)
class Case:
    """One loader as it is measured: how many blocks of how many rows a batch is drawn from."""

    lanes: int
    window_blocks: int | None = None
    block_rows: int | None = None
    verify: str = "first"

    @property
    def name(self) -> str:
        """What tells it from the others."""
        window = "" if self.window_blocks is None else f", {self.window_blocks} blocks a window"
        blocks = "" if self.block_rows is None else f", blocks of {self.block_rows} rows"
        always = ", verify always" if self.verify == "always" else ""
        return f"loader, {self.lanes} lanes{window}{blocks}{always}"


CASES = (
    Case(64),
    Case(8),
    Case(64, verify="always"),
    Case(8, 1),
    Case(8, 1, 128),
    Case(16, 1, 128),
    Case(64, 1, 64),
)


def run() -> dict[str, object]:
    """Rows a second, processor seconds a GB and the ratio to the bound of each, by name."""
    data = np.random.default_rng(7).integers(0, 257, (ROWS, TOKENS), dtype=np.uint16)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        np.save(Path(folder, "rows.npy"), data)
        epochs: dict[str, Callable[[], float]] = {"gather from RAM": lambda: gather(data)}
        quality = dict(QUALITY)
        loaders: dict[str, Loader] = {}
        for case in CASES:
            loaders[case.name] = loader = _loader(case, Path(folder), data)
            epochs[case.name] = lambda loader=loader: epoch(loader)
            quality[case.name] = _quality(loader)
        skipped = []
        for name in ("torch", "datasets"):
            python = os.environ.get(f"BENCH_{name.upper()}")
            if python:
                epochs[name] = stack.enter_context(_peer(name, python, Path(folder)))
            else:
                skipped.append(f"{name}: BENCH_{name.upper()} names no python that has it")
        time.sleep(SETTLE_SECONDS)
        for warm in epochs.values():
            warm()
        seconds: dict[str, list[float]] = {name: [] for name in epochs}
        cpu: dict[str, list[float]] = {name: [] for name in epochs}
        for _ in range(ROUNDS):
            for name, one in epochs.items():
                used = time.process_time()
                seconds[name].append(one())
                cpu[name].append(time.process_time() - used)
        bound = median(seconds["gather from RAM"])
        return {
            "rows": ROWS,
            "row_bytes": TOKENS * 2,
            "batch": BATCH,
            "rounds": ROUNDS,
            "load_average": round(os.getloadavg()[0], 2),
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
            "skipped": skipped,
            "loaders": {
                name: {
                    "rows_per_second": round(ROWS / median(times)),
                    "ratio_to_gather_from_ram": round(bound / median(times), 3),
                    "cpu_seconds_per_gb": None
                    if name not in loaders and name != "gather from RAM"
                    else round(median(cpu[name]) / data.nbytes * 1e9, 4),
                    "stall_share": round(loaders[name].stats.stall_seconds / loaders[name].stats.seconds, 3)
                    if name in loaders
                    else None,
                    "shuffle": quality[name],
                }
                for name, times in seconds.items()
            },
        }


def epoch(loader: Loader) -> float:
    """Seconds of one epoch."""
    begun, rows = time.perf_counter(), 0
    for batch in loader:
        rows += len(batch["tokens"])
    return time.perf_counter() - begun


def gather(data: np.ndarray) -> float:
    """Seconds of random batches from memory."""
    order = np.random.default_rng().permutation(ROWS)
    out = np.empty((BATCH, TOKENS), data.dtype)
    begun = time.perf_counter()
    for start in range(0, ROWS, BATCH):
        np.take(data, order[start : start + BATCH], axis=0, out=out, mode="clip")
    return time.perf_counter() - begun


def _loader(case: Case, folder: Path, data: np.ndarray) -> Loader:
    tier = open_tier(folder / f"blocks-{case.block_rows}", f"disk-{case.block_rows}")
    corpus = ingest({"tokens": data}, tier, "bench", block_rows=case.block_rows)
    return Loader(corpus, BATCH, lanes=case.lanes, window_blocks=case.window_blocks, verify=case.verify)


def _quality(loader: Loader) -> str:
    order = loader.order
    blocks = order.lanes * order.window_blocks
    return (
        f"each batch from {order.lanes} places of the corpus, rows mixed over {blocks} blocks of "
        f"{order.block_rows} rows, blocks over groups of {order.group_shards} shards, shards over all"
    )


@contextmanager
def _peer(name: str, python: str, folder: Path) -> Iterator[Callable[[], float]]:
    """Seconds of one epoch of another loader, in a process of its own."""
    own = folder / name
    own.mkdir()
    command = [python, str(PEERS), name, str(folder / "rows.npy"), str(own), str(BATCH)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{name} did not begin: {' '.join(command)}")

        def once() -> float:
            assert process.stdin is not None
            assert process.stdout is not None
            print("epoch", file=process.stdin, flush=True)
            return float(process.stdout.readline())

        yield once
        process.stdin.close()


def table(figures: dict[str, dict[str, dict[str, object]]]) -> str:
    """A Markdown table of what `run` gave."""
    lines = ["| loader | rows/s | of the gather | CPU s/GB | shuffle |", "|---|---|---|---|---|"]
    for name, one in figures["loaders"].items():
        cells = (
            name,
            f"{one['rows_per_second']:,}",
            one["ratio_to_gather_from_ram"],
            one["cpu_seconds_per_gb"] or "",
            one["shuffle"],
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
