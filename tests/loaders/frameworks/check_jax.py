from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders import Loader
from tests.corpora import columns, memory_corpus, promised, run_python
from tests.loaders.frameworks.training import run_page
from tiering.errors import UsageError

jax: Any = pytest.importorskip("jax", reason="jax is not installed: pip install 'corpus-tiering[jax]'")

from loaders.jax import to_global, to_jax  # noqa: E402

DTYPES = [np.bool_, np.int8, np.uint16, np.uint32, np.int64, np.float16, np.float32, np.float64, np.complex64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_jax_array_has_the_values_of_the_batch_in_the_dtype_jax_keeps(dtype: Any) -> None:
    values = np.arange(12).reshape(4, 3).astype(dtype)
    found = to_jax({"x": values})["x"]
    assert isinstance(found, jax.Array)
    assert found.dtype == jax.dtypes.canonicalize_dtype(dtype)
    assert np.array_equal(np.asarray(found), values)


@pytest.mark.parametrize("values", [np.array([2**31]), np.array([-(2**40), 0]), np.array([2**32], np.uint64)])
def test_jax_never_cuts_an_integer(values: np.ndarray[Any, Any]) -> None:
    with pytest.raises(UsageError, match=r"column 'x' has .* values that JAX would cut to"):
        to_jax({"x": values})


def test_jax_refuses_text() -> None:
    with pytest.raises(UsageError, match="is nothing JAX holds"):
        to_jax({"x": np.array(["a"])})


def test_jax_takes_arrays_of_others_by_dlpack_and_puts_them_on_a_device() -> None:
    device = jax.devices()[0]
    for given in (jax.numpy.arange(3), np.arange(3)):
        found = to_jax({"x": given}, device)["x"]
        assert found.devices() == {device}
        assert found.tolist() == [0, 1, 2]


def test_loader_gives_jax_arrays_by_a_transform() -> None:
    with memory_corpus(100, 8, 3) as corpus:
        loader = Loader(corpus, 32, transform=to_jax)
        found = list(loader)
        assert [batch["row"].tolist() for batch in found] == promised(loader.order, 32)
        assert all(
            np.array_equal(np.asarray(batch["pair"]), columns(batch["row"].tolist())["pair"])
            for batch in found
        )


def test_global_array_of_one_device_is_the_batch() -> None:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    found = to_global({"x": np.arange(6)}, sharding)["x"]
    assert found.tolist() == list(range(6))


def test_global_array_lies_on_the_devices_of_a_mesh() -> None:
    out = run_python(
        "import os; os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=4'\n"
        "os.environ['JAX_PLATFORMS'] = 'cpu'\n"
        "import jax, numpy as np\n"
        "from jax.sharding import Mesh, NamedSharding, PartitionSpec\n"
        "from loaders.jax import to_global\n"
        "sharding = NamedSharding(Mesh(np.array(jax.devices()), ('data',)), PartitionSpec('data'))\n"
        "x = to_global({'x': np.arange(24, dtype=np.int32).reshape(8, 3)}, sharding)['x']\n"
        "print(x.shape, [shard.data[:, 0].tolist() for shard in x.addressable_shards])\n"
    )
    assert out == "(8, 3) [[0, 3], [6, 9], [12, 15], [18, 21]]\n"


def test_page_runs(tmp_path: Path) -> None:
    steps = run_page("JAX", tmp_path)
    assert [tokens.shape for (tokens,) in steps] == [(256, 9)] * 2
