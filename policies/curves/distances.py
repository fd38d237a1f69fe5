"""LRU stack distances: for each request, the smallest LRU cache that would have had it.

Mattson, Gecsei, Slutz, Traiger: Evaluation techniques for storage hierarchies, IBM Systems Journal, 1970.
An LRU cache of C bytes holds, of the objects in the order of their last use, as many as fit; so a request is
a hit exactly where the distinct objects used since its last use, itself included, have at most C bytes. That
is exact while objects keep their size and none is larger than C: such a one is refused and evicts nothing.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["NEVER", "previous_uses", "stack_distances"]

Int64s = npt.NDArray[np.int64]

NEVER = np.iinfo(np.int64).max
"""The distance of an object's first request: no cache has it."""


def previous_uses(ids: npt.NDArray[np.integer]) -> Int64s:
    """Return the position of the request before for the same object, -1 where there is none: int64, (n,)."""
    order = np.argsort(ids, kind="stable")
    again = np.concatenate([[False], ids[order][1:] == ids[order][:-1]]) if len(ids) else np.zeros(0, bool)
    previous = np.full(len(ids), -1, np.int64)
    previous[order[again]] = order[np.flatnonzero(again) - 1]
    return previous


def stack_distances(previous: Int64s, sizes: Int64s) -> Int64s:
    """Return the bytes of the smallest LRU cache that hits, `NEVER` for a first request: int64, shape (n,).

    previous: of `previous_uses`; sizes: shape (n,), all those of an object equal. Time O(n log n) in
    numpy, memory about 80 bytes a request.

    Between a request and the one before for the same object lie the bytes of all requests in between; what
    was counted twice there are the requests whose own previous one lies in between as well.
    """
    (again,) = np.nonzero(previous >= 0)
    distances = np.full(len(previous), NEVER, np.int64)
    upto = np.cumsum(sizes)
    rank = np.empty(len(again), np.int64)
    rank[np.argsort(previous[again])] = np.arange(len(again))
    distances[again] = upto[again] - upto[previous[again]] - _larger_before(rank, sizes[again])
    return distances


def _larger_before(values: Int64s, weights: Int64s) -> Int64s:
    """Return, for each of a permutation of range(n), the weight of the larger values that stand before it.

    A radix sort from the highest bit: of values with equal higher bits, those with the bit set are larger.
    The values are a permutation, so those with equal bits above b fill the places that have these bits.
    """
    n = len(values)
    larger = np.zeros(n, np.int64)
    owner, weights = np.arange(n), weights.copy()
    for bit in reversed(range(max(n - 1, 0).bit_length())):
        group = values >> (bit + 1) << (bit + 1)  # where the group begins
        high = values >> bit & 1
        weight_before = _exclusive_sum(weights * high)
        low = high == 0
        larger[owner[low]] += (weight_before - weight_before[group])[low]
        ones = _exclusive_sum(high)
        ones -= ones[group]
        place = np.where(low, np.arange(n) - ones, group + (1 << bit) + ones)
        for array in (values, weights, owner) if bit else ():
            array[place] = array.copy()
    return larger


def _exclusive_sum(values: Int64s) -> Int64s:
    return np.cumsum(values) - values
