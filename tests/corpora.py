"""Small corpora whose rows tell their own number, the batches an order promises of them, and processes."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders import Loader
from policies import Order
from tiering import Corpus, Tier, ingest, open_tier
from tiering.stores import direct, hurry
from tiering.stores.file_systems import is_memory

ROOT = Path(__file__).parents[1]
SECONDS = 120
_names = itertools.count()


def columns(rows: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The columns of these rows: a scalar, and a matrix of small integers."""
    row = np.asarray(rows, np.int64)
    return {"row": row, "pair": (row[:, None, None] * 7 + np.arange(6).reshape(3, 2)).astype(np.uint16)}


def shard_bytes(block_rows: int, shard_blocks: int) -> int:
    """The `shard_size` that makes shards of so many blocks."""
    return shard_blocks * (-(-(block_rows * 12 + 4) // 4096) * 4096)


def make_corpus(
    tier: Tier, rows: int, block_rows: int, shard_blocks: int, name: str = "c", **options: Any
) -> Corpus:
    return ingest(
        columns(range(rows)),
        tier,
        name,
        shard_size=shard_bytes(block_rows, shard_blocks),
        block_rows=block_rows,
        progress=False,
        **options,
    )


@contextmanager
def memory_tier() -> Iterator[Tier]:
    """A tier in memory that is gone afterwards."""
    tier = open_tier(f"memory://corpora-{next(_names)}")
    try:
        yield tier
    finally:
        tier.close()


@contextmanager
def memory_corpus(rows: int, block_rows: int, shard_blocks: int, **options: Any) -> Iterator[Corpus]:
    """A corpus in memory that is gone afterwards."""
    with memory_tier() as tier:
        yield make_corpus(tier, rows, block_rows, shard_blocks, **options)


def promised(
    order: Order, batch_size: int, rank: int = 0, world_size: int = 1, *, epoch: int = 0, start: int = 0,
    drop_last: bool = True,
) -> list[list[int]]:  # fmt: skip
    """Row numbers of each batch of a rank from a position on, straight from the order, row by row."""
    step = batch_size * world_size // order.lanes
    lanes = [order.rows(epoch, lane, 0, order.lane_rows(epoch, lane)).tolist() for lane in range(order.lanes)]
    shortest, longest = min(map(len, lanes)), max(map(len, lanes))
    share = order.lanes // world_size
    mine = lanes[rank * share : (rank + 1) * share]
    batches = []
    while start + step <= shortest if drop_last else start < longest:
        batches.append([row for lane in mine for row in lane[start : start + step]])
        start += step
    return batches


def seen(loader: Loader) -> list[list[int]]:
    """Row numbers of each batch of one loop, after a check of every column."""
    found = []
    for batch in loader:
        rows = batch["row"].tolist()
        for name, values in columns(rows).items():
            assert batch[name].dtype == values.dtype
            assert np.array_equal(batch[name], values)
        found.append(rows)
    return found


def joined(*ranks: list[list[int]]) -> list[list[int]]:
    """The global batches of some ranks."""
    return [list(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)]


def start_python(code: str, *arguments: Any) -> subprocess.Popen[str]:
    """A new interpreter that runs `code` with these arguments, as imports are here."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
    )


def run_python(code: str, *arguments: Any) -> str:
    """What `code` prints in a process of its own; it must end well."""
    with start_python(code, *arguments) as process:
        try:
            out, errors = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    return out


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)  # pages that are not on the disk yet would stay
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def forget_trials(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Forget for a test which ways past the page cache this process found slow or closed.

    Returns:
        The devices found closed from here on, a live set.
    """
    closed: set[int] = set()
    monkeypatch.setattr(hurry, "_closed", closed)
    trial = direct.Trial()
    monkeypatch.setattr(direct, "trial", lambda _device, _way: trial)
    return closed


def has_a_way_past_the_page_cache(folder: Path) -> bool:
    """Whether files below a folder can be read in a hurry (`tiering.stores.hurry`), and not from memory."""
    if is_memory(folder):
        return False
    with tempfile.TemporaryFile(dir=folder) as file:
        told = hurry.is_cached(file.fileno(), 0, 1) is not None
        return told and direct._set_direct(file.fileno(), on=True)


def open_below(folder: Path) -> int:
    """How many descriptors of this process lead below `folder`."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile, by another thread
            found += link.readlink().is_relative_to(folder)
    return found
