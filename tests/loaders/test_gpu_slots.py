"""Device slots on the host: the same slot logic with numpy for cupy and `os.preadv` for kvikio."""

import contextlib
import ctypes
import gc
import itertools
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from loaders import Loader, gpu_device
from loaders.gpu import CudaSlots, ReadPath, SlotFences, aligned_rows
from loaders.gpu_device import RawFiles, open_device, prove
from loaders.slots import Batch, HostSlots, Slots
from loaders.window import WindowFeed, slots_needed
from tiering import Corpus, NodeCache, Tier, ingest, open_tier
from tiering.digest import Hasher
from tiering.errors import CapacityExceeded, Corrupt, UsageError
from tiering.reader import BlockReader, RawBlock

ROWS, BLOCK_ROWS = 700, 16
TOKENS = np.random.default_rng(3).integers(0, 1 << 16, (ROWS, 96), dtype=np.uint16)
LABELS = np.arange(ROWS, dtype=np.int64)
MASKS = np.random.default_rng(5).integers(0, 2, (ROWS, 3, 5)).astype(np.bool_)
COLUMNS = {"tokens": TOKENS, "label": LABELS, "mask": MASKS}


class HostFile:
    """Like `kvikio.CuFile`."""

    def __init__(self, path: Path, cut: int = 0) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self._cut = cut
        self.closed = False
        self.preads = 0

    def fileno(self) -> int:
        return self._fd

    def pread(self, buf: Any, size: int, file_offset: int) -> Any:
        assert not self.closed
        assert buf.nbytes >= size
        self.preads += 1
        done = os.preadv(self._fd, [memoryview(buf)[: size - self._cut]], file_offset)
        return SimpleNamespace(get=lambda: done)

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        os.close(self._fd)


class HostEvent:
    def __init__(self) -> None:
        self.waits = 0

    def synchronize(self) -> None:
        self.waits += 1


class HostDevice:
    """A `Device` without a GPU."""

    name = "host"
    arrays: Any = np

    def __init__(self, *, compat: bool = False, cut: int = 0, error: type[Exception] | None = None) -> None:
        self.compat = compat
        self.files: list[HostFile] = []
        self.events: list[HostEvent] = []
        self._cut, self._error = cut, error

    @property
    def preads(self) -> int:
        return sum(file.preads for file in self.files)

    def active(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def memory(self, nbytes: int) -> Any:
        return np.full(nbytes, 0xA5, np.uint8)

    def record(self) -> tuple[int, HostEvent]:
        self.events.append(HostEvent())
        return 0, self.events[-1]

    def pinned(self, nbytes: int) -> Any:
        return np.empty(nbytes, np.uint8)

    def copy(self, host: Any, memory: Any) -> None:
        assert host.nbytes == memory.nbytes
        memory[:] = host

    def open(self, path: Path) -> HostFile:
        if self._error:
            raise self._error("cannot open")
        self.files.append(HostFile(path, self._cut))
        return self.files[-1]


def make(tier: Tier, form: str = "zarr", codec: str | None = None) -> Corpus:
    source: Any = COLUMNS
    if form == "arrow":
        tokens = pa.FixedSizeListArray.from_arrays(pa.array(TOKENS.reshape(-1)), 96)
        source = pa.table({"tokens": tokens, "label": LABELS})
    return ingest(
        source,
        tier,
        "web",
        format=form,
        shard_size="20KiB",
        block_rows=BLOCK_ROWS,
        codec=codec,
        progress=False,
    )


def batches(corpus: Corpus, make_slots: type[HostSlots] | Any, reader: BlockReader) -> Iterator[Batch]:
    order = Loader(corpus, 32, lanes=4, group_shards=2, window_blocks=2).order
    slots: Slots = make_slots(reader, slots_needed(order, 4))
    end = -(-ROWS // 4)
    with WindowFeed(order, slots, 0, range(4), 0, end, 3) as feed:
        for start in range(0, end, 8):
            yield feed.batch(start, min(start + 8, end))


def run(corpus: Corpus, device: HostDevice, cache: NodeCache | None = None) -> ReadPath:
    """Compare an epoch on a device with one on the host, batch by batch."""
    used: list[CudaSlots] = []

    def make_slots(reader: BlockReader, count: int) -> CudaSlots:
        used.append(CudaSlots(reader, count, device))
        return used[-1]

    expected = batches(corpus, HostSlots, BlockReader(corpus))
    found = batches(corpus, make_slots, BlockReader(corpus, cache=cache))
    rows = 0
    for left, right in zip(expected, found, strict=True):
        assert left.keys() == right.keys()
        for name, values in left.items():
            assert right[name].dtype == values.dtype
            np.testing.assert_array_equal(right[name], values)
        rows += len(left["label"])
    assert rows == ROWS
    used[0].close()
    used[0].close()
    assert all(file.closed for file in device.files)
    return used[0].path


def shard_file(corpus: Corpus, root: Path, column: str = "tokens", shard: int = 0) -> Path:
    table = corpus.manifest.to_pylist()
    (key,) = [row["key"] for row in table if (row["column"], row["shard"]) == (column, shard)]
    return root / "web" / str(key)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_raw_zarr_on_a_file_tier_is_read_direct(tmp_path: Path) -> None:
    device = HostDevice()
    path = run(make(open_tier(tmp_path / "lake", name="lake")), device)
    assert path.host == 0
    assert path.direct == device.preads >= 3 * -(-ROWS // BLOCK_ROWS)
    assert (path.device, path.compat) == ("host", False)


@pytest.mark.parametrize(
    ("url", "form", "codec", "why"),
    [
        ("{}/lake", "zarr", "zstd:1", "compressed (zstd:1)"),
        ("{}/lake", "arrow", None, "the format 'arrow'"),
        ("memory://gpu-slots-{}", "zarr", None, "memory tier 'lake'"),
    ],
)
def test_other_blocks_go_through_host_memory_and_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, url: str, form: str, codec: str | None, why: str
) -> None:
    device = HostDevice()
    where = url.format(tmp_path if form == "arrow" or codec else tmp_path.name)
    with caplog.at_level(logging.WARNING, "loaders.gpu"):
        path = run(make(open_tier(where, name="lake"), form, codec), device)
    assert path.direct == device.preads == 0
    assert path.host >= 2 * -(-ROWS // BLOCK_ROWS)
    told = [record.getMessage() for record in caplog.records if record.name == "loaders.gpu"]
    assert len(told) == 1
    assert why in told[0]


def test_shards_in_the_node_cache_are_read_direct_and_the_others_are_not(tmp_path: Path) -> None:
    corpus = make(open_tier(f"memory://gpu-slots-cache-{tmp_path.name}", name="far"))
    with contextlib.closing(NodeCache(tmp_path / "all", "10MB")) as cache:
        path = run(corpus, HostDevice(), cache)
        assert path.host == 0
    with contextlib.closing(NodeCache(tmp_path / "some", corpus.nbytes // 2)) as cache:
        path = run(corpus, HostDevice(), cache)
        assert path.host > 0
        assert path.direct > 0


def test_a_bad_shard_in_the_node_cache_is_read_from_its_tier(tmp_path: Path) -> None:
    corpus = make(open_tier(f"memory://gpu-slots-bad-{tmp_path.name}", name="far"))
    with contextlib.closing(NodeCache(tmp_path / "cache", "10MB")) as cache:
        run(corpus, HostDevice(), cache)
        for name in (tmp_path / "cache/objects").rglob("??*"):
            if name.is_file():
                flip(name, 7)
        path = run(corpus, HostDevice(), cache)
    assert path.direct == 0
    assert path.host > 0


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


def test_a_damaged_shard_is_found_before_any_of_its_bytes_are_read(tmp_path: Path) -> None:
    corpus = make(open_tier(tmp_path / "lake", name="lake"))
    flip(shard_file(corpus, tmp_path / "lake"), 4096 + 3)  # in block 1
    device = HostDevice()
    slots = CudaSlots(BlockReader(corpus, ["tokens"]), 2, device)
    with pytest.raises(Corrupt, match="no good copy"):
        slots.read(0, 0, 0)
    assert device.preads == 0
    slots.read(1, 0, 1)  # the next shard is good
    assert device.preads == 1
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


def test_a_shard_is_hashed_once_and_again_after_its_file_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[object] = []

    class Counted(Hasher):
        def hexdigest(self) -> str:
            hashed.append(self)
            return super().hexdigest()

    monkeypatch.setattr(gpu_device, "Hasher", Counted)
    corpus = make(open_tier(tmp_path / "lake", name="lake"))
    reader = BlockReader(corpus, ["tokens"])
    for _ in range(2):
        slots = CudaSlots(reader, 2, HostDevice())
        slots.read(0, 0, 0)
        slots.read(0, 1, 1)
        slots.close()
    assert len(hashed) == 1
    slots = CudaSlots(reader, 2, HostDevice())
    slots.read(0, 0, 0)
    file = shard_file(corpus, tmp_path / "lake")
    flip(file, 1)
    os.utime(file, ns=(1, 1))
    with pytest.raises(Corrupt):
        slots.read(0, 0, 0)
    assert len(hashed) == 2
    slots.close()


@pytest.mark.parametrize(
    "device", [HostDevice(error=OSError), HostDevice(error=RuntimeError), HostDevice(cut=1)]
)
def test_a_failing_direct_read_goes_through_host_memory(tmp_path: Path, device: HostDevice) -> None:
    path = run(make(open_tier(tmp_path / "lake", name="lake")), device)
    assert path.direct == 0
    assert path.host > 0


def test_compat_mode_is_reported_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "loaders.gpu"):
        path = run(make(open_tier(tmp_path / "lake", name="lake")), HostDevice(compat=True))
    assert path.compat
    assert "compatibility mode" in caplog.text


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


def test_raw_files_stay_below_their_limit_and_are_closed_after_use(tmp_path: Path) -> None:
    corpus = make(open_tier(tmp_path / "lake", name="lake"))
    reader = BlockReader(corpus, ["tokens"])
    raws = [raw for shard in range(3) if (raw := reader.raw_block("tokens", shard, 0))]
    opened: list[HostFile] = []

    def open_file(path: Path) -> HostFile:
        opened.append(HostFile(path))
        return opened[-1]

    files = RawFiles(open_file, 2)
    for raw in (raws[0], raws[1], raws[0], raws[2]):
        with files.proven(raw):
            pass
    assert [file.closed for file in opened] == [False, True, False]
    with files.proven(raws[0]) as used:
        files.close()
        assert not opened[0].closed
        assert used is opened[0]
    assert all(file.closed for file in opened)


def test_raw_files_that_were_deleted_are_closed(tmp_path: Path) -> None:
    corpus = make(open_tier(tmp_path / "lake", name="lake"))
    raw = BlockReader(corpus, ["tokens"]).raw_block("tokens", 0, 0)
    assert raw is not None
    files = RawFiles(HostFile, 9)
    with files.proven(raw) as file:
        raw.file.path.unlink()
    assert isinstance(file, HostFile)
    assert file.closed


def test_a_shard_is_proven_by_one_thread_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = make(open_tier(tmp_path / "lake", name="lake"))
    raw = BlockReader(corpus, ["tokens"]).raw_block("tokens", 0, 0)
    assert raw is not None
    inside, most = itertools.count(1), []
    barrier = threading.Lock()

    def alone(raw: RawBlock, descriptor: int) -> None:
        assert barrier.acquire(blocking=False)
        most.append(next(inside))
        prove(raw, descriptor)
        barrier.release()

    monkeypatch.setattr(gpu_device, "prove", alone)
    files = RawFiles(HostFile, 4)

    def use() -> None:
        with files.proven(raw):
            pass

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 8
    files.close()


@pytest.mark.parametrize(
    "name", ["cuda", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:0 ", "CUDA:0", "", "cuda:99999"]
)
def test_a_malformed_device_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"is no device.*'cuda:0'"):
        open_device(name)


class FakeArray(np.ndarray[Any, Any]):
    """Like `cupy.ndarray`."""

    @property
    def data(self) -> Any:
        address = self.ctypes.data

        def copy(source: int, nbytes: int, stream: Any) -> None:
            ctypes.memmove(address, source, nbytes)

        return SimpleNamespace(ptr=address, copy_from_host_async=copy)


class FakeDevices:
    """A driver, cupy and kvikio, each of which can be missing or broken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, result: int = 0, count: int = 2) -> None:
        self.threads = 1
        self._patch = monkeypatch
        stream = SimpleNamespace(ptr=5, synchronize=lambda: None, record=lambda event: event)
        self.cuda = SimpleNamespace(
            runtime=SimpleNamespace(getDeviceCount=lambda: count),
            Device=lambda number: contextlib.nullcontext(number),
            Stream=lambda non_blocking: stream,
            Event=lambda block, disable_timing: HostEvent(),
            get_current_stream=lambda: stream,
            alloc_pinned_memory=bytearray,
        )
        self.cupy = SimpleNamespace(cuda=self.cuda, empty=self.empty, asarray=np.asarray, take=np.take)
        defaults = SimpleNamespace(
            is_compat_mode_preferred=lambda: True,
            get={"num_threads": self.threads}.__getitem__,
            set=lambda _name, value: setattr(self, "threads", value),
        )
        driver = SimpleNamespace(cuInit=lambda flags: result)
        monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
        self.set("cupy", self.cupy)
        self.set("kvikio", SimpleNamespace(CuFile=lambda path, flags: HostFile(path)))
        self.set("kvikio.defaults", defaults)
        monkeypatch.delenv("KVIKIO_NTHREADS", raising=False)

    def set(self, name: str, module: Any) -> None:
        self._patch.setitem(sys.modules, name, module)

    def empty(self, shape: Any, dtype: Any) -> Any:
        return np.empty(shape, dtype).view(FakeArray)


def test_loader_on_a_gpu_gives_the_batches_of_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes = FakeDevices(monkeypatch)
    for codec in (None, "zstd"):
        corpus = make(open_tier(tmp_path / f"lake-{codec}", name="lake"), codec=codec)
        host, device = Loader(corpus, 32), Loader(corpus, 32, device="cuda:1")
        for left, right in zip(host, device, strict=True):
            for name, values in left.items():
                assert isinstance(right[name], FakeArray)
                np.testing.assert_array_equal(right[name], values)
    assert fakes.threads == gpu_device.KVIKIO_THREADS
    assert open_device("cuda:1").memory(10).data.ptr % 4096 == 0


def test_kvikio_keeps_the_threads_its_user_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = FakeDevices(monkeypatch)
    monkeypatch.setenv("KVIKIO_NTHREADS", "1")
    assert open_device("cuda:0").name == "cuda:0"
    assert fakes.threads == 1


def test_a_full_gpu_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = FakeDevices(monkeypatch)

    def empty(shape: Any, dtype: Any) -> Any:
        raise MemoryError

    fakes.cupy.empty = empty
    with pytest.raises(CapacityExceeded, match=r"cuda:0 has no room for 77 bytes.*window_blocks"):
        open_device("cuda:0").memory(77)


def test_what_a_gpu_needs_and_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDevices(monkeypatch, result=100)
    with pytest.raises(UsageError, match=r"driver reports error 100.*device='cpu'"):
        open_device("cuda:0")
    FakeDevices(monkeypatch)
    with pytest.raises(UsageError, match=r"sees 2 GPU\(s\).*'cuda:1'"):
        open_device("cuda:2")
    FakeDevices(monkeypatch, count=0)
    with pytest.raises(UsageError, match=r"sees 0 GPU\(s\).*device='cpu'"):
        open_device("cuda:0")
    for module in ("cupy", "kvikio"):
        FakeDevices(monkeypatch).set(module, None)
        with pytest.raises(UsageError, match=rf"{module} cannot be imported.*corpus-tiering\[gpu\]"):
            open_device("cuda:0")


def test_a_driver_too_old_for_cupy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise RuntimeError("CUDA driver version is insufficient")

    FakeDevices(monkeypatch).cuda.runtime.getDeviceCount = fail
    with pytest.raises(UsageError, match="cupy cannot use the GPU: CUDA driver version is insufficient"):
        open_device("cuda:0")


def _has_driver() -> bool:
    with contextlib.suppress(OSError):
        return bool(ctypes.CDLL("libcuda.so.1"))
    return False


@pytest.mark.skipif(_has_driver(), reason="this machine has an NVIDIA driver")
@pytest.mark.parametrize("name", ["cuda:0", "cuda:99"])
def test_loader_without_a_driver_is_refused_at_once(tmp_path: Path, name: str) -> None:
    loader = Loader(make(open_tier(tmp_path / "lake", name="lake")), 32, device=name)
    with pytest.raises(UsageError, match=f"device = '{name}': no NVIDIA driver here.*device='cpu'"):
        next(iter(loader))
    assert "kvikio" not in sys.modules
    assert "cupy" not in sys.modules
