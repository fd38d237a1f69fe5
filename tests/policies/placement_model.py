"""The placement problem once more, plainly: every placement of a few items tried, each priced by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product

from policies.placement import Item, Run, TierSpec

Spots = Mapping[str, tuple[tuple[str, ...], str]]


def spots(item: Item, tiers: Sequence[TierSpec]) -> Iterator[tuple[tuple[str, ...], str]]:
    for names in combinations([tier.name for tier in tiers], item.min_copies):
        for serves in names:
            yield names, serves


def epochs_of(run: Run, items: Mapping[str, Item]) -> float:
    if run.epochs is not None:
        return run.epochs
    assert run.bytes_per_second is not None
    return run.bytes_per_second * run.window_seconds / sum(items[name].nbytes for name in run.items)


def fits(items: Sequence[Item], tiers: Sequence[TierSpec], runs: Sequence[Run], chosen: Spots) -> bool:
    byname = {item.name: item for item in items}
    for tier in tiers:
        used = sum(item.nbytes for item in items if tier.name in chosen[item.name][0])
        if tier.capacity_bytes is not None and used > tier.capacity_bytes:
            return False
        for moment in [run.start_seconds for run in runs]:
            rate = 0.0
            for run in runs:
                if run.start_seconds <= moment < run.start_seconds + run.window_seconds:
                    nbytes = sum(byname[n].nbytes for n in run.items if chosen[n][1] == tier.name)
                    rate += epochs_of(run, byname) * nbytes / run.window_seconds
            if tier.bytes_per_second is not None and rate > tier.bytes_per_second * (1 + 1e-9):
                return False
    return True


def money(
    items: Sequence[Item],
    tiers: Sequence[TierSpec],
    runs: Sequence[Run],
    chosen: Spots,
    months: float,
    kwh_price: float,
) -> float:
    byname = {item.name: item for item in items}
    place = {tier.name: tier for tier in tiers}
    total = 0.0
    for item in items:
        gb = item.nbytes / 1e9

        def read(name: str, item: Item = item, gb: float = gb) -> float:
            tier = place[name]
            joules = tier.joules_per_gb * gb
            return gb * tier.egress_gb + item.gets / 1000 * tier.get_1000 + joules / 3.6e6 * kwh_price

        names, serves = chosen[item.name]
        for name in names:
            tier = place[name]
            total += gb * tier.storage_gb_month * months
            total += gb * tier.watts_per_gb * months * 730 / 1000 * kwh_price
            if name not in item.on:
                total += item.puts / 1000 * tier.put_1000 + gb * tier.joules_per_gb / 3.6e6 * kwh_price
                total += min(map(read, item.on), default=0.0)
        for run in runs:
            if item.name in run.items:
                total += epochs_of(run, byname) * read(serves)
    return total


def cheapest(
    items: Sequence[Item],
    tiers: Sequence[TierSpec],
    runs: Sequence[Run],
    months: float = 1.0,
    kwh_price: float = 0.0,
) -> float | None:
    """The least money of all placements that fit, or None."""
    best = None
    for choice in product(*(list(spots(item, tiers)) for item in items)):
        chosen = {item.name: spot for item, spot in zip(items, choice, strict=True)}
        if fits(items, tiers, runs, chosen):
            cost = money(items, tiers, runs, chosen, months, kwh_price)
            best = cost if best is None else min(best, cost)
    return best
