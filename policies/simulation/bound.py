"""Bytes that must be fetched whatever the policy: the larger of two bounds.

Runs. Cut the trace into runs in which no item comes twice, for an order its epochs. At most the capacity
is there when a run begins, and nothing before the first; the rest of the run's bytes is fetched in it.
For a reader that takes each item once an epoch this is what pin reaches.

Room (PFOO-L). A hit keeps its item from one request to the next one for it, which takes the item's bytes
for so many requests of the capacity times all requests. The hits that are cheapest for their bytes, the
shortest ones, are more than any policy can have. Source: D. S. Berger, N. Beckmann, M. Harchol-Balter,
"Practical Bounds on Optimal Caching with Variable Object Sizes", SIGMETRICS 2018.
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["least_fetched_bytes"]

_ROUNDING: Final = 1e-9


def least_fetched_bytes(ids: npt.NDArray[np.integer], sizes: list[int], capacity_bytes: int) -> int:
    """Return a number of bytes that no cache of this capacity, empty at first, can avoid to fetch.

    ids: one int a request. sizes: bytes of each request; an item may be kept at the smallest size it has
    had.
    """
    asked = np.array(sizes, dtype=np.int64)
    if not asked.size:
        return 0
    _, numbers = np.unique(ids, return_inverse=True)
    smallest = np.full(numbers.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(smallest, numbers, asked)
    held = smallest[numbers]
    return max(
        _by_runs(numbers.tolist(), held.tolist(), capacity_bytes),
        _by_room(numbers, asked, held, capacity_bytes),
    )


def _by_runs(numbers: list[int], held: list[int], capacity_bytes: int) -> int:
    least = run_bytes = there_bytes = 0
    run: set[int] = set()
    for number, nbytes in zip(numbers, held, strict=True):
        if number in run:
            least += max(0, run_bytes - there_bytes)
            there_bytes = capacity_bytes
            run_bytes = 0
            run.clear()
        run.add(number)
        run_bytes += nbytes
    return least + max(0, run_bytes - there_bytes)


def _by_room(
    numbers: npt.NDArray[np.int64],
    asked: npt.NDArray[np.int64],
    held: npt.NDArray[np.int64],
    capacity_bytes: int,
) -> int:
    places = np.argsort(numbers, kind="stable")
    again = numbers[places[1:]] == numbers[places[:-1]]
    begin, end = places[:-1][again], places[1:][again]
    possible = (held[end] <= capacity_bytes) & (asked[end] > 0)
    begin, end = begin[possible], end[possible]
    worth = asked[end].astype(np.float64)
    costs = held[end].astype(np.float64) * (end - begin)
    cheapest = np.argsort(costs / worth, kind="stable")
    worth, paid = worth[cheapest], np.cumsum(costs[cheapest])
    budget = float(capacity_bytes) * (asked.size - 1)
    bought = int(np.searchsorted(paid, budget, side="right"))
    hit_bytes = float(worth[:bought].sum())
    if bought < paid.size:
        spent = paid[bought - 1] if bought else 0.0
        hit_bytes += worth[bought] * (budget - spent) / (paid[bought] - spent)
    return max(0, int(asked.sum()) - math.floor(hit_bytes * (1 + _ROUNDING)))
