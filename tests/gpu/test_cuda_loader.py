"""The loader on a real GPU, with cupy and kvikio, against the loader on the host."""

import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders import Loader, gpu
from loaders.gpu import CudaSlots
from loaders.gpu_device import open_device
from tests.gpu.cuda import COLUMNS, make
from tiering.errors import CapacityExceeded, Corrupt, UsageError
from tiering.reader import BlockReader

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("codec", [None, "zstd:1"])
@pytest.mark.parametrize("stream", ["default", "own"])
@pytest.mark.parametrize("way", ["as it is here", "direct"])
def test_loader_on_a_gpu_gives_the_batches_of_the_host(
    cupy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str | None, stream: str, way: str
) -> None:
    if way == "direct":  # by slots that kvikio fills, also where it goes through the host
        device_of_test = open_device("cuda:0")
        device_of_test.compat = False
        monkeypatch.setattr(gpu, "open_device", lambda name: device_of_test)
    corpus = make(tmp_path / "lake", codec)
    host = Loader(corpus, 128, window_blocks=2)
    device = Loader(corpus, 128, window_blocks=2, device="cuda:0")
    with cupy.cuda.Stream(null=stream == "default", non_blocking=stream == "own"):
        for _epoch in range(2):
            kept = list(device)  # all batches of an epoch: none may change after it was handed out
            for left, right in zip(host, kept, strict=True):
                for name, values in left.items():
                    assert isinstance(right[name], cupy.ndarray)
                    assert right[name].dtype == values.dtype
                    np.testing.assert_array_equal(cupy.asnumpy(right[name]), values)


def test_batches_are_right_while_gathers_lag_behind_reads(
    cupy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_of_test = open_device("cuda:0")
    device_of_test.compat = False
    monkeypatch.setattr(gpu, "open_device", lambda name: device_of_test)
    corpus = make(tmp_path / "lake")
    busy = cupy.ones((4096, 4096), cupy.float32)
    with cupy.cuda.Stream(non_blocking=True):
        kept = []
        for batch in Loader(corpus, 128, window_blocks=1, device="cuda:0"):
            for _ in range(20):  # keeps the stream busy before the next gather
                busy *= 1.0
            kept.append(batch)
        for left, right in zip(Loader(corpus, 128, window_blocks=1), kept, strict=True):
            np.testing.assert_array_equal(cupy.asnumpy(right["tokens"]), left["tokens"])


@pytest.mark.parametrize("codec", [None, "zstd:1"])
def test_the_way_that_blocks_took_is_counted(cupy: Any, tmp_path: Path, codec: str | None) -> None:
    slots = CudaSlots(BlockReader(make(tmp_path / "lake", codec)), 2, open_device("cuda:0"))
    slots.read(0, 0, 0)
    slots.read(0, 1, 1)
    path = slots.path
    assert (path.device, path.direct, path.host) == ("cuda:0", *((8, 0) if codec is None else (0, 8)))
    batch = slots.new_batch(1)
    slots.gather(batch, 0, np.array([1]), np.array([5]))
    for name, values in COLUMNS.items():
        np.testing.assert_array_equal(cupy.asnumpy(batch[name][0]), values[69])
    slots.close()


def test_a_damaged_shard_never_reaches_the_gpu(cupy: Any, tmp_path: Path) -> None:
    corpus = make(tmp_path / "lake")
    file = tmp_path / "lake/web" / corpus.manifest["key"][0].as_py()
    data = bytearray(file.read_bytes())
    data[-5000] ^= 1
    file.write_bytes(data)
    with pytest.raises(Corrupt):
        for _batch in Loader(corpus, 128, device="cuda:0"):
            pass


@pytest.mark.parametrize("worker_threads", [0, 2])
def test_transforms_work_on_the_stream_of_their_batch(cupy: Any, tmp_path: Path, worker_threads: int) -> None:
    threads = set()
    busy = cupy.ones((4096, 4096), cupy.float32)

    def shift(batch: Any) -> Any:
        threads.add(threading.get_ident())
        return {"tokens": batch["tokens"] + 1, "label": batch["label"]}

    corpus = make(tmp_path / "lake")
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        kept = []
        for batch in Loader(corpus, 128, device="cuda:0", transform=shift, workers=worker_threads):
            for _ in range(20):
                busy *= 1.0
            kept.append(batch)
        stream.synchronize()
    assert (threading.get_ident() in threads) == (worker_threads == 0)
    for left, right in zip(Loader(corpus, 128), kept, strict=True):
        np.testing.assert_array_equal(cupy.asnumpy(right["tokens"]), left["tokens"] + 1)
        np.testing.assert_array_equal(cupy.asnumpy(right["label"]), left["label"])


def test_a_second_gpu_that_is_not_there_is_named(cupy: Any, tmp_path: Path) -> None:
    count = cupy.cuda.runtime.getDeviceCount()
    loader = Loader(make(tmp_path / "lake"), 128, device=f"cuda:{count}")
    with pytest.raises(UsageError, match=rf"this process sees {count} GPU"):
        next(iter(loader))


def test_memory_of_the_gpu_is_given_back(cupy: Any, tmp_path: Path) -> None:
    corpus = make(tmp_path / "lake")
    pool = cupy.get_default_memory_pool()

    def used() -> int:
        for _batch in Loader(corpus, 128, device="cuda:0"):
            pass
        gc.collect()
        cupy.cuda.Device().synchronize()
        return int(pool.used_bytes())

    first = used()
    assert [used() for _ in range(5)] == [first] * 5


def test_a_full_gpu_is_a_typed_error(cupy: Any, tmp_path: Path) -> None:
    pool = cupy.get_default_memory_pool()
    loader = Loader(make(tmp_path / "lake"), 4096, device="cuda:0")
    gc.collect()
    pool.free_all_blocks()
    pool.set_limit(size=pool.used_bytes() + (64 << 10))
    try:
        with pytest.raises(CapacityExceeded, match="cuda:0 has no room"):
            next(iter(loader))
    finally:
        pool.set_limit(size=0)
    assert next(iter(loader))["label"].shape == (4096,)
