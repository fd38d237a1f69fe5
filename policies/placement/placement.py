"""A placement found: where items lie, what it costs, what to move, and why each item is where it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from policies.placement.deal import Spot, least, neighbours
from policies.placement.ledger import Lack, Ledger
from policies.placement.model import Item
from policies.placement.table import Table

__all__ = ["Cost", "Placed", "Placement"]


@dataclass(frozen=True, slots=True)
class Cost:
    """Money over the horizon: lying there, getting there, being read, and energy of all three."""

    storage: float
    moving: float
    reading: float
    energy: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.storage + self.moving + self.reading + self.energy


@dataclass(frozen=True, slots=True)
class Placed:
    """One item: tiers that shall hold it, the one that serves its readers, copies to make and to give up."""

    tiers: tuple[str, ...]
    serves: str
    copy_to: tuple[str, ...]
    release_from: tuple[str, ...]


@dataclass(frozen=True)
class Placement:
    """Where everything lies. Made by `place`.

    bound: no placement costs less. method: ``each alone`` (nothing can run out), ``branch and bound`` or
    ``rounded``. used_bytes: of each tier.
    """

    items: Mapping[str, Placed]
    cost: Cost
    bound: float
    method: str
    used_bytes: Mapping[str, int]
    _ledger: Ledger = field(repr=False, compare=False)

    @classmethod
    def of(cls, ledger: Ledger, items: Sequence[Item], bound: float, method: str) -> Self:
        """What a ledger holds."""
        table = ledger.table
        names = [tier.name for tier in table.tiers]
        on = {item.name: item.on for item in items}
        placed = {}
        for name, spot in zip(table.names, ledger.spots, strict=True):
            tiers = tuple(names[tier] for tier in spot.tiers)
            new = tuple(tier for tier in tiers if tier not in on[name])
            old = tuple(tier for tier in sorted(on[name]) if tier not in tiers)
            placed[name] = Placed(tiers, names[spot.serves], new, old)
        used = dict(zip(names, ledger.used_bytes, strict=True))
        return cls(placed, _cost(table, ledger.spots), bound, method, used, ledger)

    @property
    def gap(self) -> float:
        """How much of the cost, as a share in [0, 1], the best placement could save at most."""
        if not np.isfinite(self.bound):
            return 1.0
        return max(0.0, 1 - self.bound / self.cost.total) if self.cost.total > 0 else 0.0

    def why(self, name: str) -> str:
        """One or two sentences on one item: what it costs there, and what is next best or in the way."""
        if name not in self.items:
            raise ValueError(f"no item {name!r} was placed; e.g. {min(self.items, default='web-text')!r}")
        ledger, row = self._ledger, self._ledger.table.names.index(name)
        spot = ledger.spots[row]
        cost = ledger.cost(row, spot)
        said = f"{name!r} lies on {self._told(spot)} for {cost:.6g}"
        wanted = self._cheapest(row)
        saved = cost - ledger.cost(row, wanted)
        if saved > 1e-9 * cost:
            lacks = ledger.lacks(row, wanted)
            if lacks:
                return (
                    f"{said}. {self._told(wanted)} would cost {saved:.6g} less, but"
                    f" {' and '.join(map(self._lack, lacks))}: others save more there, or fit nowhere else."
                )
        near = neighbours(spot, len(ledger.table.tiers), read=bool(ledger.table.read[row]))
        others = sorted((ledger.cost(row, other), other) for other in near)
        for other_cost, other in others:
            if not ledger.lacks(row, other):
                return f"{said}. Next best: {self._told(other)} would cost {_than(other_cost - cost)}."
        if not others:
            return f"{said}: there is no other choice."
        other_cost, other = others[0]
        return (
            f"{said}. Nothing else has room: {self._told(other)} would cost {_than(other_cost - cost)}, but"
            f" {self._lack(ledger.lacks(row, other)[0])}."
        )

    def _cheapest(self, row: int) -> Spot:
        """The cheapest spot of an item, were it alone."""
        table = self._ledger.table
        one = table.take(np.array([row]), np.ones(1, np.int64))
        costs = least(one.keep, one.serve, one.copies, one.holds(), one.serves())[0]
        serves = int(costs.argmin())
        keep = np.where(one.holds()[0], one.keep[0], np.inf)
        keep[serves] = -np.inf
        tiers = np.argsort(keep, kind="stable")[: int(one.copies[0])]
        return Spot(tuple(sorted(tiers.tolist())), serves)

    def _told(self, spot: Spot) -> str:
        tiers = [self._ledger.table.tiers[tier].name for tier in spot.tiers]
        told = " and ".join(tiers)
        if len(tiers) > 1:
            told += f" (read from {self._ledger.table.tiers[spot.serves].name})"
        return told

    def _lack(self, lack: Lack) -> str:
        name = self._ledger.table.tiers[lack.tier].name
        if lack.instant is None:
            return f"{name} lacks {lack.short:,.0f} bytes of room for it"
        return f"{name} lacks {lack.short:,.0f} bytes/s for its readers"


def _than(difference: float) -> str:
    return f"{abs(difference):.6g} {'less' if difference < 0 else 'more'}"


def _cost(table: Table, spots: Sequence[Spot]) -> Cost:
    rows = np.repeat(np.arange(len(spots)), [len(spot.tiers) for spot in spots])
    tiers = np.array([tier for spot in spots for tier in spot.tiers], np.int64)
    serves = np.arange(len(spots)), np.array([spot.serves for spot in spots], np.int64)
    held = rows, tiers
    return Cost(
        storage=float(table.storage[held].sum()),
        moving=float(table.moving[held].sum()),
        reading=float(table.reading[serves].sum()),
        energy=float(table.holding_energy[held].sum() + table.reading_energy[serves].sum()),
    )
