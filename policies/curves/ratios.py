"""Miss-ratio curves: how many requests and bytes miss at each cache size.

Exact in one pass for all sizes together where the algorithm allows it (LRU while objects keep their size, pin
while all are equal), by a replay at each size elsewhere, and on request by a sample of the objects, which
says its error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import numpy.typing as npt

from policies.checks import whole, whole_ids, whole_list
from policies.curves.distances import NEVER, previous_uses, stack_distances
from policies.eviction import make
from policies.order.permute import derive, derive_array
from policies.replay import replay

__all__ = ["Curve", "Point", "curve", "sampled_curve"]

Int64s = npt.NDArray[np.int64]

_GROUPS = 8
_STUDENT = 2.36  # 97.5% of Student's t with 7 degrees of freedom
_FEWEST_ITEMS = 8  # of mean size that fit a group's cache: below, it says little about the whole one


@dataclass(frozen=True, slots=True)
class Point:
    """What a cache of `capacity_bytes` misses.

    object_miss_ratio, byte_miss_ratio: in [0, 1]. object_error, byte_error: half the widths of their 95%
    confidence intervals; 0 where they are exact.
    """

    capacity_bytes: int
    object_miss_ratio: float
    byte_miss_ratio: float
    object_error: float = 0.0
    byte_error: float = 0.0


@dataclass(frozen=True, slots=True)
class Curve:
    """The points of one policy, the smallest capacity first. method: one pass, replay, or sample."""

    policy: str
    method: str
    points: tuple[Point, ...]


def curve(
    name: str,
    ids: Sequence[int] | npt.NDArray[np.integer],
    sizes: int | Sequence[int] | npt.NDArray[np.integer],
    capacities_bytes: Sequence[int],
) -> Curve:
    """Return the exact miss ratios, those of `policies.replay`, at each capacity.

    name, ids, sizes: as for `replay`. In one pass it takes O(n log n) for all capacities, else one replay
    each. Raises ValueError for what `replay` refuses and for no capacity.
    """
    requested = whole_ids("ids", ids)
    each = np.array(whole_list("sizes", sizes, len(requested)), np.int64)
    capacities = _capacities(name, capacities_bytes)
    needed = _needed_bytes(name, requested, each)
    if needed is None:
        return Curve(name, "replay", tuple(_replayed(name, requested, each, c) for c in capacities))
    order = np.argsort(needed)
    missed = each.sum() - np.concatenate([[0], np.cumsum(each[order])])  # bytes, after so many hits
    points = []
    for capacity in capacities:
        if capacity < each.max(initial=0):  # a larger object is refused: no pass for all sizes knows that
            points.append(_replayed(name, requested, each, capacity))
            continue
        hits = int(np.searchsorted(needed[order], capacity, side="right"))
        points.append(
            Point(capacity, _ratio(len(each) - hits, len(each)), _ratio(int(missed[hits]), int(missed[0])))
        )
    return Curve(name, "one pass", tuple(points))


def sampled_curve(
    name: str,
    ids: Sequence[int] | npt.NDArray[np.integer],
    sizes: int | Sequence[int] | npt.NDArray[np.integer],
    capacities_bytes: Sequence[int],
    *,
    rate: float,
    seed: int = 7,
) -> Curve:
    """Return miss ratios estimated from a share `rate` of the objects, each with all its requests.

    An object is chosen by a hash of its id and `seed`, and the cache is as much smaller (Waldspurger, Park,
    Garthwaite, Ahmad: Efficient MRC construction with SHARDS, FAST 2015; for policies other than LRU:
    Waldspurger, Saemundsson, Ahmad, Park: Cache modeling and optimization using miniature simulations, ATC
    2017). Requests that the sample has too many or too few count as hits of its hottest objects (SHARDS-adj).
    The errors come from eight parts of the sample (random groups: Wolter, Introduction to variance
    estimation, 2007). Capacities too small for a sample are replayed whole. Raises ValueError for what
    `replay` refuses, for no capacity and for a rate not in (0, 1).
    """
    if not 0 < rate < 1:
        raise ValueError(f"rate must be above 0 and below 1, not {rate}; e.g. rate=0.01")
    requested = whole_ids("ids", ids)
    each = np.array(whole_list("sizes", sizes, len(requested)), np.int64)
    key = derive(whole("seed", seed, least=0, below=1 << 64, example=7))
    place = derive_array(key, requested.astype(np.int64).view(np.uint64)) / 2.0**64  # in [0, 1]
    fewest_bytes = max(_FEWEST_ITEMS * each.mean(), each.max()) if each.any() else inf
    capacities = _capacities(name, capacities_bytes)
    sampled = [capacity for capacity in capacities if capacity * rate / _GROUPS >= fewest_bytes]
    exact = [_replayed(name, requested, each, c) for c in capacities if c not in sampled]

    def estimate(first: float, share: float) -> npt.NDArray[np.float64]:
        """Ratios of objects and bytes at each capacity, by the objects at places [first, first + share)."""
        chosen = (first <= place) & (place < first + share)
        small = curve(name, requested[chosen], each[chosen], [int(c * share) for c in sampled])
        found = {p.capacity_bytes: (p.object_miss_ratio, p.byte_miss_ratio) for p in small.points}
        scale = np.array([chosen.sum() / len(each), each[chosen].sum() / each.sum()]) / share
        return np.minimum(scale * [found[int(c * share)] for c in sampled], 1.0)

    if sampled:
        best = estimate(0.0, rate)
        parts = np.array([estimate(rate * part / _GROUPS, rate / _GROUPS) for part in range(_GROUPS)])
        errors = _STUDENT * np.sqrt(((parts - best) ** 2).sum(axis=0) / (_GROUPS * (_GROUPS - 1)))
        exact += [Point(c, *b, *e) for c, b, e in zip(sampled, best.tolist(), errors.tolist(), strict=True)]
    return Curve(name, "sample", tuple(exact))


def _capacities(name: str, capacities_bytes: Sequence[int]) -> list[int]:
    """The capacities, each once, the smallest first."""
    if not len(capacities_bytes):
        raise ValueError("capacities_bytes must be at least one; e.g. capacities_bytes=[500_000_000_000]")
    return sorted({make(name, capacity, ()).capacity_bytes for capacity in capacities_bytes})


def _needed_bytes(name: str, ids: npt.NDArray[np.integer], sizes: Int64s) -> Int64s | None:
    """The smallest capacity, for each request, at which it hits; None where there is no such one."""
    previous = previous_uses(ids)
    again = previous >= 0
    if name == "lru" and (sizes[again] == sizes[previous[again]]).all():
        return stack_distances(previous, sizes)
    if name == "pin" and sizes.max(initial=0) == sizes.min(initial=sizes.max(initial=0)):
        _, first, object_of = np.unique(ids, return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(first))  # objects in the order in which they came
        return np.where(again, (rank[object_of] + 1) * sizes, NEVER)
    return None


def _replayed(name: str, ids: npt.NDArray[np.integer], sizes: Int64s, capacity_bytes: int) -> Point:
    counts = replay(name, ids, sizes, capacity_bytes)
    return Point(capacity_bytes, counts.object_miss_ratio, counts.byte_miss_ratio)


def _ratio(part: int, total: int) -> float:
    return part / total if total else 0.0
