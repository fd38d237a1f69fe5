"""Batches of a real GPU in torch and JAX: shared memory, streams that lag behind, page-locked host memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders import Loader
from tests.gpu.cuda import make

pytestmark = pytest.mark.gpu

LAG_CYCLES = 20_000_000  # of the GPU's clock: about 10 ms


@pytest.mark.parametrize("codec", [None, "zstd:1"])
@pytest.mark.parametrize("stream", ["default", "own"])
def test_tensors_are_right_while_a_stream_of_torch_lags_behind(
    cupy: Any, tmp_path: Path, codec: str | None, stream: str
) -> None:
    torch = pytest.importorskip("torch")
    from loaders.torch import TorchDataset, TorchLoader

    corpus = make(tmp_path / "lake", codec)
    expected = [batch["tokens"].astype(np.int64).sum(1) for batch in Loader(corpus, 128)]
    own = torch.cuda.Stream() if stream == "own" else torch.cuda.current_stream()
    for make_loader in (TorchLoader, TorchDataset):
        sums = []
        with torch.cuda.stream(own):
            for batch in make_loader(Loader(corpus, 128, device="cuda:0")):
                assert batch["tokens"].device == torch.device("cuda:0")
                torch.cuda._sleep(LAG_CYCLES)
                sums.append(batch["tokens"].long().sum(1))
                del batch  # while the stream has not come to it: the next batch may take its memory
        own.synchronize()
        for left, right in zip(expected, sums, strict=True):
            np.testing.assert_array_equal(right.cpu().numpy(), left)


def test_a_torch_loader_on_a_gpu_goes_on_where_it_was(cupy: Any, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from loaders.torch import TorchLoader

    corpus = make(tmp_path / "lake")
    loader = TorchLoader(Loader(corpus, 128, device="cuda:0"))
    batches = iter(loader)
    for _ in range(7):
        next(batches)
    other = TorchLoader(Loader(corpus, 128))
    other.load_state_dict(loader.state_dict())
    for left, right in zip(other, batches, strict=True):
        assert left["label"].tolist() == right["label"].tolist()


def test_pinned_tensors_are_page_locked_and_right(cupy: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from loaders.torch import TorchLoader

    corpus = make(tmp_path / "lake")
    own = torch.cuda.Stream()
    kept = []
    with torch.cuda.stream(own):
        for batch in TorchLoader(Loader(corpus, 128), pin_memory=True):
            assert all(values.is_pinned() for values in batch.values())
            torch.cuda._sleep(LAG_CYCLES)
            kept.append(batch["tokens"].to("cuda:0", non_blocking=True))
    own.synchronize()
    for left, right in zip(Loader(corpus, 128), kept, strict=True):
        np.testing.assert_array_equal(right.cpu().numpy(), left["tokens"])


def test_batches_go_to_torch_without_a_copy(cupy: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    batch = next(iter(Loader(make(tmp_path / "lake"), 128, columns=["label"], device="cuda:0")))
    label = torch.from_dlpack(batch["label"])
    assert label.data_ptr() == batch["label"].data.ptr
    assert label.tolist() == cupy.asnumpy(batch["label"]).tolist()


def test_arrays_of_jax_are_right_while_it_lags_behind(cupy: Any, tmp_path: Path) -> None:
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        pytest.skip("this JAX has no GPU")
    from loaders.jax import to_jax

    corpus = make(tmp_path / "lake")
    expected = [batch["tokens"].astype(np.int64).sum(1) for batch in Loader(corpus, 128)]
    slow = jax.numpy.ones((4096, 4096))

    @jax.jit
    def step(tokens: Any, slow: Any) -> Any:
        for _ in range(8):
            slow = slow @ slow * 1e-4
        return tokens.astype(np.int32).sum(1) + (slow[0, 0] * 0).astype(np.int32)

    sums = []
    for batch in Loader(corpus, 128, columns=["tokens"], device="cuda:0", transform=to_jax):
        assert batch["tokens"].devices() == {jax.devices()[0]}
        sums.append(step(batch["tokens"], slow))
        del batch
    for left, right in zip(expected, sums, strict=True):
        np.testing.assert_array_equal(np.asarray(right), left)
