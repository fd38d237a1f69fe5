"""Device slots on the host: the same slot logic on a device without a GPU."""

import contextlib
import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders import Loader
from loaders.gpu import CudaSlots, ReadPath, SlotFences, aligned_rows
from loaders.slots import Batch, Slots
from loaders.window import WindowFeed, slots_needed
from tests.gpu.host_device import (
    BLOCK_ROWS,
    ROWS,
    TOKENS,
    HostDevice,
    HostEvent,
    assert_same,
    flip,
    make,
    shard_file,
)
from tiering import Corpus, NodeCache, open_tier
from tiering.errors import Unavailable
from tiering.reader import BlockReader


def batches(corpus: Corpus, make_slots: Any, reader: BlockReader) -> Iterator[Batch]:
    order = host_loader(corpus).order
    slots: Slots = make_slots(reader, slots_needed(order, 4))
    end = -(-ROWS // 4)
    with WindowFeed(order, slots, 0, range(4), 0, end, 3) as feed:
        for start in range(0, end, 8):
            yield feed.batch(start, min(start + 8, end))


def host_loader(corpus: Corpus) -> Loader:
    return Loader(corpus, 32, lanes=4, group_shards=2, window_blocks=2, drop_last=False)


def run(corpus: Corpus, device: HostDevice, cache: NodeCache | None = None) -> ReadPath:
    """Compare an epoch on a device with one on the host, batch by batch."""
    used: list[CudaSlots] = []

    def make_slots(reader: BlockReader, count: int) -> CudaSlots:
        used.append(CudaSlots(reader, count, device))
        return used[-1]

    expected = host_loader(corpus)
    found = batches(corpus, make_slots, BlockReader(corpus, cache=cache))
    rows = 0
    for left, right in zip(expected, found, strict=True):
        assert_same(left, right)
        rows += len(left["label"])
    assert rows == ROWS
    used[0].close()
    used[0].close()
    assert all(file.closed for file in device.files)
    return used[0].path


def test_raw_zarr_on_a_file_tier_is_read_direct(tmp_path: Path) -> None:
    device = HostDevice()
    path = run(make(open_tier(tmp_path / "lake", name="lake")), device)
    assert path.host == 0
    assert path.direct == device.preads >= 3 * -(-ROWS // BLOCK_ROWS)
    assert path.device == "host"


def test_other_blocks_go_through_host_memory_and_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device = HostDevice()
    with caplog.at_level(logging.WARNING, "loaders.gpu"):
        path = run(make(open_tier(f"memory://gpu-slots-{tmp_path.name}", name="lake")), device)
    assert path.direct == device.preads == 0
    assert path.host >= 2 * -(-ROWS // BLOCK_ROWS)
    told = [record.getMessage() for record in caplog.records if record.name == "loaders.gpu"]
    assert len(told) == 1
    assert "memory tier 'lake'" in told[0]


def test_shards_in_the_node_cache_are_read_direct_and_the_others_are_not(tmp_path: Path) -> None:
    corpus = make(open_tier(f"memory://gpu-slots-cache-{tmp_path.name}", name="far"))
    with contextlib.closing(NodeCache(tmp_path / "all", "10MB")) as cache:
        path = run(corpus, HostDevice(), cache)
        assert path.host == 0
    with contextlib.closing(NodeCache(tmp_path / "some", corpus.nbytes // 2)) as cache:
        path = run(corpus, HostDevice(), cache)
        assert path.host > 0
        assert path.direct > 0


def test_a_bad_shard_in_the_node_cache_is_fetched_anew(tmp_path: Path) -> None:
    corpus = make(open_tier(f"memory://gpu-slots-bad-{tmp_path.name}", name="far"))
    with contextlib.closing(NodeCache(tmp_path / "cache", "10MB")) as cache:
        run(corpus, HostDevice(), cache)
        for name in (tmp_path / "cache/objects").rglob("??*"):
            if name.is_file():
                flip(name, 7)
        path = run(corpus, HostDevice(), cache)
        assert path.direct > 0
        assert cache.status().used_bytes == corpus.nbytes


def test_blocks_read_direct_are_counted_by_the_reader(tmp_path: Path) -> None:
    corpus = make(open_tier(tmp_path / "lake", name="lake"))
    reader = BlockReader(corpus, ["tokens"])
    slots = CudaSlots(reader, 2, HostDevice())
    slots.read(0, 0, 0)
    before = reader.counts.bytes_needed, reader.counts.bytes_fetched
    slots.read(0, 1, 1)
    nbytes = BLOCK_ROWS * 96 * 2
    assert (reader.counts.bytes_needed, reader.counts.bytes_fetched) == (
        before[0] + nbytes,
        before[1] + nbytes,
    )
    slots.close()


@pytest.mark.parametrize("damage", ["flip", "cut", "index", "gone"])
def test_a_damaged_shard_is_healed_from_another_tier_and_read_direct(tmp_path: Path, damage: str) -> None:
    lake, disk = (open_tier(tmp_path / name, name=name) for name in ("lake", "disk"))
    make(lake)
    corpus = make(disk).with_copy(lake)
    file = shard_file(corpus, tmp_path / "disk")
    if damage == "cut":
        os.truncate(file, file.stat().st_size - 1)
    elif damage == "gone":
        file.unlink()
    else:
        flip(file, 4096 + 3 if damage == "flip" else -8)
    good = shard_file(corpus, tmp_path / "lake").read_bytes()
    reader, device = BlockReader(corpus, ["tokens"]), HostDevice()
    slots = CudaSlots(reader, 1, device)
    slots.read(0, 0, 0)
    batch = slots.new_batch(BLOCK_ROWS)
    slots.gather(batch, 0, np.zeros(BLOCK_ROWS, np.int64), np.arange(BLOCK_ROWS))
    np.testing.assert_array_equal(batch["tokens"], TOKENS[:BLOCK_ROWS])
    assert file.read_bytes() == good
    assert reader.counts.damaged == [("disk", corpus.key(file.relative_to(tmp_path / "disk/web").as_posix()))]
    assert slots.path.direct == 1
    slots.close()


@pytest.mark.parametrize(
    "device", [HostDevice(error=OSError), HostDevice(error=RuntimeError), HostDevice(cut=1)]
)
def test_a_failing_direct_read_goes_through_host_memory(tmp_path: Path, device: HostDevice) -> None:
    path = run(make(open_tier(tmp_path / "lake", name="lake")), device)
    assert path.direct == 0
    assert path.host > 0


def test_a_slot_is_overwritten_only_after_the_gathers_that_read_it(tmp_path: Path) -> None:
    corpus = make(open_tier(tmp_path / "lake", name="lake"))
    device = HostDevice()
    slots = CudaSlots(BlockReader(corpus), 3, device)
    for slot in range(3):
        slots.read(0, slot, slot)
    batch = slots.new_batch(4)
    slots.gather(batch, 0, np.array([0, 1, 0, 1]), np.arange(4))
    slots.gather(batch, 0, np.array([1, 1]), np.arange(2))
    first, second = device.events
    slots.read(0, 0, 2)
    assert (first.waits, second.waits) == (0, 0)
    slots.read(0, 0, 0)
    assert (first.waits, second.waits) == (1, 0)
    slots.read(0, 0, 1)
    slots.read(0, 0, 1)
    assert (first.waits, second.waits) == (1, 1)
    slots.gather(batch, 0, np.array([2]), np.array([0]))
    del slots
    gc.collect()
    assert device.events[-1].waits == 1  # memory is given back after that
    assert all(file.closed for file in device.files)


def test_a_forked_child_leaves_the_gpu_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = HostDevice()
    slots = CudaSlots(BlockReader(make(open_tier(tmp_path / "lake", name="lake"))), 1, device)
    slots.read(0, 0, 0)
    slots.gather(slots.new_batch(1), 0, np.array([0]), np.array([0]))
    monkeypatch.setattr(os, "getpid", lambda: -1)
    slots.close()
    assert device.events[0].waits == 0
    assert not any(file.closed for file in device.files)
    for file in device.files:
        file.close()


def test_a_tier_that_does_not_answer_is_no_reason_for_host_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = BlockReader(make(open_tier(tmp_path / "lake", name="lake")))

    def fail(column: str, shard: int, block: int) -> None:
        raise Unavailable("gone")

    monkeypatch.setattr(reader, "raw_block", fail)
    slots = CudaSlots(reader, 1, HostDevice())
    with pytest.raises(Unavailable):
        slots.read(0, 0, 0)
    assert slots.path.host == 0


def test_slot_fences_keep_the_last_event_of_each_stream() -> None:
    fences, events = SlotFences(2), [HostEvent() for _ in range(3)]
    for stream, event in zip([7, 8, 7], events, strict=True):
        fences.used([1], stream, event)
    fences.wait(0)
    fences.wait(1)
    fences.wait(1)
    assert [event.waits for event in events] == [0, 1, 1]


def test_aligned_rows_pads_only_where_it_costs_little() -> None:
    assert aligned_rows(16, 4096) == 16
    assert aligned_rows(255, 192) == 256
    assert aligned_rows(1000, 8) == 1024
    assert aligned_rows(1000, 3) == 1000


def test_slots_begin_on_pages_and_read_nothing_of_the_crc(tmp_path: Path) -> None:
    corpus = make(open_tier(tmp_path / "lake", name="lake"))
    slots = CudaSlots(BlockReader(corpus, ["tokens"]), 2, HostDevice())
    assert slots.slot_rows("tokens") == BLOCK_ROWS  # 3072 bytes: a page would be a third more
    assert slots.nbytes == 2 * BLOCK_ROWS * 192
    slots.read(0, 1, 0)
    slots.read(0, 0, 1)
    batch = slots.new_batch(2)
    slots.gather(batch, 0, np.array([0, 1]), np.array([BLOCK_ROWS - 1, 0]))
    np.testing.assert_array_equal(batch["tokens"], TOKENS[[2 * BLOCK_ROWS - 1, 0]])
    slots.close()
