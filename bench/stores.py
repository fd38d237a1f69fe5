"""The file and the block tier against raw calls of the same size on the same disk, in interleaved rounds.

The bound of a file's write is the better of a buffered one with fdatasync and an O_DIRECT one from huge pages
with fdatasync, both into preallocated room of a new file; that of a block's write an O_DIRECT one with
fdatasync into an image that is there; that of a cold read the better of the two ways into warm huge pages.
Each ratio is the median over the rounds of the tier's speed by its bound's in the same round. Beside it
stands what a block volume's safety costs by itself: ``raw_block_write_flushes`` makes the same syncs, each
waiting for the one before (data, header, commit).

``file_write`` and ``block_write`` are the bare stores; a block tier hashes what it is given unless the caller
knows the digest (``block_write_known``), as moves, ingests and repairs do. ``file_put`` and ``block_put`` are
what these cost on a tier: the write and the read back with its digest, by the same raw write and raw read one
after the other, neither hashed. ``shares`` says how much of the throughput the digest and the checksums take:
of the same work with and without them. The tiers also sync names and check lengths, and the first transfers
of a process, which find out which way is faster, are made before the clock runs. TMPDIR chooses the disk.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from tiering.digest import crc32c, digest
from tiering.stores import direct
from tiering.stores.base import Store
from tiering.stores.block import BlockStore, format_volume
from tiering.stores.file import FileStore
from tiering.stores.pages import PAGE_BYTES, PIECE_BYTES, aligned_buffer
from tiering.transfer import put_verified, read_verified

SHARD_BYTES, BLOCK_BYTES, ROUNDS, WARM_UPS, RANDOM_READS = 64 << 20, 1 << 20, 15, 6, 300

WRITES, READS = ("raw_write_buffered", "raw_write_direct"), ("raw_read_buffered", "raw_read_direct")
BOUNDS = {
    "file_write": WRITES,
    "file_read": READS,
    "file_read_into": READS,
    "block_write": ("raw_block_write",),
    "block_write_known": ("raw_block_write",),
    "file_put": ("raw_put_buffered", "raw_put_direct"),
    "block_put": ("raw_block_put",),
    "block_write_changeable": ("raw_block_write",),
    "raw_block_write_flushes": ("raw_block_write",),
    "block_read": READS,
    "block_read_into": READS,
    "block_random_1mib": ("raw_random_1mib",),
}
SHARES = {
    "digest_of_block_write": ("block_write", "block_write_known"),
    "digest_of_file_read": ("file_read_digested", "file_read"),
    "crc_of_random_1mib": ("block_random_1mib_checked", "block_random_1mib"),
}
"""Work with the check, work without."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured, and where."""

    folder: Path
    files: FileStore
    blocks: BlockStore
    image: int
    """A descriptor of a raw image that is there, O_DIRECT; `log` is one of an index's log."""

    log: int
    shard: memoryview
    target: memoryview
    name: str
    """The digest of `shard`."""

    clock: Clock


@dataclass(frozen=True, slots=True)
class Clock:
    """Megabytes a second and processor seconds a gigabyte of named work, by round."""

    speeds: dict[str, list[float]] = field(default_factory=dict)
    costs: dict[str, list[float]] = field(default_factory=dict)

    def time(self, name: str, work: Callable[[], object], nbytes: int = SHARD_BYTES) -> None:
        """Do the work once, which moves `nbytes`."""
        cpu, begun = time.process_time(), time.perf_counter()
        work()
        seconds = time.perf_counter() - begun
        self.speeds.setdefault(name, []).append(nbytes / 1e6 / seconds)
        self.costs.setdefault(name, []).append((time.process_time() - cpu) / nbytes * 1e9)

    def ratio(self, name: str, bounds: tuple[str, ...]) -> float:
        """Speed of `name` by that of the bound that is the fastest one as a rule."""
        best = max(bounds, key=lambda bound: median(self.speeds[bound]))
        pairs = zip(self.speeds[name], self.speeds[best], strict=True)
        return round(median(mine / theirs for mine, theirs in pairs), 3)

    def figures(self) -> dict[str, object]:
        """Medians of all, ratios and shares."""
        found: dict[str, object] = {}
        for name, speeds in self.speeds.items():
            entry = {
                "mb_per_second": round(median(speeds)),
                "cpu_seconds_per_gb": round(median(self.costs[name]), 3),
            }
            if name in BOUNDS:
                entry["ratio"] = self.ratio(name, BOUNDS[name])
            found[name] = entry
        shares = {name: round(1 - self.ratio(work, (bare,)), 3) for name, (work, bare) in SHARES.items()}
        return {**found, "shares": shares}


def run() -> dict[str, object]:
    """Speed, processor time and ratio of each kind of work."""
    with prepared() as bench:
        for _ in range(WARM_UPS):
            for store in (bench.files, bench.blocks):
                store.write("k", [bench.shard])
                store.read_into("k", 0, bench.target)
        for _ in range(ROUNDS):
            measure_writes(bench)
            measure_reads(bench)
            measure_puts(bench)
            for store in (bench.files, bench.blocks):
                store.delete("new")
        measure_blocks(bench)
        bench.clock.time("blake3", lambda: digest(bench.shard))
        bench.clock.time("crc32c", lambda: crc32c(bench.shard))
        device = bench.folder.stat().st_dev
        won = {way: direct.trial(device, way).verdict for way in ("read", "write")}
        return {"shard_bytes": SHARD_BYTES, "rounds": ROUNDS, "direct_won": won, **bench.clock.figures()}


@contextlib.contextmanager
def prepared() -> Iterator[Bench]:
    """Both tiers, a raw image and a shard of random bytes."""
    shard, target = aligned_buffer(SHARD_BYTES), aligned_buffer(SHARD_BYTES)
    shard[:] = np.random.default_rng(7).bytes(SHARD_BYTES)
    target[:] = shard
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        volume = folder / "volume.img"
        format_volume(volume, 4 * SHARD_BYTES)
        image, log = (
            os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600) for name in ("image", "log")
        )
        for fd in (image, log):
            stack.callback(os.close, fd)
            os.pwrite(fd, shard, 0)
            os.fsync(fd)
        blocks = stack.enter_context(BlockStore("block", volume))
        files = FileStore("file", folder / "files")
        readable = shard.toreadonly()
        yield Bench(folder, files, blocks, image, log, readable, target, digest(shard), Clock())


def measure_writes(bench: Bench) -> None:
    """One round of writes of whole shards."""
    shard, blocks, time_ = bench.shard, bench.blocks, bench.clock.time
    buffered, straight = bench.folder / "buffered", bench.folder / "direct"
    for path in (buffered, straight):
        path.unlink(missing_ok=True)
    changeable = bench.target
    changeable[:] = shard
    time_("raw_write_buffered", lambda: write_raw(buffered, shard, 0))
    time_("raw_write_direct", lambda: write_raw(straight, shard, os.O_DIRECT))
    time_("file_write", lambda: bench.files.write("new", [shard]))
    time_("raw_block_write", lambda: overwrite_raw(bench))
    time_("block_write", lambda: blocks.write("new", [shard]))
    blocks.delete("new")
    time_("raw_block_write_flushes", lambda: overwrite_raw(bench, flushes=True))
    time_("block_write_known", lambda: blocks.write("new", [shard], digest=bench.name))
    blocks.delete("new")
    time_("block_write_changeable", lambda: blocks.write("new", [changeable]))


def measure_puts(bench: Bench) -> None:
    """One round of what a move does to its target: write, and read back."""
    shard, time_ = bench.shard, bench.clock.time
    buffered, straight = bench.folder / "buffered", bench.folder / "direct"
    for path in (buffered, straight):
        path.unlink(missing_ok=True)
    for store in (bench.files, bench.blocks):
        store.delete("new")
    time_("raw_put_buffered", lambda: put_raw(bench, buffered, 0))
    time_("raw_put_direct", lambda: put_raw(bench, straight, os.O_DIRECT))
    time_("file_put", lambda: put_verified(bench.files, "new", [shard], SHARD_BYTES, bench.name))
    time_("raw_block_put", lambda: (overwrite_raw(bench), fill(bench.image, bench.target)))
    time_("block_put", lambda: put_verified(bench.blocks, "new", [shard], SHARD_BYTES, bench.name))


def measure_reads(bench: Bench) -> None:
    """One round of cold reads of whole shards."""
    target, time_ = bench.target, bench.clock.time
    buffered, straight = bench.folder / "buffered", bench.folder / "direct"
    forget(buffered)
    time_("raw_read_buffered", lambda: read_raw(buffered, target, 0))
    time_("raw_read_direct", lambda: read_raw(straight, target, os.O_DIRECT))
    for name, store in (("file", bench.files), ("block", bench.blocks)):
        path = located(store, "new")
        forget(path)  # a read that is found in memory says nothing of the disk
        time_(f"{name}_read_into", lambda store=store: store.read_into("new", 0, target))  # type: ignore[misc]
        forget(path)
        time_(f"{name}_read", lambda store=store: store.read("new"))  # type: ignore[misc]
    forget(located(bench.files, "new"))
    time_("file_read_digested", lambda: read_verified(bench.files, "new", SHARD_BYTES, bench.name))


def measure_blocks(bench: Bench) -> None:
    """Random reads of 1 MiB at multiples of it, by the tier and by the raw call, both past the page cache.

    Each at a place of its own, for what was just read may be in a cache below; in every order equally often,
    and each behind a raw read that is not counted, for a disk that has just had none takes longer.
    """
    dice, blocks = random.Random(7), bench.blocks
    extent = blocks.locate("k")
    block = bench.target[:BLOCK_BYTES]
    fd = os.open(extent.path, os.O_RDONLY | os.O_DIRECT)

    def checked(offset: int) -> None:
        blocks.read_into("k", offset, block)
        crc32c(block)

    ways: Mapping[str, Callable[[int], object]] = {
        "raw_random_1mib": lambda at: os.preadv(fd, [block], extent.offset + at),
        "block_random_1mib": lambda at: blocks.read_into("k", at, block),
        "block_random_1mib_checked": checked,
    }
    orders = itertools.cycle(itertools.permutations(ways))
    try:
        for _ in range(RANDOM_READS):
            places = [place * BLOCK_BYTES for place in dice.sample(range(SHARD_BYTES // BLOCK_BYTES), 6)]
            for name, before, at in zip(next(orders), places[::2], places[1::2], strict=True):
                ways["raw_random_1mib"](before)
                bench.clock.time(name, lambda name=name, at=at: ways[name](at), BLOCK_BYTES)  # type: ignore[misc]
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


def overwrite_raw(bench: Bench, *, flushes: bool = False) -> None:
    """Bytes and sync into room that is there; with `flushes`, a header and then a commit, too."""
    for start in range(0, SHARD_BYTES, PIECE_BYTES):
        os.pwrite(bench.image, bench.shard[start : start + PIECE_BYTES], start)
    os.fdatasync(bench.image)
    if flushes:
        os.pwrite(bench.image, bench.shard[:PAGE_BYTES], 0)
        os.fdatasync(bench.image)
        os.pwrite(bench.log, bench.shard[:PAGE_BYTES], 0)
        os.fdatasync(bench.log)


def put_raw(bench: Bench, path: Path, flags: int) -> None:
    """A write and the read back."""
    write_raw(path, bench.shard, flags)
    read_raw(path, bench.target, flags)


def read_raw(path: Path, target: memoryview, flags: int) -> None:
    """The same for a read."""
    fd = os.open(path, os.O_RDONLY | flags)
    fill(fd, target)
    os.close(fd)


def fill(fd: int, target: memoryview) -> None:
    """Read the first bytes of an open file."""
    for start in range(0, target.nbytes, PIECE_BYTES):
        os.preadv(fd, [target[start : start + PIECE_BYTES]], start)


def forget(path: Path) -> None:
    """Drop a file's pages from the page cache."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
