"""The placement of a table as a linear program over whole numbers, for SciPy's HiGHS.

Variables, for each row of the table and each tier: `serve`, how many of the row's items have the copy there
that serves their readers, and `keep`, how many have another copy there. A row of k items, each of m copies,
has k of the first kind and k(m - 1) of the second, of both together at most k on one tier. Where nobody reads
and m > 1, all copies are of the second kind. Any such numbers can be dealt out to the single items (see
`policies.placement.deal`), so one row for many alike items loses nothing.

Deterministic: work is limited by a count of nodes, never by seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from policies.placement.table import Floats, Table

__all__ = ["Counts", "Program", "Room", "branch", "program", "relax", "rooms"]

_COST_SCALE = 1e3
"""Costs are scaled so that the largest is this: HiGHS's own tolerances are absolute, about 1e-6."""
_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Room:
    """What may run out: bytes of a tier (instant None), or its bytes per second at an instant.

    need: of one item of each row, float64 [rows]. most: of all of them there.
    """

    tier: int
    instant: int | None
    need: Floats
    limit: float
    most: float

    @property
    def scale(self) -> float:
        """What the line of the program is divided by."""
        return max(self.limit, float(self.need.max()))


@dataclass(frozen=True, slots=True)
class Counts:
    """How many items of each row are served from, and have another copy on, each tier: float64 [rows, tiers].

    over: how much more of each room was taken than there is. bound: no placement has a lower objective, -inf
    where nothing was proven.
    """

    serve: Floats
    keep: Floats
    over: Floats
    bound: float = -np.inf


@dataclass(frozen=True, slots=True)
class Program:
    """Minimise cost x, where below x <= limits, totals x == sums, 0 <= x <= upper; in units of money."""

    shape: tuple[int, int]
    rooms: Sequence[Room]
    unit: float
    cost: Floats
    upper: Floats
    below: Any
    limits: Floats
    totals: Any
    sums: Floats


def rooms(table: Table, capacity: Floats, bandwidth: Floats) -> list[Room]:
    """What may run out if all went to one tier.

    capacity: bytes left, [tiers]. bandwidth: bytes per second left, [tiers, instants].
    """
    found = []
    nbytes = table.nbytes.astype(np.float64)
    for tier in range(len(table.tiers)):
        most = float(nbytes @ table.count)
        if capacity[tier] < most:
            found.append(Room(tier, None, nbytes, max(0.0, capacity[tier]), most))
        for instant, need in enumerate(table.rates.T):
            most = float(need @ table.count)
            if bandwidth[tier, instant] < most:
                found.append(Room(tier, instant, need, max(0.0, bandwidth[tier, instant]), most))
    return found


def program(table: Table, limited: Sequence[Room], *, elastic: bool = False) -> Program:
    """The program of the least money; with `elastic`, of the least room beyond what there is, as shares."""
    from scipy import sparse

    shape = rows, tiers = table.keep.shape
    cells, extra = rows * tiers, len(limited) if elastic else 0
    lead = np.where(table.read | (table.copies == 1), table.count, 0)
    others = table.count * table.copies - lead
    anywhere = np.full(shape, elastic)
    upper = [
        np.where(anywhere | table.serves(), lead[:, None], 0).ravel(),
        np.where(anywhere | table.holds(), np.minimum(others, table.count)[:, None], 0).ravel(),
    ]
    cost = np.concatenate([(table.keep + table.serve).ravel(), table.keep.ravel()])
    if elastic:
        cost = np.concatenate([np.zeros(2 * cells), [room.scale / room.most for room in limited]])
    unit = float(cost.max(initial=0.0)) / _COST_SCALE or 1.0

    cell = np.arange(cells).reshape(shape)
    lines = [np.zeros(0, np.int64)]
    columns, values = [np.zeros(0, np.int64)], [np.zeros(0)]
    for line, room in enumerate(limited):
        kinds = 2 if room.instant is None else 1  # another copy takes bytes and serves nobody
        lines.append(np.full(kinds * rows, line))
        columns += [cell[:, room.tier] + kind * cells for kind in range(kinds)]
        values += [room.need / room.scale] * kinds
        if elastic:
            lines.append(np.array([line]))
            columns.append(np.array([2 * cells + line]))
            values.append(np.array([-1.0]))
    both = cell[(lead > 0) & (others > 0)].ravel()
    lines += [len(limited) + np.arange(len(both))] * 2
    columns += [both, both + cells]
    values += [np.ones(len(both))] * 2
    entries = np.concatenate(values), (np.concatenate(lines), np.concatenate(columns))
    height, width = len(limited) + len(both), 2 * cells + extra
    each = np.arange(2 * cells)
    return Program(
        shape=shape,
        rooms=limited,
        unit=unit,
        cost=cost / unit,
        upper=np.concatenate([*upper, np.full(extra, np.inf)]),
        below=sparse.csr_array(entries, shape=(height, width)),
        limits=np.concatenate([[room.limit / room.scale for room in limited], table.count[both // tiers]]),
        totals=sparse.csr_array((np.ones(2 * cells), (each // tiers, each)), shape=(2 * rows, width)),
        sums=np.concatenate([lead, others]).astype(np.float64),
    )


def relax(problem: Program) -> tuple[Counts, Floats] | None:
    """The answer in fractions, and what one more byte, or byte/s, of each room would save; or None."""
    from scipy.optimize import linprog

    found = linprog(
        problem.cost,
        A_ub=problem.below,
        b_ub=problem.limits,
        A_eq=problem.totals,
        b_eq=problem.sums,
        bounds=np.column_stack([np.zeros(len(problem.upper)), problem.upper]),
        method="highs-ds",
    )
    if found.x is None:
        return None
    scale = np.array([room.scale for room in problem.rooms])
    prices = np.maximum(0.0, -found.ineqlin.marginals[: len(scale)]) * problem.unit / scale
    return _counts(problem, found.x, -np.inf), prices


def branch(problem: Program, node_limit: int) -> Counts | None:
    """The answer in whole numbers, the best of at most `node_limit` nodes; None where none was found."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    cells = 2 * problem.shape[0] * problem.shape[1]
    found = milp(
        problem.cost,
        integrality=np.arange(len(problem.cost)) < cells,
        bounds=Bounds(0, problem.upper),
        constraints=[
            LinearConstraint(problem.below, -np.inf, problem.limits),
            LinearConstraint(problem.totals, problem.sums, problem.sums),
        ],
        options={"node_limit": node_limit, "mip_rel_gap": 0.0},
    )
    if found.x is None:
        return None
    whole = np.where(np.arange(len(found.x)) < cells, np.rint(found.x), found.x)
    bound = -np.inf if found.mip_dual_bound is None else (found.mip_dual_bound - _TOLERANCE) * problem.unit
    return _counts(problem, whole, bound)


def _counts(problem: Program, x: Floats, bound: float) -> Counts:
    cells = problem.shape[0] * problem.shape[1]
    serve, keep, over = np.split(x, [cells, 2 * cells])
    scale = np.array([room.scale for room in problem.rooms[: len(over)]])
    return Counts(serve.reshape(problem.shape), keep.reshape(problem.shape), over * scale, bound)
