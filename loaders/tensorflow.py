"""Batches as a tf.data.Dataset.

Invariant: every batch has the static signature that was said before the first one was read.

Nothing else of this project imports tensorflow; import this module only where TensorFlow is used.
"""

from __future__ import annotations

from typing import Any

from loaders.loader import Loader
from tiering.errors import UsageError

try:
    import tensorflow as tf
except ImportError as error:
    raise UsageError(
        "loaders.tensorflow needs tensorflow", hint="pip install 'corpus-tiering[tensorflow]'"
    ) from error


def signature(loader: Loader) -> dict[str, Any]:
    """The `tf.TensorSpec` of each column: ``[batch_size, *shape]``, or ``[None, *shape]`` without drop_last.

    Raises:
        UsageError: the loader has a transform or collate, or a column has no fixed shape: give `to_dataset` a
            signature.
    """
    if not loader.gives_columns:
        raise UsageError(
            "what a transform or collate gives is not known before",
            hint="Give to_dataset(loader, output_signature=...)",
        )
    rows = loader.batch_size if loader.drop_last else None
    return {
        column.name: tf.TensorSpec((rows, *column.shape), tf.dtypes.as_dtype(column.dtype))
        for column in loader.columns
    }


def to_dataset(loader: Loader, output_signature: Any = None) -> Any:
    """One epoch of the loader for each iteration, in its order; do not batch or shuffle it again.

    The loader's state goes on with what TensorFlow takes, with ``.prefetch(n)`` up to n batches more than the
    training has seen. The loader reads ahead by itself: leave prefetch out where states are saved.

    Args:
        loader: what to read.
        output_signature: nested `tf.TypeSpec` of what the loader gives; by default `signature`.

    Raises:
        UsageError: as `signature`.
    """
    specs = signature(loader) if output_signature is None else output_signature
    return tf.data.Dataset.from_generator(lambda: iter(loader), output_signature=specs)
