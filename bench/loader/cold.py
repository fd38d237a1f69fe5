"""A cold epoch from a local disk, beside raw reads of the same files, both out of the page cache.

The raw read is the faster of two: each file from its begin in pieces of 8 MiB through the page cache into one
huge-page buffer, by one thread, and four files at a time. ``ratio_to_direct`` is that to four threads that
read the same pieces past the page cache, as the loader reads blocks that are waited for. ``device_share`` is
what came from the device by the kernel's count (of the bytes of the files): at 1 the caches were cold. Each
epoch has a new `Loader`, which checks every CRC.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Final

from bench.loader.scale import MB, Scale, tokens
from loaders import Loader
from tiering import ingest, open_tier
from tiering.corpus import Corpus
from tiering.stores import direct
from tiering.stores.pages import aligned_buffer

PIECE_BYTES: Final = 8 << 20
THREADS: Final = (1, 4)
DIRECT: Final = f"direct, {max(THREADS)} threads"


def run(scale: Scale, folder: Path) -> dict[str, object]:
    """MB a second of the epoch and of the raw reads, and the ratio to the faster."""
    corpus = ingest({"tokens": tokens(scale)}, open_tier(folder / "disk", "disk"), "bench")
    files = files_of(corpus, folder / "disk")
    nbytes = sum(file.stat().st_size for file in files)
    ways: dict[str, Callable[[], None]] = {
        f"raw, {threads} threads": lambda threads=threads: read(files, threads) for threads in THREADS
    }
    ways[DIRECT] = lambda: read(files, max(THREADS), os.O_DIRECT)
    ways["loader, defaults"] = lambda: epoch(Loader(corpus, scale.batch))
    ways["loader, through the page cache"] = lambda: unhurried(Loader(corpus, scale.batch), files[0])
    ways["loader, verify always"] = lambda: epoch(Loader(corpus, scale.batch, verify="always"))
    sync(files)
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
    for _ in range(scale.cold_rounds):
        for name, one in ways.items():
            drop(files)
            device, cpu, begun = device_bytes(), time.process_time(), time.perf_counter()
            one()
            seconds = time.perf_counter() - begun
            cost = (time.process_time() - cpu) / nbytes * 1e9
            taken[name].append((nbytes / MB / seconds, cost, (device_bytes() - device) / nbytes))
    bound = max(median(speed for speed, *_ in taken[name]) for name in ways if name.startswith("raw"))
    straight = median(speed for speed, *_ in taken[DIRECT])
    figures = {}
    for name, rounds in taken.items():
        speed, cost, share = (median(values) for values in zip(*rounds, strict=True))
        figures[name] = {
            "mb_per_second": round(speed),
            "ratio": round(speed / bound, 3),
            "ratio_to_direct": round(speed / straight, 3),
            "cpu_seconds_per_gb": round(cost, 3),
            "device_share": round(share, 2),
        }
    return {"aim": 0.9, "megabytes": round(nbytes / MB), "rounds": scale.cold_rounds, "ways": figures}


def files_of(corpus: Corpus, folder: Path) -> list[Path]:
    """Files of all shards of a corpus on a file tier."""
    keys: list[str] = corpus.manifest["key"].to_pylist()
    return [folder / corpus.name / key for key in keys]


def sync(files: Iterable[Path]) -> None:
    """Have the files on the device: pages that are not cannot be dropped."""
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def drop(files: Iterable[Path]) -> None:
    """Drop the files from the page cache."""
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def device_bytes() -> int:
    """What this process had read from devices so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def read(files: list[Path], threads: int, flags: int = 0) -> None:
    """Read all files, in any order, each opened with these flags."""
    own = threading.local()

    def one(file: Path) -> None:
        if not hasattr(own, "buffer"):
            own.buffer = aligned_buffer(PIECE_BYTES)
        fd, offset = os.open(file, os.O_RDONLY | flags), 0
        while read := os.preadv(fd, [own.buffer], offset):
            offset += read
        os.close(fd)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, files))


def unhurried(loader: Loader, file: Path) -> None:
    """One epoch that reads blocks through the page cache, though they are waited for."""
    trial = direct.trial(file.stat().st_dev, "read")
    verdict, trial.verdict = trial.verdict, False
    try:
        epoch(loader)
    finally:
        trial.verdict = verdict


def epoch(loader: Loader) -> None:
    """One epoch, batches left alone."""
    for batch in loader:
        del batch
