"""The loader on a real GPU, with cupy and kvikio, against the loader on the host."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders import Loader
from loaders.gpu import CudaSlots
from loaders.gpu_device import open_device
from tiering import Corpus, ingest, open_tier
from tiering.errors import Corrupt, UsageError
from tiering.reader import BlockReader

pytestmark = pytest.mark.gpu

ROWS = 5000
COLUMNS: dict[str, np.ndarray[Any, Any]] = {
    "tokens": np.random.default_rng(3).integers(0, 1 << 16, (ROWS, 512), dtype=np.uint16),
    "label": np.arange(ROWS, dtype=np.int64),
    "mask": np.random.default_rng(5).integers(0, 2, (ROWS, 3, 5)).astype(np.bool_),
    "weight": np.random.default_rng(7).random(ROWS).astype(np.float16),
}


@pytest.fixture(scope="module")
def cupy() -> Any:
    try:
        open_device("cuda:0")
    except UsageError as error:
        pytest.skip(error.message)
    return pytest.importorskip("cupy")


def make(folder: Path, codec: str | None = None) -> Corpus:
    tier = open_tier(folder, name="lake")
    return ingest(COLUMNS, tier, "web", shard_size="512KiB", block_rows=64, codec=codec, progress=False)


@pytest.mark.parametrize("codec", [None, "zstd:1"])
@pytest.mark.parametrize("stream", ["default", "own"])
def test_loader_on_a_gpu_gives_the_batches_of_the_host(
    cupy: Any, tmp_path: Path, codec: str | None, stream: str
) -> None:
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


def test_batches_are_right_while_gathers_lag_behind_reads(cupy: Any, tmp_path: Path) -> None:
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
    slots = CudaSlots(BlockReader(make(tmp_path / "lake", codec)), 2, "cuda:0")
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


def test_batches_go_to_torch_without_a_copy(cupy: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    batch = next(iter(Loader(make(tmp_path / "lake"), 128, columns=["label"], device="cuda:0")))
    label = torch.from_dlpack(batch["label"])
    assert label.data_ptr() == batch["label"].data.ptr
    assert label.tolist() == cupy.asnumpy(batch["label"]).tolist()
