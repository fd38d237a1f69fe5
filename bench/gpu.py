"""Batches in GPU memory, of files in the page cache, beside what the bus and kvikio carry, and beside torch.

Every feed gives the same rows in batches of 256, shuffled, and is measured until its last batch is on the
GPU; rounds are interleaved, and ratios are medians within a round. `h2d` copies page-locked memory in
pieces of a block; `kvikio` reads whole shards by `CuFile.pread`. `loader` is `Loader(device="cuda:0")`,
`pinned` the host loader through `TorchLoader(pin_memory=True)`, `host` a new one each round and no copy.
`torch` gathers each batch from a memmap and pins it; `gather` does so by numpy into page-locked memory that
is there, with no allocation on the host: the most that one thread can do. `training` has a step of so many
milliseconds on the GPU for each batch: its time alone over that with the feed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import cupy
import kvikio
import numpy as np
import torch
from torch.utils.data import BatchSampler, RandomSampler

from loaders import Loader
from loaders.torch import TorchLoader
from tiering import Corpus, ingest, open_tier

ROWS, WIDTH, BATCH, ROUNDS = 131_072, 2049, 256, 5
STEPS, STEP_BATCHES, STEP_ROUNDS = (0.25, 0.5, 1.0), 300, 3
"""Milliseconds of a step; how many of them in a round."""

Feed = Callable[[], Iterator[Any]]


def run() -> dict[str, object]:
    """Rates in thousands of rows a second, and ratios."""
    tokens = np.random.default_rng(1).integers(0, 257, (ROWS, WIDTH), dtype=np.uint16)
    with tempfile.TemporaryDirectory() as folder:
        tier = open_tier(Path(folder, "nvme"), name="nvme")
        raw = ingest({"tokens": tokens}, tier, "raw", progress=False)
        zstd = ingest({"tokens": tokens}, tier, "zstd", codec="zstd:1", progress=False)
        tokens.tofile(Path(folder, "tokens"))
        memmap = np.memmap(Path(folder, "tokens"), np.uint16, "r", shape=tokens.shape)
        feeds = make_feeds(raw, zstd, memmap)
        check(feeds, int(tokens[:, 7].sum(dtype=np.int64)))
        copy, read = bounds(raw, tokens.nbytes)
        seconds = interleaved(
            {name: lambda feed=feed: drain(feed) for name, feed in feeds.items()}
            | {"h2d": copy, "kvikio": read}
        )
        return {
            "gpu": torch.cuda.get_device_name(0),
            "megabytes": tokens.nbytes >> 20,
            "thousand_rows_per_second": {
                name: round(ROWS / 1e3 / median(times)) for name, times in seconds.items()
            },
            "gigabytes_per_second": {
                name: round(tokens.nbytes / 1e9 / median(times), 2) for name, times in seconds.items()
            },
            "ratios": {
                f"{name}_to_{bound}": ratio(seconds[bound], seconds[name])
                for name, bound in [
                    ("loader", "kvikio"),
                    ("loader", "h2d"),
                    ("loader", "torch"),
                    ("loader", "gather"),
                    ("loader", "host"),
                    ("loader_zstd", "loader"),
                    ("pinned", "h2d"),
                    ("pinned", "torch"),
                    ("pinned", "host"),
                    ("kvikio", "h2d"),
                ]
            },
            "training": [training(feeds, step) for step in STEPS],
        }


def make_feeds(raw: Corpus, zstd: Corpus, memmap: np.ndarray[Any, Any]) -> dict[str, Feed]:
    """Each gives the batches of an epoch."""
    direct, decoded = (
        TorchLoader(Loader(raw, BATCH, device="cuda:0")),
        TorchLoader(Loader(zstd, BATCH, device="cuda:0")),
    )
    pinned = TorchLoader(Loader(raw, BATCH), pin_memory=True)
    pinned_zstd = TorchLoader(Loader(zstd, BATCH), pin_memory=True)

    def by_torch() -> Iterator[Any]:
        for rows in BatchSampler(RandomSampler(range(len(memmap))), BATCH, drop_last=True):
            yield torch.from_numpy(memmap[rows]).pin_memory().to("cuda:0", non_blocking=True)

    rows_of = np.asarray(memmap)
    outs = [torch.empty(BATCH, WIDTH, dtype=torch.uint16, pin_memory=True) for _ in range(2)]

    def by_hand() -> Iterator[Any]:
        order, events = np.random.default_rng(2).permutation(len(rows_of)), [torch.cuda.Event() for _ in outs]
        for number in range(len(order) // BATCH):
            out, event = outs[number % 2], events[number % 2]
            event.synchronize()
            rows = order[number * BATCH : (number + 1) * BATCH]
            np.take(rows_of, rows, axis=0, out=out.numpy(), mode="clip")
            yield out.to("cuda:0", non_blocking=True)
            event.record()

    def moved(loader: Any) -> Feed:
        return lambda: (batch["tokens"].to("cuda:0", non_blocking=True) for batch in loader)

    return {
        "loader": lambda: (batch["tokens"] for batch in direct),
        "loader_zstd": lambda: (batch["tokens"] for batch in decoded),
        "pinned": moved(pinned),
        "pinned_zstd": moved(pinned_zstd),
        "host": lambda: (batch["tokens"] for batch in TorchLoader(Loader(raw, BATCH))),
        "torch": by_torch,
        "gather": by_hand,
    }


def bounds(corpus: Corpus, nbytes: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Copies of page-locked memory and reads of the corpus's files, of as many bytes as an epoch has."""
    block = corpus.layout.block_rows * WIDTH * 2
    pinned, device = (
        torch.empty(16, block, dtype=torch.uint8, pin_memory=True),
        torch.empty(16, block, dtype=torch.uint8, device="cuda:0"),
    )

    def copy() -> None:
        for number in range(nbytes // block):
            device[number % 16].copy_(pinned[number % 16], non_blocking=True)
        torch.cuda.synchronize()

    root = Path(corpus.tier.url.removeprefix("file://"), corpus.name)
    keys = [root / key for key in corpus.manifest["key"].to_pylist()]
    files = [kvikio.CuFile(path) for path in keys]
    sizes = [path.stat().st_size for path in keys]
    target = cupy.empty(max(sizes), np.uint8)

    def read() -> None:
        for file, size in zip(files, sizes, strict=True):
            file.pread(target[:size], size).get()

    return copy, read


def check(feeds: dict[str, Feed], expected: int) -> None:
    """Every feed gives every row once; also its first epoch, which the measured ones do not have."""
    for name, feed in feeds.items():
        found = sum(int(batch[:, 7].to(torch.int64).sum()) for batch in feed())
        if found != expected:
            raise RuntimeError(f"{name} gave other rows")


def drain(feed: Feed) -> None:
    """An epoch, until the GPU has it."""
    for _batch in feed():
        pass
    torch.cuda.synchronize()


def interleaved(calls: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds of each call in each round, after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            torch.cuda.synchronize()
            begun = time.perf_counter()
            call()
            if number:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def training(feeds: dict[str, Feed], milliseconds: float) -> dict[str, object]:
    """How much of the time goes to steps with each feed, on a stream of its own."""
    stream, cycles = torch.cuda.Stream(), int(milliseconds * 1e-3 * clock_rate())

    def steps(feed: Feed | None) -> None:
        with torch.cuda.stream(stream):
            batches: Iterator[Any] = iter(feed()) if feed else iter([None] * STEP_BATCHES)
            for _, batch in zip(range(STEP_BATCHES), batches, strict=False):
                torch.cuda._sleep(cycles)
                if batch is not None:
                    batch.view(torch.int16).sum()
            stream.synchronize()

    names = ["loader", "loader_zstd", "pinned", "pinned_zstd", "torch", "gather"]
    calls: dict[str, Callable[[], object]] = {"alone": lambda: steps(None)}
    calls |= {name: lambda name=name: steps(feeds[name]) for name in names}
    seconds = interleaved(calls, STEP_ROUNDS)
    return {
        "milliseconds_per_step": round(median(seconds["alone"]) / STEP_BATCHES * 1e3, 3),
        "share_of_time_in_steps": {name: ratio(seconds["alone"], seconds[name]) for name in names},
    }


def clock_rate() -> float:
    """Cycles a second of the GPU's clock while it works."""
    cycles = 200_000_000
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(2):  # once to warm up
        begin.record()
        torch.cuda._sleep(cycles)
        end.record()
        end.synchronize()
    return cycles / (begin.elapsed_time(end) * 1e-3)


def ratio(bound: list[float], own: list[float]) -> float:
    """Median of how much of the bound is reached."""
    return round(median(b / o for b, o in zip(bound, own, strict=True)), 3)
