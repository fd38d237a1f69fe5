"""Why there is no placement: which room is short, and by how much.

The answer is a placement that takes as little more than there is as can be, as shares of what all items need;
what it takes too much is what is short. Give the tiers that much more and there is a placement.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal, Self

import numpy as np

from policies.placement.ledger import Lack
from policies.placement.program import Counts, Room, branch, program, relax
from policies.placement.table import Table

__all__ = ["Infeasible", "Shortage", "shortage", "too_few_tiers"]


_NOTHING = 1e-5
"""Shares of a room below this are the solver's tolerance."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """What is not there. where: a tier, or for copies an item. short: how many bytes, bytes/s or tiers."""

    where: str
    what: Literal["bytes", "bytes/s", "tiers"]
    short: float

    def __str__(self) -> str:
        if self.what == "tiers":
            return f"item {self.where!r} wants {self.short:,.0f} more distinct tiers than there are"
        return f"tier {self.where!r} lacks {self.short:,.0f} {self.what}"


class Infeasible(ValueError):  # as the names of the errors of `tiering`
    """No placement exists, or none was found.

    shortages: what is short, of several instants the worst. proven: whether it is certain that none exists.
    enough: whether there surely is one with that much more; else at least so much is needed.
    """

    def __init__(self, shortages: Sequence[Shortage], *, proven: bool, enough: bool) -> None:
        self.shortages = tuple(shortages)
        self.proven = proven
        self.enough = enough
        said = "exists" if proven else "was found"
        told = "; ".join(str(one) for one in self.shortages)
        amount = "with that much more there is one" if enough else "at least that much more is needed"
        super().__init__(f"no placement {said}: {told}; {amount}")

    @classmethod
    def of(cls, table: Table, lacks: Sequence[Lack], *, proven: bool, enough: bool) -> Self:
        """From what tiers lack."""
        short: dict[tuple[int, bool], float] = {}
        for lack in lacks:
            key = lack.tier, lack.instant is not None
            short[key] = max(short.get(key, 0.0), lack.short)
        shortages = [
            Shortage(table.tiers[tier].name, "bytes/s" if rate else "bytes", amount)
            for (tier, rate), amount in sorted(short.items())
        ]
        return cls(shortages, proven=proven, enough=enough)


def too_few_tiers(table: Table) -> None:
    """Raise `Infeasible` for items that want more copies than there are tiers."""
    missing = table.copies - len(table.tiers)
    if (missing > 0).any():
        rows = np.flatnonzero(missing > 0).tolist()
        shortages = [Shortage(table.names[row], "tiers", int(missing[row])) for row in rows]
        raise Infeasible(shortages, proven=True, enough=True)


def shortage(table: Table, limited: list[Room], node_limit: int, *, relaxed: bool) -> Counts:
    """Raise `Infeasible`, or return a placement where there is one after all, how good is not known.

    relaxed: ask the relaxed program first, which may already say no.
    """
    problem = program(table, limited, elastic=True)
    answer = relax(problem) if relaxed else None
    lacks = [] if answer is None else _lacks(limited, answer[0])
    if lacks:
        raise Infeasible.of(table, lacks, proven=True, enough=False)
    counts = branch(problem, node_limit)
    if counts is None:
        raise Infeasible([], proven=False, enough=False)
    lacks = _lacks(limited, counts)
    if lacks:
        raise Infeasible.of(table, lacks, proven=counts.bound > 0, enough=True)
    return replace(counts, bound=-np.inf)  # that bound was not of money


def _lacks(limited: list[Room], counts: Counts) -> list[Lack]:
    found = []
    for room, over in zip(limited, counts.over.tolist(), strict=True):
        if over > _NOTHING * room.scale:
            short = over if room.instant is not None else float(ceil(over - _NOTHING))
            found.append(Lack(room.tier, room.instant, short))
    return found
