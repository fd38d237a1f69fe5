"""The file and the block tier against raw calls of the same size on the same disk, in interleaved rounds.

The bound of a write is the better of a buffered one with fdatasync and an O_DIRECT one from huge pages with
fdatasync, both into preallocated room; the bound of a cold read is the better of the two ways into warm
huge pages. The tiers also sync names, check lengths and (block) hash, and the first transfers of a process,
which find out which way is faster, are made before the clock runs. TMPDIR chooses the disk.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from tiering.digest import crc32c, digest
from tiering.stores import direct
from tiering.stores.base import Store
from tiering.stores.block import BlockStore, format_volume
from tiering.stores.file import FileStore
from tiering.stores.pages import PIECE_BYTES, aligned_buffer

SHARD_BYTES, BLOCK_BYTES, ROUNDS, WARM_UPS, RANDOM_READS = 64 << 20, 1 << 20, 9, 6, 200


class Clock:
    """Megabytes a second and processor seconds a gigabyte of named work."""

    def __init__(self) -> None:
        self._speeds: dict[str, list[float]] = {}
        self._costs: dict[str, list[float]] = {}

    def time(self, name: str, nbytes: int, work: Callable[[], object]) -> None:
        """Do the work once, which moves `nbytes`."""
        cpu, begun = time.process_time(), time.perf_counter()
        work()
        seconds = time.perf_counter() - begun
        self._speeds.setdefault(name, []).append(nbytes / 1e6 / seconds)
        self._costs.setdefault(name, []).append((time.process_time() - cpu) / nbytes * 1e9)

    def figures(self, bounds: dict[str, tuple[str, ...]]) -> dict[str, object]:
        """Medians, and for each name in `bounds` the ratio to the best of its bounds."""
        found: dict[str, object] = {}
        for name, speeds in self._speeds.items():
            entry = {
                "mb_per_second": round(median(speeds)),
                "cpu_seconds_per_gb": round(median(self._costs[name]), 3),
            }
            found[name] = entry
            if name in bounds:
                best = max(median(self._speeds[bound]) for bound in bounds[name])
                entry["ratio"] = round(median(speeds) / best, 3)
        return found


def run() -> dict[str, object]:
    """Speed, processor time and ratio of each kind of work."""
    clock = Clock()
    shard = aligned_buffer(SHARD_BYTES)
    shard[:] = np.random.default_rng(7).bytes(SHARD_BYTES)
    target = aligned_buffer(SHARD_BYTES)
    target[:] = shard
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        volume = folder / "volume.img"
        format_volume(volume, 4 * SHARD_BYTES)
        files = FileStore("file", folder / "files")
        blocks = stack.enter_context(BlockStore("block", volume))
        for _ in range(WARM_UPS):
            for store in (files, blocks):
                store.write("k", [shard])
                store.read_into("k", 0, target)
        for _ in range(ROUNDS):
            measure_shards(clock, folder, files, blocks, shard, target)
        measure_blocks(clock, blocks, target)
        clock.time("blake3", SHARD_BYTES, lambda: digest(shard))
        clock.time("crc32c", SHARD_BYTES, lambda: crc32c(shard))
        device = folder.stat().st_dev
        found = {way: direct.trial(device, way).verdict for way in ("read", "write")}
    writes, reads = ("raw_write_buffered", "raw_write_direct"), ("raw_read_buffered", "raw_read_direct")
    bounds = {"file_write": writes, "block_write": writes, "block_random_1mib": ("raw_random_1mib",)}
    bounds |= dict.fromkeys(("file_read_into", "file_read", "block_read_into", "block_read"), reads)
    return {"shard_bytes": SHARD_BYTES, "rounds": ROUNDS, "direct_won": found, **clock.figures(bounds)}


def measure_shards(
    clock: Clock, folder: Path, files: Store, blocks: Store, shard: memoryview, target: memoryview
) -> None:
    """One round of writes and of cold reads of whole shards."""
    buffered, straight = folder / "buffered", folder / "direct"
    clock.time("raw_write_buffered", SHARD_BYTES, lambda: write_raw(buffered, shard, 0))
    clock.time("raw_write_direct", SHARD_BYTES, lambda: write_raw(straight, shard, os.O_DIRECT))
    clock.time("file_write", SHARD_BYTES, lambda: files.write("new", [shard]))
    clock.time("block_write", SHARD_BYTES, lambda: blocks.write("new", [shard]))
    clock.time("raw_read_direct", SHARD_BYTES, lambda: read_raw(straight, target, os.O_DIRECT))
    forget(buffered)
    clock.time("raw_read_buffered", SHARD_BYTES, lambda: read_raw(buffered, target, 0))
    for name, store in (("file", files), ("block", blocks)):
        path = located(store, "new")
        forget(path)  # a read that is found in memory says nothing of the disk
        clock.time(f"{name}_read_into", SHARD_BYTES, lambda store=store: store.read_into("new", 0, target))  # type: ignore[misc]
        forget(path)
        clock.time(f"{name}_read", SHARD_BYTES, lambda store=store: store.read("new"))  # type: ignore[misc]
    for path in (buffered, straight):
        path.unlink()
    for store in (files, blocks):
        store.delete("new")


def measure_blocks(clock: Clock, blocks: BlockStore, target: memoryview) -> None:
    """Random reads of 1 MiB at multiples of it, by the tier and by the raw call, in turns."""
    dice = random.Random(7)
    extent = blocks.locate("k")
    block = target[:BLOCK_BYTES]
    fd = os.open(extent.path, os.O_RDONLY | os.O_DIRECT)
    try:
        for _ in range(RANDOM_READS):
            offset = dice.randrange(SHARD_BYTES // BLOCK_BYTES) * BLOCK_BYTES
            at = extent.offset + offset
            clock.time("raw_random_1mib", BLOCK_BYTES, lambda at=at: os.preadv(fd, [block], at))  # type: ignore[misc]
            clock.time(
                "block_random_1mib",
                BLOCK_BYTES,
                lambda offset=offset: blocks.read_into("k", offset, block),  # type: ignore[misc]
            )
    finally:
        os.close(fd)


def located(store: Store, key: str) -> Path:
    """The file that holds an object."""
    extent = store.locate(key)
    assert extent
    return extent.path


def write_raw(path: Path, data: memoryview, flags: int) -> None:
    """What the disk can do: room, bytes, sync."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o600)
    os.posix_fallocate(fd, 0, data.nbytes)
    for start in range(0, data.nbytes, PIECE_BYTES):
        os.pwrite(fd, data[start : start + PIECE_BYTES], start)
    os.fdatasync(fd)
    os.close(fd)


def read_raw(path: Path, target: memoryview, flags: int) -> None:
    """The same for a read."""
    fd = os.open(path, os.O_RDONLY | flags)
    for start in range(0, target.nbytes, PIECE_BYTES):
        os.preadv(fd, [target[start : start + PIECE_BYTES]], start)
    os.close(fd)


def forget(path: Path) -> None:
    """Drop a file's pages from the page cache."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
