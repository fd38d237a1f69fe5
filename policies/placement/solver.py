"""Finds the placement: by branch and bound where the problem is small, else to within a gap that is proven.

Large problems. The relaxed program has at most one row in fractions for each room that is full, so nearly all
rows of its answer are whole already. They stay; a small whole-number program places the rest, with more rows
added while it finds nothing. Duality of the relaxed program proves how far from the best that can be at most
(as for the generalised assignment problem: Benders and van Nunen 1983, A property of assignment type mixed
integer linear programming problems).
"""

from collections.abc import Sequence

import numpy as np

from policies.checks import whole
from policies.placement.deal import deal, least, proven
from policies.placement.ledger import Ledger
from policies.placement.model import Item, Run, TierSpec, check_number, check_problem
from policies.placement.placement import Placement
from policies.placement.program import Counts, Room, branch, program, relax, rooms
from policies.placement.shortage import Infeasible, shortage, too_few_tiers
from policies.placement.table import ROUNDING, Floats, Ints, Table, tabulate

__all__ = ["place"]

_FREE_ROWS = 128
"""Rows that the small program of a large problem has besides those in fractions."""
_GROWTH = 4
_ROUND_NODES = 200
_MARGIN = 4e-6
"""A little more than HiGHS's tolerance of a line, which may be overdrawn by 1e-6 of its scale."""
_PASSES = 10


def place(
    items: Sequence[Item],
    tiers: Sequence[TierSpec],
    runs: Sequence[Run] = (),
    *,
    months: float = 1.0,
    kwh_price: float = 0.0,
    exact_cells: int = 600,
    node_limit: int = 2000,
) -> Placement:
    """Return where each item should lie, and from which tier it should be read, for the least money.

    months: how long items lie there, of 730 hours each. kwh_price: money for the energy that tiers tell of.
    exact_cells: up to so many pairs of tiers and kinds of items (those alike are one kind) the whole is
    solved by branch and bound, of at most `node_limit` nodes; beyond, all but a few items are placed by the
    relaxed program. Either way `Placement.gap` tells how far from the best it can be at most.

    Deterministic and independent of the order of arguments; ties go to the name that comes first. Raises
    ValueError for arguments out of range and for names that are unknown or stand twice, and `Infeasible`, a
    kind of it, where no placement exists: it says what is short and by how much.
    """
    check_problem(items, tiers, runs)
    check_number("months", months, above=0, example=1)
    check_number("kwh_price", kwh_price, example=0.3)
    whole("exact_cells", exact_cells, least=0, example=600)
    whole("node_limit", node_limit, least=1, example=2000)
    table = tabulate(items, tiers, runs, months, kwh_price)
    too_few_tiers(table)
    kinds, kind = table.grouped()
    method, counts = _solve(kinds, 0.0, exact_cells, node_limit)
    bound = counts.bound
    ledger = _dealt(table, kinds, kind, counts)
    over = ledger.overdrawn()
    if over:  # by less than the tolerance of the solver: once more, away from the edge
        try:
            _, counts = _solve(kinds, _MARGIN, exact_cells, node_limit)
        except Infeasible:
            raise Infeasible.of(table, over, proven=False, enough=True) from None
        ledger = _dealt(table, kinds, kind, counts)
    ledger.settle(_PASSES)
    return Placement.of(ledger, items, bound, method)


def _solve(table: Table, margin: float, exact_cells: int, node_limit: int) -> tuple[str, Counts]:
    """The method and its answer; `margin` is a share of all room that is left alone."""
    capacity, bandwidth = table.room()
    limited = rooms(table, capacity * (1 - margin), bandwidth * (1 - margin))
    if not limited:
        return "each alone", _cheapest(table)
    exact = table.keep.size <= exact_cells
    counts = (
        branch(program(table, limited), node_limit) if exact else _round(table, limited, margin, node_limit)
    )
    if counts is None:
        counts = shortage(table, limited, node_limit, relaxed=not exact)
    return "branch and bound" if exact else "rounded", counts


def _dealt(table: Table, kinds: Table, kind: Ints, counts: Counts) -> Ledger:
    """The single items, in the order of their names, each on its spot."""
    serve, keep = counts.serve.astype(np.int64), counts.keep.astype(np.int64)
    dealt = [deal(serve[row], keep[row], int(kinds.copies[row])) for row in range(len(serve))]
    return Ledger(table, [next(dealt[row]) for row in kind.tolist()])


def _cheapest(table: Table) -> Counts:
    """All rows at their cheapest spot; right where nothing can run out."""
    tiers = len(table.tiers)
    cost = least(table.keep, table.serve, table.copies, table.holds(), table.serves())
    first = np.arange(tiers) == cost.argmin(axis=1)[:, None]
    keep = np.where(table.holds() & ~first, table.keep, np.inf)
    rank = np.argsort(np.argsort(keep, axis=1, kind="stable"), axis=1)
    others = rank < table.copies[:, None] - 1
    count = table.count[:, None].astype(np.float64)
    return Counts(first * count, others * count, np.zeros(0), float(cost.min(axis=1) @ table.count))


def _round(table: Table, limited: list[Room], margin: float, node_limit: int) -> Counts | None:
    """The relaxed answer made whole; None where there is none, or none was found."""
    answer = relax(program(table, limited))
    if answer is None:
        return None
    counts, prices = answer
    serve, keep = np.rint(counts.serve), np.rint(counts.keep)
    fractions = np.maximum(np.abs(counts.serve - serve), np.abs(counts.keep - keep)).max(axis=1) > 1e-6
    order = np.lexsort((np.arange(len(fractions)), _regret(table, limited, prices), ~fractions))
    free = int(fractions.sum()) + _FREE_ROWS
    while True:
        rows = np.sort(order[:free])
        stay = np.setdiff1d(np.arange(len(order)), rows)
        part = table.take(rows, table.count[rows])
        capacity, bandwidth = (room * (1 - margin) for room in table.room())
        capacity -= table.nbytes[stay] @ (serve + keep)[stay]
        bandwidth -= serve[stay].T @ table.rates[stay]
        found = None
        if (capacity >= 0).all() and (bandwidth >= -ROUNDING * table.room()[1]).all():
            found = branch(program(part, rooms(part, capacity, bandwidth)), min(node_limit, _ROUND_NODES))
        if found is not None:
            serve[rows], keep[rows] = found.serve, found.keep
            return Counts(serve, keep, np.zeros(0), proven(table, limited, prices))
        if free >= len(order):
            return None
        free *= _GROWTH


def _regret(table: Table, limited: list[Room], prices: Floats) -> Floats:
    """What an item of each row pays to go from its best spot to the next where room has its price, [rows]."""
    keep, serve = table.keep.copy(), table.serve.copy()
    for room, price in zip(limited, prices, strict=True):
        (keep if room.instant is None else serve)[:, room.tier] += price * room.need
    cost = np.sort(least(keep, serve, table.copies, table.holds(), table.serves()), axis=1)
    several = table.copies > 1
    ranked = np.sort(np.where(table.holds(), keep, np.inf), axis=1)
    last = table.copies[:, None] - 1  # of the copies kept, the dearest; beside it the first that is not
    beside = np.minimum(last + 1, keep.shape[1] - 1)
    with np.errstate(invalid="ignore"):  # no other choice: inf - inf
        server = cost[:, min(1, keep.shape[1] - 1)] - cost[:, 0]
        tier = (np.take_along_axis(ranked, beside, 1) - np.take_along_axis(ranked, last, 1))[:, 0]
    server[~table.read & several] = np.inf
    tier[~several | (beside == last)[:, 0]] = np.inf
    regret: Floats = np.fmin(server, tier) / table.nbytes
    return regret
