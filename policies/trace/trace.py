"""A trace: what was asked for, when, and how large it was.

Invariant: a `Trace` that exists is whole: a finite time, an id and a size for each of at least one request,
times in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from policies.checks import whole, whole_ids, whole_list
from policies.order import Order

__all__ = ["MOST_BYTES", "Trace", "order_trace"]

MOST_BYTES = 1 << 60
"""All requests of a trace have fewer together."""


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Requests in the order of their times.

    times: seconds from any origin, finite, never falling: float64, shape (requests,). ids: any ints, the same
    for the same object: int64, shape (requests,). sizes: bytes asked for, below 2**60 in all: int64, shape
    (requests,). Raises ValueError for anything else, and for no request at all.
    """

    times: npt.NDArray[np.float64]
    ids: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        for name, dtype in (("times", np.float64), ("ids", np.int64), ("sizes", np.int64)):
            values = getattr(self, name)
            if values.dtype != dtype or values.shape != (len(self.ids),):
                raise ValueError(
                    f"{name} must be {np.dtype(dtype)} of shape ({len(self.ids)},), one a request, not "
                    f"{values.dtype} of shape {values.shape}"
                )
        if not len(self.ids):
            raise ValueError("the trace has no request; give at least one")
        if not np.isfinite(self.times).all() or (np.diff(self.times) < 0).any():
            raise ValueError("times must be finite and never fall; e.g. times=[0.0, 0.5, 0.5]")
        if self.sizes.min() < 0 or self.sizes.sum(dtype=np.float64) >= MOST_BYTES:
            raise ValueError(
                f"sizes must be at least 0 and below 2**60 in all, not {self.sizes.min()} to "
                f"{self.sizes.max()}; e.g. 67108864"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def seconds(self) -> float:
        """From the first request to the last."""
        return float(self.times[-1] - self.times[0])

    @property
    def nbytes(self) -> int:
        """Bytes of all requests."""
        return int(self.sizes.sum())

    @property
    def footprint_bytes(self) -> int:
        """Bytes of all objects, each once, at the size it was first asked for with."""
        _, first = np.unique(self.ids, return_index=True)
        return int(self.sizes[first].sum())

    @property
    def objects(self) -> int:
        """How many different objects."""
        return len(np.unique(self.ids))


def order_trace(
    order: Order,
    object_shards: Sequence[int] | npt.NDArray[np.integer],
    object_bytes: int | Sequence[int] | npt.NDArray[np.integer],
    *,
    epochs: int = 3,
    world_size: int = 1,
    rank: int = 0,
) -> Trace:
    """Return what one rank asks for in epochs [0, epochs): all objects of each shard when it needs the shard.

    object_shards: the shard that each object is of, below the order's number of shards. object_bytes: of each
    object, or one number for all. Ids are the numbers of the objects, and all times are 0: nothing but the
    reader holds the requests up. Raises ValueError for anything else, and where there is nothing to ask for.
    """
    shards = whole_ids("object_shards", object_shards)
    sizes = np.array(whole_list("object_bytes", object_bytes, len(shards)), np.int64)
    if len(shards) and not 0 <= shards.min() <= shards.max() < len(order.shard_rows):
        raise ValueError(
            f"object_shards must be in [0, {len(order.shard_rows)}), not {shards.min()} to {shards.max()}; "
            "e.g. object_shards=[0, 1, 2]"
        )
    lanes = order.rank_lanes(rank, world_size)
    numbers = range(whole("epochs", epochs, least=1, example=3))
    needed = np.concatenate([order.shards(epoch, lanes) for epoch in numbers])
    by_shard = np.argsort(shards, kind="stable")
    counts = np.bincount(shards, minlength=len(order.shard_rows))
    wanted = counts[needed]
    begin = (np.cumsum(counts) - counts)[needed] - (np.cumsum(wanted) - wanted)
    ids = by_shard[np.repeat(begin, wanted) + np.arange(wanted.sum())]
    return Trace(np.zeros(len(ids)), ids, sizes[ids])
