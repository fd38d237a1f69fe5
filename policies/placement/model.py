"""What is to be placed, where it may lie and who will read it: items, tiers, runs.

Invariant: every value is checked when it is made. Bytes are whole numbers, GB are 10**9 bytes, money is in
any one currency.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Final

from policies.checks import number, whole

__all__ = ["GB", "HOURS_PER_MONTH", "Item", "Run", "TierSpec", "check_problem"]

GB: Final = 1_000_000_000
HOURS_PER_MONTH: Final = 730

check_number = partial(number, below=1e18)
"""Of what is multiplied and added up: larger ones would drown all others."""


@dataclass(frozen=True, slots=True)
class Item:
    """A shard or a corpus.

    on: names of the tiers that hold it now; empty for what is yet to be written. min_copies: on how many
    distinct tiers it must lie. gets, puts: requests to read and to write the whole of it once.
    """

    name: str
    nbytes: int
    on: tuple[str, ...] = ()
    min_copies: int = 1
    gets: int = 1
    puts: int = 1

    def __post_init__(self) -> None:
        where = f"item {self.name!r}: "
        whole(f"{where}nbytes", self.nbytes, least=1, example=64_000_000)
        whole(f"{where}min_copies", self.min_copies, least=1, example=1)
        whole(f"{where}gets", self.gets, least=0, example=1)
        whole(f"{where}puts", self.puts, least=0, example=1)
        _check_names(f"{where}on", self.on)


@dataclass(frozen=True, slots=True)
class TierSpec:
    """A place: how much it holds, how fast all its readers together are served, and what it costs.

    capacity_bytes, bytes_per_second: None for no limit. egress_gb: for each GB read. get_1000, put_1000: for
    1000 requests. watts_per_gb: drawn by a GB that lies there. joules_per_gb: used by a GB read or written.
    """

    name: str
    capacity_bytes: int | None = None
    bytes_per_second: float | None = None
    storage_gb_month: float = 0.0
    egress_gb: float = 0.0
    get_1000: float = 0.0
    put_1000: float = 0.0
    watts_per_gb: float = 0.0
    joules_per_gb: float = 0.0

    def __post_init__(self) -> None:
        where = f"tier {self.name!r}: "
        if self.capacity_bytes is not None:
            whole(f"{where}capacity_bytes", self.capacity_bytes, least=0, example=2_000_000_000_000)
        for field in fields(self)[2:]:
            value = getattr(self, field.name)
            if value is not None:
                check_number(f"{where}{field.name}", value, example=0.023)


@dataclass(frozen=True, slots=True)
class Run:
    """A training run that reads `items` evenly during `[start_seconds, start_seconds + window_seconds)`.

    Give either `epochs`, how often it reads each item, or `bytes_per_second`, what it reads of all of them
    together. Each item is read at a rate in proportion to its bytes, from one of its copies.
    """

    name: str
    items: tuple[str, ...]
    window_seconds: float
    epochs: float | None = None
    bytes_per_second: float | None = None
    start_seconds: float = 0.0

    def __post_init__(self) -> None:
        where = f"run {self.name!r}: "
        _check_names(f"{where}items", self.items)
        if not self.items:
            raise ValueError(f"{where}items is empty; e.g. items=('web-text',)")
        check_number(f"{where}window_seconds", self.window_seconds, above=0, example=86_400)
        check_number(f"{where}start_seconds", self.start_seconds, example=0.0)
        given = [name for name in ("epochs", "bytes_per_second") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"{where}give either epochs or bytes_per_second, not {' and '.join(given) or 'neither'};"
                " e.g. epochs=3"
            )
        check_number(f"{where}{given[0]}", getattr(self, given[0]), above=0, example=3)

    def passes(self, total_bytes: int) -> float:
        """How often it reads each item, where all its items together have `total_bytes`."""
        if self.epochs is not None:
            return self.epochs
        return (self.bytes_per_second or 0.0) * self.window_seconds / total_bytes


def check_problem(items: Sequence[Item], tiers: Sequence[TierSpec], runs: Sequence[Run]) -> None:
    """Raise ValueError for names that stand twice, and for those of tiers and items that nobody gave."""
    if not tiers:
        raise ValueError("tiers is empty; e.g. tiers=[TierSpec('lake', storage_gb_month=0.023)]")
    for what, named in (("items", items), ("tiers", tiers), ("runs", runs)):
        _check_names(what, [one.name for one in named])
    _check_known("on", {name for item in items for name in item.on}, {tier.name for tier in tiers}, "tiers")
    _check_known(
        "items of runs", {name for run in runs for name in run.items}, {i.name for i in items}, "items"
    )


def _check_names(name: str, values: Sequence[str]) -> None:
    if isinstance(values, str) or not all(isinstance(value, str) and value for value in values):
        raise ValueError(f"{name} must be a tuple of names, not {values!r}; e.g. ('lake', 'disk')")
    if len(set(values)) < len(values):
        twice = next(value for number, value in enumerate(values) if value in values[:number])
        raise ValueError(f"{name} has {twice!r} twice; e.g. {twice!r} and '{twice}-2'")


def _check_known(name: str, used: set[str], known: set[str], where: str) -> None:
    unknown = sorted(used - known)
    if unknown:
        example = f"; e.g. {min(known)!r}" if known else ""
        raise ValueError(f"{name} has {unknown[0]!r}, which {where} does not{example}")
