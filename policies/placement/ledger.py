"""What is taken on each tier while items change their spots one at a time.

Invariant: bytes are counted in whole numbers; a spot that does not fit is never taken by `settle`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from policies.placement.deal import Spot, neighbours
from policies.placement.table import ROUNDING, Table

__all__ = ["Lack", "Ledger"]

_TIE = 1e-12
"""Costs that differ by no more than this share of the dearest spot are equal."""


@dataclass(frozen=True, slots=True)
class Lack:
    """What a tier has not: bytes, or bytes per second at an instant, and how many of them."""

    tier: int
    instant: int | None
    short: float


class Ledger:
    """The spots of all items of a table, and the room they take."""

    def __init__(self, table: Table, spots: Sequence[Spot]) -> None:
        self.table = table
        self.spots = list(spots)
        self._keep = table.keep.tolist()
        self._serve = table.serve.tolist()
        self._nbytes = table.nbytes.tolist()
        self.used_bytes = [0] * len(table.tiers)
        self.used_rate = np.zeros((len(table.tiers), table.rates.shape[1]))
        for row, spot in enumerate(spots):
            self._count(row, spot, 1)

    def cost(self, row: int, spot: Spot) -> float:
        """Money of one item there."""
        keep = self._keep[row]
        total: float = sum(keep[tier] for tier in spot.tiers) + self._serve[row][spot.serves]
        return total

    def lacks(self, row: int, spot: Spot) -> list[Lack]:
        """What stops the item from moving from its spot to this one, all others staying; empty if nothing."""
        old, tiers = self.spots[row], self.table.tiers
        found = []
        for tier in spot.tiers:
            capacity = tiers[tier].capacity_bytes
            if tier not in old.tiers and capacity is not None:
                short = self.used_bytes[tier] + self._nbytes[row] - capacity
                if short > 0:
                    found.append(Lack(tier, None, short))
        bandwidth = tiers[spot.serves].bytes_per_second
        if spot.serves != old.serves and bandwidth is not None:
            over = self.used_rate[spot.serves] + self.table.rates[row] - bandwidth
            over[self.table.rates[row] == 0] = 0
            found += [
                Lack(spot.serves, instant, float(over[instant]))
                for instant in np.flatnonzero(over > ROUNDING * bandwidth).tolist()
            ]
        return found

    def overdrawn(self) -> list[Lack]:
        """Where more is taken than there is."""
        found = []
        for number, tier in enumerate(self.table.tiers):
            if tier.capacity_bytes is not None and self.used_bytes[number] > tier.capacity_bytes:
                found.append(Lack(number, None, self.used_bytes[number] - tier.capacity_bytes))
            if tier.bytes_per_second is not None:
                over = self.used_rate[number] - tier.bytes_per_second
                at = np.flatnonzero(over > ROUNDING * tier.bytes_per_second).tolist()
                found += [Lack(number, instant, float(over[instant])) for instant in at]
        return found

    def settle(self, passes: int) -> None:
        """Let each item, in the order of names, take the cheapest next spot that fits, until none changes.

        Of equally cheap ones it takes the one whose tiers come first by name.
        """
        table = self.table
        slack = _TIE * float(table.keep.max(initial=0.0) + table.serve.max(initial=0.0))
        for _ in range(passes):
            changed = False
            for row, old in enumerate(self.spots):
                cost = self.cost(row, old)
                near = sorted(
                    (self.cost(row, spot), spot)
                    for spot in neighbours(old, len(table.tiers), read=bool(table.read[row]))
                )
                for other, spot in near:
                    if other > cost + slack or (other >= cost - slack and spot > old):
                        continue
                    if not self.lacks(row, spot):
                        self.take(row, spot)
                        changed = True
                        break
            if not changed:
                return

    def take(self, row: int, spot: Spot) -> None:
        """Move one item to a spot."""
        self._count(row, self.spots[row], -1)
        self._count(row, spot, 1)
        self.spots[row] = spot

    def _count(self, row: int, spot: Spot, sign: int) -> None:
        for tier in spot.tiers:
            self.used_bytes[tier] += sign * self._nbytes[row]
        self.used_rate[spot.serves] += sign * self.table.rates[row]
