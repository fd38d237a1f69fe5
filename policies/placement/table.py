"""A placement problem as arrays: what a copy of each item on each tier costs, and what it takes up there.

Invariant: items and tiers are in the order of their names, so no answer depends on the order of arguments.

Dominance. No cost is below 0, so of more than `min_copies` copies, one that serves nobody can go without
harm: the best placement has exactly `min_copies` copies of each item, one of which serves its readers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from policies.placement.model import GB, HOURS_PER_MONTH, Item, Run, TierSpec

__all__ = ["ROUNDING", "Floats", "Ints", "Table", "tabulate"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
ROUNDING = 1e-9
"""Bytes per second are sums of fractions: this share more than the limit still counts as within it."""
_JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, slots=True)
class Table:
    """Items [N] by tiers [T]; rates at M instants, which are starts of runs.

    storage, moving, holding_energy: float64 [N, T], money of one copy. reading, reading_energy: float64
    [N, T], money of all reads where that copy serves them. rates: bytes per second, float64 [N, M]. count:
    how many alike items a row stands for, int64 [N].
    """

    names: tuple[str, ...]
    nbytes: Ints
    copies: Ints
    count: Ints
    read: npt.NDArray[np.bool_]
    rates: Floats
    storage: Floats
    moving: Floats
    holding_energy: Floats
    reading: Floats
    reading_energy: Floats
    tiers: tuple[TierSpec, ...]

    @property
    def keep(self) -> Floats:
        """Money of one copy, float64 [N, T]."""
        return self.storage + self.moving + self.holding_energy

    @property
    def serve(self) -> Floats:
        """Money of the reads, float64 [N, T]."""
        return self.reading + self.reading_energy

    def room(self) -> tuple[Floats, Floats]:
        """Bytes of each tier, [T], and bytes per second at each instant, [T, M]; infinite without limit."""
        capacity = np.array([_limit(tier.capacity_bytes) for tier in self.tiers])
        bandwidth = np.array([_limit(tier.bytes_per_second) for tier in self.tiers])
        return capacity, np.repeat(bandwidth[:, None], self.rates.shape[1], axis=1)

    def holds(self) -> npt.NDArray[np.bool_]:
        """Whether the item fits on the tier at all, [N, T]."""
        return self.nbytes[:, None] <= self.room()[0]

    def serves(self) -> npt.NDArray[np.bool_]:
        """Whether the tier holds the item and is fast enough for it, [N, T]."""
        enough = (self.rates[:, None, :] <= self.room()[1] * (1 + ROUNDING)).all(axis=2)
        fast: npt.NDArray[np.bool_] = self.holds() & enough
        return fast

    def take(self, rows: Ints, count: Ints) -> Self:
        """These rows, each for `count` items."""
        arrays = ("nbytes", "copies", "read", "rates", "storage", "moving", "holding_energy", "reading")
        taken = {name: getattr(self, name)[rows] for name in (*arrays, "reading_energy")}
        return replace(self, names=tuple(self.names[row] for row in rows), count=count, **taken)

    def grouped(self) -> tuple[Self, Ints]:
        """One row for each kind of alike items, and the row of each item, int64 [N]."""
        numbers = np.column_stack([self.nbytes, self.copies, self.read, self.rates, self.keep, self.serve])
        _, first, inverse, count = np.unique(
            numbers, axis=0, return_index=True, return_inverse=True, return_counts=True
        )
        return self.take(first, count.astype(np.int64)), inverse.reshape(-1).astype(np.int64)


def tabulate(
    items: Sequence[Item], tiers: Sequence[TierSpec], runs: Sequence[Run], months: float, kwh_price: float
) -> Table:
    """The problem as arrays. Storage counts for `months`; what items and runs name is known to exist."""
    items = sorted(items, key=lambda item: item.name)
    tiers = sorted(tiers, key=lambda tier: tier.name)
    number = {item.name: row for row, item in enumerate(items)}
    column = {tier.name: at for at, tier in enumerate(tiers)}
    nbytes = np.array([item.nbytes for item in items], np.int64)
    gb = nbytes / GB
    epochs, rates, read = _demand(runs, number, nbytes)
    joule = kwh_price / _JOULES_PER_KWH

    gets = np.array([item.gets for item in items], np.float64) / 1000
    puts = np.array([item.puts for item in items], np.float64) / 1000
    fetch = np.outer(gb, [tier.egress_gb for tier in tiers]) + np.outer(
        gets, [tier.get_1000 for tier in tiers]
    )
    energy = np.outer(gb, [tier.joules_per_gb * joule for tier in tiers])  # of one pass, read or written

    there = np.zeros((len(items), len(tiers)), bool)
    for row, item in enumerate(items):
        there[row, [column[name] for name in item.on]] = True
    source = np.where(there, fetch + energy, np.inf).argmin(axis=1)[:, None]
    anywhere = there.any(axis=1, keepdims=True)  # a new item is written, not moved
    moving = np.outer(puts, [tier.put_1000 for tier in tiers])
    moving = moving + np.where(anywhere, np.take_along_axis(fetch, source, 1), 0.0)
    moving_energy = energy + np.where(anywhere, np.take_along_axis(energy, source, 1), 0.0)
    watts = np.outer(gb, [tier.watts_per_gb for tier in tiers])
    return Table(
        names=tuple(number),
        nbytes=nbytes,
        copies=np.array([item.min_copies for item in items], np.int64),
        count=np.ones(len(items), np.int64),
        read=read,
        rates=rates,
        storage=np.outer(gb, [tier.storage_gb_month * months for tier in tiers]),
        moving=np.where(there, 0.0, moving),
        holding_energy=watts * (months * HOURS_PER_MONTH / 1000 * kwh_price)
        + np.where(there, 0.0, moving_energy),
        reading=epochs[:, None] * fetch,
        reading_energy=epochs[:, None] * energy,
        tiers=tuple(tiers),
    )


def _demand(
    runs: Sequence[Run], number: dict[str, int], nbytes: Ints
) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """Epochs of each item, [N]; its bytes per second at the start of each run, [N, M]; whether it is read.

    What all runs together ask for can only rise when one starts, so it is enough to look at these instants.
    """
    epochs = np.zeros(len(nbytes))
    starts = sorted({run.start_seconds for run in runs})
    rates = np.zeros((len(nbytes), len(starts)))
    for run in sorted(runs, key=lambda run: run.name):
        rows = [number[name] for name in run.items]
        times = run.passes(int(nbytes[rows].sum()))
        epochs[rows] += times
        for at, start in enumerate(starts):
            if run.start_seconds <= start < run.start_seconds + run.window_seconds:
                rates[rows, at] += times * nbytes[rows] / run.window_seconds
    return epochs, rates, epochs > 0


def _limit(value: float | None) -> float:
    return np.inf if value is None else float(value)
