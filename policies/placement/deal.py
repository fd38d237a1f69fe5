"""Spots of single items: the cheapest, those dealt out of a row's counts, and what is next to one.

Invariant: a spot has as many distinct tiers as the item has copies, and the tier that serves is one of them.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from policies.placement.program import Room
from policies.placement.table import Floats, Ints, Table

__all__ = ["Spot", "deal", "least", "neighbours", "proven"]


class Spot(NamedTuple):
    """Where the copies of one item lie, ascending tier numbers, and which of them serves its readers."""

    tiers: tuple[int, ...]
    serves: int


def least(
    keep: Floats, serve: Floats, copies: Ints, holds: npt.NDArray[np.bool_], serves: npt.NDArray[np.bool_]
) -> Floats:
    """Least cost of one item of each row by the tier that serves, [rows, tiers]; infinite where none may.

    keep, serve: costs of a copy and of the reads, [rows, tiers].
    """
    rows, tiers = keep.shape
    keep = np.where(holds, keep, np.inf)
    order = np.argsort(keep, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(tiers)[None, :], 1)
    sums = np.concatenate(
        [np.zeros((rows, 1)), np.cumsum(np.take_along_axis(keep, order, 1), axis=1)], axis=1
    )
    some = np.minimum(copies, tiers)[:, None]
    all_of_them = np.take_along_axis(sums, some, 1)  # the m cheapest
    all_but_one = np.take_along_axis(sums, some - 1, 1)
    total = np.where(rank < some, all_of_them, keep + all_but_one) + serve
    return np.where(serves & (copies <= tiers)[:, None], total, np.inf)


def proven(table: Table, limited: list[Room], prices: Floats) -> float:
    """Money that no placement can undercut, by weak duality: any prices >= 0 of the rooms prove one bound.

    Each item takes its cheapest spot where room costs what `prices` say; what all room is worth is taken off.
    """
    keep, serve = table.keep.copy(), table.serve.copy()
    for room, price in zip(limited, prices, strict=True):
        (keep if room.instant is None else serve)[:, room.tier] += price * room.need
    cheapest = least(keep, serve, table.copies, table.holds(), table.serves()).min(axis=1)
    worth = sum(price * room.limit for room, price in zip(limited, prices, strict=True))
    return float(cheapest @ table.count - worth)


def deal(serve: Ints, keep: Ints, copies: int) -> Iterator[Spot]:
    """Deal a row's counts out to its items, one spot each; tiers in their order serve first.

    serve, keep: how many copies of either kind on each tier, int64 [tiers]. Of the other copies an item takes
    first those that all items to come must take, too. That never gets stuck: let c items be left, s of them
    served by tier t, which has k other copies to give; then k <= c - s holds before and after each item.
    """
    serve, keep = serve.copy(), keep.copy()
    for left in range(int(serve.sum()) or int(keep.sum()) // copies, 0, -1):
        first = int(np.flatnonzero(serve)[0]) if serve.any() else -1
        slack = left - serve - keep
        open_to = [tier for tier in np.flatnonzero(keep).tolist() if tier != first]
        open_to.sort(key=lambda tier: (int(slack[tier]), tier))
        others = open_to[: copies - (first >= 0)]
        keep[others] -= 1
        if first >= 0:
            serve[first] -= 1
        tiers = tuple(sorted([*others, first] if first >= 0 else others))
        yield Spot(tiers, first if first >= 0 else tiers[0])


def neighbours(spot: Spot, tiers: int, *, read: bool) -> Iterator[Spot]:
    """All other spots with at most one copy elsewhere; where the item is read, any of the tiers serves."""
    outside = [tier for tier in range(tiers) if tier not in spot.tiers]
    sets = [spot.tiers]
    sets += [tuple(sorted({*spot.tiers, new} - {old})) for old in spot.tiers for new in outside]
    for others in sets:
        for serves in others if read else others[:1]:
            if (others, serves) != spot:
                yield Spot(others, serves)
