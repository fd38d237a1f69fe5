"""Hit ratios of training orders by policy, beside what theory expects or an earlier run found.

Expected, for many items of one size: LRU of independent permutations by its closed form, pin by how fast it
fills, and the clairvoyant by the bound where one reader permutes. Where no closed form is known, `recorded`
is what an earlier run with other seeds found. `bound` is what no policy exceeds (`policies.bounds`).
`deviation` is measured minus expected or, without that, minus recorded. A list has one number a share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from policies import replay
from policies.bounds import lru_hit_ratio, most_hits

SHARES = (0.1, 0.25, 0.5, 0.75)
"""Room in the cache, as a share of the items or of their bytes."""
ITEMS, EPOCHS, SLICE_EPOCHS, WORLD, JOBS, SEED, ROUNDS = 1000, 10, 40, 4, 4, 0, 64
RECORDED = {
    "permutations": {"sieve": (0.024, 0.105, 0.318, 0.612), "wtinylfu": (0.080, 0.225, 0.452, 0.665)},
    "slices": {"belady": (0.316, 0.535, 0.734, 0.848)},
    "jobs": {"belady": (0.360, 0.556, 0.757, 0.887)},
}

Ints = npt.NDArray[np.int64]
Numbers = tuple[float, ...]
Theory = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Row:
    """One policy; numbers are hit ratios at each of `SHARES`."""

    policy: str
    measured: Numbers
    expected: Numbers | None
    recorded: Numbers | None

    @property
    def deviation(self) -> Numbers | None:
        """Measured minus expected, or minus recorded where nothing is expected."""
        against = self.expected or self.recorded
        return against and tuple(one - other for one, other in zip(self.measured, against, strict=True))


def permutations(items: int, epochs: int, seed: int) -> Ints:
    """Requests of one reader: a new permutation an epoch."""
    random = np.random.default_rng(seed)
    return np.concatenate([random.permutation(items) for _ in range(epochs)])


def slices(items: int, epochs: int, world: int, seed: int) -> Ints:
    """Requests of worker 0 of `world`, items being dealt anew to all workers every epoch."""
    random = np.random.default_rng(seed)
    return np.concatenate([random.permutation(items)[: items // world] for _ in range(epochs)])


def jobs(items: int, epochs: int, count: int, seed: int) -> Ints:
    """Requests of so many jobs, each with permutations of its own, asking in turn."""
    return np.stack([permutations(items, epochs, seed + job) for job in range(count)], axis=1).ravel()


def pin_of_slices(share: float, epochs: int, world: int) -> float:
    """Before epoch e, the items dealt so far are held or, once full, `share` of all: so many are hit."""
    return sum(min(share, 1 - (1 - 1 / world) ** epoch) for epoch in range(epochs)) / epochs


def pin_of_jobs(share: float, epochs: int, count: int) -> float:
    """What is held is missed once, what is not is missed always."""
    return share * (1 - 1 / (count * epochs))


def permutation_rows(items: int = ITEMS, epochs: int = EPOCHS, seed: int = SEED) -> list[Row]:
    """Hit ratios after the first epoch, in which nothing can hit."""
    theory: dict[str, Theory | None] = {
        "lru": lru_hit_ratio, "sieve": None, "wtinylfu": None, "pin": float, "belady": float
    }  # fmt: skip
    ids = permutations(items, epochs, seed)
    return _rows("permutations", ids, items, ids.size - items, theory)


def slice_rows(
    items: int = ITEMS, epochs: int = SLICE_EPOCHS, world: int = WORLD, seed: int = SEED
) -> tuple[list[Row], Numbers]:
    """Hit ratios of all epochs, the cache being empty at first, and their bounds."""
    ids = slices(items, epochs, world, seed)
    pin = {"pin": lambda share: pin_of_slices(share, epochs, world)}
    return _rows("slices", ids, items, ids.size, {"lru": None, **pin, "belady": None}), _bounds(ids, items)


def job_rows(
    items: int = ITEMS, epochs: int = EPOCHS, count: int = JOBS, seed: int = SEED
) -> tuple[list[Row], Numbers]:
    """Hit ratios of all epochs, the cache being empty at first, and their bounds."""
    ids = jobs(items, epochs, count, seed)
    pin = {"pin": lambda share: pin_of_jobs(share, epochs, count)}
    return _rows("jobs", ids, items, ids.size, {"lru": None, **pin, "belady": None}), _bounds(ids, items)


def unequal_sizes(
    items: int = ITEMS, epochs: int = EPOCHS, seed: int = SEED
) -> dict[str, dict[str, Numbers]]:
    """Requests and bytes fetched an epoch after the first, as shares of all, where sizes are log-normal."""
    sizes = np.random.default_rng(seed).lognormal(3, 1, items).astype(np.int64) + 1
    ids = permutations(items, epochs, seed)
    smallest = np.cumsum(np.sort(sizes)) / sizes.sum()
    kept: dict[str, Theory] = {"pin": float, "pin-smallest": lambda share: float(np.mean(smallest <= share))}
    table = {}
    for policy, theory in kept.items():
        runs = [replay(policy, ids, sizes[ids], int(share * sizes.sum())) for share in SHARES]
        table[policy] = {
            "requests": tuple((run.misses / items - 1) / (epochs - 1) for run in runs),
            "requests_expected": tuple(1 - theory(share) for share in SHARES),
            "egress": tuple((run.miss_bytes / int(sizes.sum()) - 1) / (epochs - 1) for run in runs),
            "egress_expected": tuple(1 - share for share in SHARES),
        }
    return table


def run() -> dict[str, object]:
    """All tables, to four places."""
    sliced, slice_bounds = slice_rows()
    shared, job_bounds = job_rows()
    tables = {"permutations": permutation_rows(), "slices": sliced, "jobs": shared}
    theory = [row for rows in tables.values() for row in rows if row.expected]
    return {
        "items": ITEMS,
        "shares": SHARES,
        **{name: {row.policy: _document(row) for row in rows} for name, rows in tables.items()},
        "slices_bound": _rounded(slice_bounds),
        "jobs_bound": _rounded(job_bounds),
        "unequal_sizes": {
            policy: {name: _rounded(numbers) for name, numbers in columns.items()}
            for policy, columns in unequal_sizes().items()
        },
        "largest_deviation_from_theory": max(
            abs(one) for row in theory for one in _document(row)["deviation"]
        ),
    }


def _rows(table: str, ids: Ints, items: int, counted: int, theory: dict[str, Theory | None]) -> list[Row]:
    return [
        Row(
            policy,
            tuple(replay(policy, ids, 1, int(share * items)).hits / counted for share in SHARES),
            tuple(expect(share) for share in SHARES) if expect else None,
            RECORDED[table].get(policy),
        )
        for policy, expect in theory.items()
    ]


def _bounds(ids: Ints, items: int) -> Numbers:
    return tuple(most_hits(ids, 1, int(share * items), rounds=ROUNDS) / ids.size for share in SHARES)


def _document(row: Row) -> dict[str, list[float]]:
    columns = ("measured", "expected", "recorded", "deviation")
    return {name: _rounded(numbers) for name in columns if (numbers := getattr(row, name)) is not None}


def _rounded(numbers: Numbers) -> list[float]:
    return [round(one, 4) for one in numbers]
