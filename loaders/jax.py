"""Batches as JAX arrays: on one device, or as shards of global arrays. Give it to a loader as `transform`.

Invariant: values are those of the batch; a number that JAX's types would not hold is an error.

Nothing else of this project imports jax; import this module only where JAX is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from tiering.errors import UsageError

try:
    import jax
except ImportError as error:
    raise UsageError("loaders.jax needs jax", hint="pip install 'corpus-tiering[jax]'") from error

_INTEGERS: Final = "iu"


def to_jax(batch: Mapping[str, Any], device: Any = None) -> dict[str, Any]:
    """A batch as JAX arrays ``[rows, *shape]``: ``Loader(corpus, transform=to_jax)``.

    Args:
        batch: arrays by column: numpy, or cupy, which stays on its GPU, by DLPack.
        device: a `jax.Device` or `jax.sharding.Sharding` of this process; JAX's default one by default. JAX
            copies in the background, and on a CPU uses the batch's memory where it is aligned for that.

    Raises:
        UsageError: a 64-bit integer that does not fit the 32 bits JAX keeps, or text.
    """
    return {name: _put(name, values, device) for name, values in batch.items()}


def to_global(batch: Mapping[str, Any], sharding: Any) -> dict[str, Any]:
    """The batches of all processes as one array ``[world_size * rows, *shape]`` for each column.

    ``Loader(corpus, rank=jax.process_index(), world_size=jax.process_count(), ...)`` gives each process its
    rows: ``transform=functools.partial(to_global, sharding=NamedSharding(mesh, PartitionSpec("data")))``.

    Args:
        batch: arrays of this process.
        sharding: over all devices, axis 0 cut between them in the order of the processes.

    Raises:
        As `to_jax`. ValueError: the rows do not divide among the devices (raised by JAX).
    """
    return {
        name: jax.make_array_from_process_local_data(sharding, _fitting(name, values))
        for name, values in batch.items()
    }


def _put(name: str, values: Any, device: Any) -> Any:
    if not isinstance(values, np.ndarray) and hasattr(values, "__dlpack__"):
        values = jax.dlpack.from_dlpack(values)
        return values if device is None else jax.device_put(values, device)
    return jax.device_put(_fitting(name, values), device)


def _fitting(name: str, values: Any) -> np.ndarray[Any, Any]:
    """The array in the dtype that JAX keeps it in."""
    array = np.asarray(values)
    if array.dtype.kind not in "biufc":
        raise UsageError(
            f"column {name!r} of dtype {array.dtype} is nothing JAX holds", hint="Choose other columns"
        )
    kept = np.dtype(jax.dtypes.canonicalize_dtype(array.dtype))
    if kept == array.dtype:
        return array
    if array.dtype.kind in _INTEGERS and array.size:
        limits = np.iinfo(kept)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise UsageError(
                f"column {name!r} has {array.dtype} values that JAX would cut to {kept}",
                hint="jax.config.update('jax_enable_x64', True), or choose other columns",
            )
    return array.astype(kept)
