"""Who reads through a cache: the shards each reader will ask for, and the one stream the cache sees of all.

Invariant: shards of one corpus are the same shards whoever reads them, shards of two corpora never are.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from policies.checks import number, one_of, whole, whole_array, whole_ids
from policies.order import Order
from policies.order.permute import derive_array

__all__ = ["Reader", "Requests", "Sample", "merge", "sample"]

Ints = npt.NDArray[np.int64]

_MOST_SHARDS = 1 << 40


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """One reader of a cache that others may read from, too.

    epochs: for each epoch the shards in the order they are needed, ints in [0, 2**40), as `Order.shards`
    gives them. shard_bytes: bytes of each shard by its number, or one number for all. Both are kept as int64
    arrays. corpus: which corpus it reads. speed: shards a second, or in any other unit common to all readers;
    a mixture is one reader for each corpus, its weight the speed. affinity: "lane" where every epoch, also
    those not given, takes the same shards; "global" where each may take others.
    Raises ValueError for any other argument.
    """

    epochs: Sequence[Sequence[int] | npt.NDArray[np.integer]]
    shard_bytes: int | Sequence[int] | npt.NDArray[np.integer]
    corpus: Hashable = 0
    speed: float = 1.0
    affinity: str = "global"

    def __post_init__(self) -> None:
        epochs = tuple(_shards(epoch) for epoch in self.epochs)
        sizes = np.asarray(self.shard_bytes)
        count = 1 + max((int(epoch.max()) for epoch in epochs if epoch.size), default=-1)
        if sizes.ndim and len(sizes) < count:
            raise ValueError(
                f"shard_bytes must be one number or at least {count}, one for each shard, not {len(sizes)}; "
                "e.g. shard_bytes=67108864"
            )
        number("speed", self.speed, above=0, example=1.0)
        one_of("affinity", self.affinity, ("global", "lane"), example="lane")
        object.__setattr__(self, "epochs", epochs)
        object.__setattr__(
            self, "shard_bytes", whole_array("shard_bytes", sizes, sizes.size).reshape(sizes.shape)
        )
        if self.affinity == "lane" and not self._takes_the_same():
            raise ValueError(
                "affinity must be 'global', not 'lane', where epochs differ in their shards or take one twice"
            )

    @classmethod
    def of(
        cls,
        order: Order,
        shard_bytes: int | Sequence[int] | npt.NDArray[np.integer],
        *,
        rank: int = 0,
        world_size: int = 1,
        epochs: int = 4,
        corpus: Hashable = 0,
        speed: float = 1.0,
    ) -> "Reader":
        """Return the reader that a rank is in epochs [0, epochs); ValueError for what the order refuses."""
        lanes = order.rank_lanes(rank, world_size)
        numbers = range(whole("epochs", epochs, least=1, example=4))
        return cls([order.shards(epoch, lanes) for epoch in numbers], shard_bytes, corpus, speed)

    @property
    def repeats(self) -> bool:
        """Whether every epoch is known to take the same shards, each once."""
        return (self.affinity == "lane" or len(self.epochs) > 1) and self._takes_the_same()

    @property
    def shards(self) -> Ints:
        """All shards it asks for, in turn: int64."""
        return np.concatenate([np.empty(0, dtype=np.int64), *self.epochs])

    @property
    def nbytes(self) -> Ints:
        """Bytes of each of its `shards`: int64."""
        sizes = np.asarray(self.shard_bytes)
        return sizes[self.shards] if sizes.ndim else np.full(len(self.shards), sizes)

    def _takes_the_same(self) -> bool:
        epochs = [np.sort(epoch) for epoch in self.epochs if len(epoch)]
        if not epochs or len(epochs) < len(self.epochs):
            return False
        once = bool(np.all(epochs[0][1:] != epochs[0][:-1]))
        return once and all(np.array_equal(epochs[0], epoch) for epoch in epochs)


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """What a cache is asked for, in turn.

    items: one int a request; kept as int64 numbers from 0 in ascending order of the ints given.
    nbytes: bytes of each request, or one number for all; kept as an int64 array.
    Raises ValueError for any other argument.
    """

    items: Sequence[int] | npt.NDArray[np.integer]
    nbytes: int | Sequence[int] | npt.NDArray[np.integer]

    def __post_init__(self) -> None:
        given = whole_ids("items", self.items)
        object.__setattr__(self, "nbytes", whole_array("nbytes", self.nbytes, given.size))
        object.__setattr__(self, "items", np.unique(given, return_inverse=True)[1])

    def __len__(self) -> int:
        return len(self.items)

    @property
    def item_bytes(self) -> Ints:
        """Bytes of each item by its number, int64; where they change, the most."""
        most = np.zeros(int(np.max(self.items, initial=-1)) + 1, dtype=np.int64)
        np.maximum.at(most, np.asarray(self.items), np.asarray(self.nbytes))
        return most


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A part of what a cache is asked for, and a smaller cache for it.

    expected_bytes: what as large a share of the items asks for on average. Misses are held against these, for
    how often a few items that are asked for all the time were chosen is luck, and they are hits in any case.
    """

    requests: Requests
    capacity_bytes: int
    expected_bytes: int


def merge(readers: Sequence[Reader]) -> Requests:
    """Return the requests of all readers by time, each reader at its even speed from time 0 on.

    Request n of a reader comes at (n + 1) / speed; at equal times the readers keep their sequence.
    """
    shards = [reader.shards for reader in readers]
    corpora = list(dict.fromkeys(reader.corpus for reader in readers))
    times, items = [np.empty(0)], [np.empty(0, dtype=np.int64)]
    for taken, reader in zip(shards, readers, strict=True):
        times.append(np.arange(1, taken.size + 1) / reader.speed)
        items.append(taken + corpora.index(reader.corpus) * _MOST_SHARDS)
    by_time = np.argsort(np.concatenate(times), kind="stable")
    nbytes = np.concatenate([items[0], *(reader.nbytes for reader in readers)])
    return Requests(np.concatenate(items)[by_time], nbytes[by_time])


def sample(requests: Requests, capacity_bytes: int, most: int) -> Sample:
    """Return at most `most` requests: all those for some items, or the first of these.

    Items are chosen by a hash of their numbers, and the capacity shrinks as their bytes do: C. A. Waldspurger
    et al., "Efficient MRC construction with SHARDS", FAST 2015. Deterministic. Where there are no more than
    `most` requests, all of them come back.
    """
    items, nbytes, sizes = np.asarray(requests.items), np.asarray(requests.nbytes), requests.item_bytes
    if items.size <= most:
        return Sample(requests, capacity_bytes, int(nbytes.sum()))
    by_hash = np.argsort(derive_array(0, np.arange(sizes.size, dtype=np.uint64)), kind="stable")
    chosen = np.zeros(sizes.size, dtype=np.bool_)
    chosen[by_hash[: max(1, sizes.size * most // items.size)]] = True
    share = int(sizes[chosen].sum()) / max(1, int(sizes.sum()))
    taken = np.flatnonzero(chosen[items])
    end = items.size if taken.size <= most else int(taken[most])
    taken = taken[:most]
    part = Requests(items[taken], nbytes[taken])
    return Sample(part, int(capacity_bytes * share), int(share * int(nbytes[:end].sum())))


def _shards(epoch: Sequence[int] | npt.NDArray[np.integer]) -> Ints:
    shards = whole_ids("epochs", epoch)
    if shards.size and not 0 <= shards.min() <= shards.max() < _MOST_SHARDS:
        raise ValueError(
            f"epochs must have shards in [0, 2**40), not {shards.min()} to {shards.max()}; e.g. [[2, 0, 1]]"
        )
    return shards.astype(np.int64)
