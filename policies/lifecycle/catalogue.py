"""What is stored: one row an item (a shard, or a version of a corpus), one column a fact.

Invariant: all columns are as long as `names`; a fact that nobody recorded is None, never a guess.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["Bools", "Catalogue"]

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Catalogue:
    """Items [N] on tiers [T].

    present: whether the item has a copy on the tier, bool [N, T]. nbytes: int64 [N]. created_seconds,
    last_access_seconds: float64 [N], on the clock that `now_seconds` is of. accesses: int64 [N].
    versions: int64 [N]; items of one name are versions of it, the largest the newest; None where each name is
    an item. tags: who has each tag, bool [N]. capacity_bytes: of tiers where it is known.
    """

    names: Sequence[str]
    tiers: Sequence[str]
    present: Bools
    nbytes: npt.NDArray[np.int64]
    created_seconds: npt.NDArray[np.float64] | None = None
    last_access_seconds: npt.NDArray[np.float64] | None = None
    accesses: npt.NDArray[np.int64] | None = None
    versions: npt.NDArray[np.int64] | None = None
    tags: Mapping[str, Bools] | None = None
    capacity_bytes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.names)
        if self.present.shape != (count, len(self.tiers)) or self.present.dtype != np.bool_:
            raise ValueError(
                f"present must be bool [{count}, {len(self.tiers)}], an item a row and a tier a column, not"
                f" {self.present.dtype} {list(self.present.shape)}; e.g. numpy.zeros(({count}, 2), bool)"
            )
        columns = {
            name: getattr(self, name)
            for name in ("nbytes", "created_seconds", "last_access_seconds", "accesses", "versions")
        }
        columns |= {f"tags[{tag!r}]": column for tag, column in (self.tags or {}).items()}
        for name, column in columns.items():
            if column is not None and column.shape != (count,):
                raise ValueError(
                    f"{name} must have one value for each of the {count} names, not {list(column.shape)};"
                    f" e.g. numpy.zeros({count})"
                )

    def row(self, name: str, version: int | None = None) -> int:
        """The row of an item; of the newest version without a number. Raises ValueError for one not here."""
        rows = [row for row, other in enumerate(self.names) if other == name]
        if self.versions is not None:
            rows.sort(key=lambda row: int(self.versions[row]))  # type: ignore[index]
            if version is not None:
                rows = [row for row in rows if self.versions[row] == version]
        if not rows:
            what = repr(name) if version is None else f"{name!r} version {version}"
            raise ValueError(f"{what} is not in the catalogue; e.g. {next(iter(self.names), 'nothing is')!r}")
        return rows[-1]

    def label(self, row: int) -> str:
        """How messages name an item."""
        return self.names[row] if self.versions is None else f"{self.names[row]} v{self.versions[row]}"
