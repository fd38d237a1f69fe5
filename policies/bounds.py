"""What no cache policy can exceed: hits of epochs, hits of a trace, and the closed form of LRU.

Epochs. Let k readers share a cache of C bytes and each take every one of N bytes once an epoch. Of the N
bytes, at least N - C are not resident when the epoch begins, and each of those is fetched at least once for
the kN asked for. So at most (k - 1 + C/N) / k of the bytes are hits, and (k - 1) / k in the first epoch,
which begins empty.

Traces. A hit keeps its item from one request to the next one for it; at every moment what is kept fits in C.
Give each moment a price a byte: then all hits together cost at most C times the sum of the prices, so no
policy has more hits than the cheapest ones that this budget buys, the last one in part. Whatever the prices,
this is a bound. One price for all moments is PFOO-L of D. S. Berger, N. Beckmann, M. Harchol-Balter,
"Practical Bounds on Optimal Caching with Variable Object Sizes", SIGMETRICS 2018. Two things make it tighter
here: moments at which all that can be kept fits are free, and some rounds raise the price where the hits
bought do not fit and lower it where room is left (multiplicative weights: N. E. Young, "Randomized rounding
without solving the linear program", SODA 1995). In the limit that is the optimum of the linear program.

Runs. Cut a trace into runs in which no item comes twice, for an order its epochs. At most C bytes are there
when a run begins, and none before the first; the rest of the run's bytes is fetched in it. For a reader that
takes each item once an epoch this is what pin reaches, and there it is tighter than the prices.
"""

import math

import numpy as np
import numpy.typing as npt

from policies.checks import whole, whole_array, whole_ids

__all__ = ["bound", "least_fetched_bytes", "lru_hit_ratio", "most_hit_bytes", "most_hits"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_NEW = 0.3  # share of the newest round in what the next prices follow: else they swing
_SLACK = 1e-9  # of rounding, so that the bound stays one


def bound(capacity_bytes: int, corpus_bytes: int, epoch: int, *, readers: int = 1) -> float:
    """Return the largest byte hit ratio, in [0, 1], that any policy can reach in this epoch (0 is the first).

    corpus_bytes: what one reader takes in an epoch, each byte once. readers: those that share the cache and
    run through the same epochs together. Raises ValueError for sizes or epochs below 0 and for fewer than 1
    reader.
    """
    capacity_bytes = whole("capacity_bytes", capacity_bytes, least=0, example=500_000_000_000)
    corpus_bytes = whole("corpus_bytes", corpus_bytes, least=0, example=2_000_000_000_000)
    readers = whole("readers", readers, least=1, example=1)
    resident = 0.0
    if whole("epoch", epoch, least=0, example=0) > 0:
        resident = min(1.0, capacity_bytes / corpus_bytes) if corpus_bytes else 1.0
    return (readers - 1 + resident) / readers


def lru_hit_ratio(share: float) -> float:
    """Return what LRU hits of independent permutations, with room for `share` of the items, in [0, 1].

    c + (1 - c) ln(1 - c), for many items of one size and an epoch after the first: an item at place x of an
    epoch hits where fewer than c others were asked for since, and those are x + y - x * y of all, y being the
    part of the epoch before that came after it. Raises ValueError for a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], not {share}; for example share=0.5")
    return share + (1 - share) * math.log1p(-share) if share < 1 else 1.0


def most_hits(
    ids: npt.ArrayLike,
    sizes: npt.ArrayLike,
    capacity_bytes: int,
    *,
    rounds: int = 16,
) -> int:
    """Return a number of hits that no policy exceeds with a cache of `capacity_bytes`, empty at first.

    ids: one int a request. sizes: bytes of each request, or one number for all; an item may be kept at the
    smallest size it has had. rounds: of sharpening; with 0 there is one price for all moments that are not
    free. Time O(n log n) a round. Raises ValueError for sizes, a capacity or rounds below 0.
    """
    return _most(ids, sizes, capacity_bytes, rounds, count_bytes=False)


def most_hit_bytes(
    ids: npt.ArrayLike,
    sizes: npt.ArrayLike,
    capacity_bytes: int,
    *,
    rounds: int = 16,
) -> int:
    """Return a number of bytes that the hits of no policy exceed; all as for `most_hits`."""
    return _most(ids, sizes, capacity_bytes, rounds, count_bytes=True)


def least_fetched_bytes(
    ids: npt.ArrayLike, sizes: npt.ArrayLike, capacity_bytes: int, *, rounds: int = 0
) -> int:
    """Return a number of bytes that every policy fetches at least: by runs or by prices, the larger.

    All as for `most_hit_bytes`, without rounds by default: O(n log n).
    """
    asked = whole_array("sizes", sizes, whole_ids("ids", ids).size)
    by_prices = int(asked.sum()) - most_hit_bytes(ids, asked, capacity_bytes, rounds=rounds)
    return max(_fetched_in_runs(whole_ids("ids", ids).tolist(), asked.tolist(), capacity_bytes), by_prices)


def _fetched_in_runs(items: list[int], sizes: list[int], capacity_bytes: int) -> int:
    smallest = dict(zip(items, sizes, strict=True))
    for item, nbytes in zip(items, sizes, strict=True):
        smallest[item] = min(smallest[item], nbytes)
    least = run_bytes = there_bytes = 0
    run: set[int] = set()
    for item in items:
        if item in run:
            least += max(0, run_bytes - there_bytes)
            there_bytes = capacity_bytes
            run_bytes = 0
            run.clear()
        run.add(item)
        run_bytes += smallest[item]
    return least + max(0, run_bytes - there_bytes)


def _most(
    ids: npt.ArrayLike, sizes: npt.ArrayLike, capacity_bytes: int, rounds: int, *, count_bytes: bool
) -> int:
    items = whole_ids("ids", ids)
    asked = whole_array("sizes", sizes, items.size)
    capacity = whole("capacity_bytes", capacity_bytes, least=0, example=500_000_000_000)
    whole("rounds", rounds, least=0, example=16)
    begin, end, held = _reuses(items, asked)
    worth = asked[end] if count_bytes else np.ones(end.size, dtype=np.int64)
    possible = (held <= capacity) & (worth > 0)
    begin, end, held, worth = begin[possible], end[possible], held[possible], worth[possible]
    hits = _buy(begin, end, held.astype(np.float64), worth.astype(np.float64), items.size, capacity, rounds)
    return min(int(worth.sum()), math.floor(hits * (1 + _SLACK) + _SLACK))


def _reuses(items: npt.NDArray[np.integer], sizes: Ints) -> tuple[Ints, Ints, Ints]:
    """For each request that is not the last for its item: its place, the next one's, the bytes to keep."""
    if not items.size:
        return sizes, sizes, sizes
    places = np.argsort(items, kind="stable")
    again = items[places[1:]] == items[places[:-1]]
    # The smallest size so far of each item: a running minimum over ranks that start lower at each item.
    values, ranks = np.unique(sizes[places], return_inverse=True)
    offsets = np.concatenate([[0], np.cumsum(~again)]) * values.size
    smallest = values[np.minimum.accumulate(ranks - offsets) + offsets]
    return places[:-1][again], places[1:][again], smallest[:-1][again]


def _buy(
    begin: Ints, end: Ints, held: Floats, worth: Floats, moments: int, capacity: int, rounds: int
) -> float:
    """Return the least worth, over `rounds` + 1 choices of prices, that capacity times all prices buys."""

    def kept(share: npt.NDArray[np.bool_]) -> Floats:
        """Bytes kept at each moment, the one after each request."""
        part = held * share
        return np.cumsum(np.bincount(begin, part, moments) - np.bincount(end, part, moments))

    least = float(worth.sum())
    prices = (kept(np.ones(begin.size, dtype=np.bool_)) > capacity).astype(np.float64)
    if not prices.any():
        return least
    excess = np.zeros(moments)
    for _ in range(rounds + 1):
        paid = np.concatenate([[0.0], np.cumsum(prices)])
        cost = (paid[end] - paid[begin]) * held
        budget = capacity * paid[-1]
        cheapest = np.argsort(cost / worth, kind="stable")
        spent = np.cumsum(cost[cheapest])
        whole_ones = int(np.searchsorted(spent, budget, side="right"))
        bought = np.zeros(begin.size, dtype=np.bool_)
        bought[cheapest[:whole_ones]] = True
        value = float(worth[bought].sum())
        if whole_ones < begin.size:
            left = budget - (spent[whole_ones - 1] if whole_ones else 0.0)
            last = cheapest[whole_ones]
            value += float(worth[last] * left / cost[last])
        least = min(least, value)
        excess += _NEW * (np.clip(kept(bought) / max(1, capacity) - 1, -2, 2) - excess)
        prices *= np.exp(excess)
        prices /= prices.mean()
    return least
