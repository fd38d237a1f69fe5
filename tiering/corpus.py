"""A corpus: a named version of rows, seen on one tier.

Invariant: a `Corpus` never changes. It stays on its version whatever is published later, and carries no
connection and no secret, so it may travel to workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tiering import catalog
from tiering.arguments import need, whole
from tiering.catalog import Record
from tiering.errors import Conflict, UsageError
from tiering.layout.zarr import ZarrColumn, ZarrLayout
from tiering.manifest import Manifest
from tiering.own import Own
from tiering.schema import columns_of
from tiering.shards import Shards
from tiering.tier import Tier, need_tier, need_tiers

if TYPE_CHECKING:
    from tiering.rows import RowReader


@dataclass(frozen=True, slots=True)
class Corpus:
    """A version of a corpus on a tier. Get one from `open_corpus`, `tiering.ingest` or `Corpus.at`."""

    name: str
    tier: Tier
    record: Record
    contents: Manifest = field(repr=False)
    others: tuple[Tier, ...] = field(default=(), repr=False)
    """Tiers that are known to hold copies too: asked when a copy here turns out bad."""
    _reader: Own[RowReader] = field(default_factory=Own, init=False, repr=False, compare=False)

    @property
    def rows(self) -> int:
        """How many samples."""
        return self.contents.rows

    @property
    def nbytes(self) -> int:
        """Bytes of all shards, as stored."""
        return self.contents.nbytes

    @property
    def version(self) -> int:
        """Number of the version, from 1."""
        return self.record.version

    @property
    def format(self) -> str:
        """``zarr`` or ``arrow``."""
        return self.contents.format

    @property
    def schema(self) -> pa.Schema:
        """Columns and their types; fixed-size lists give the shape of a row."""
        return self.contents.schema

    @property
    def manifest(self) -> pa.Table:
        """The table of shards: ``key, column, shard, rows, nbytes, digest, row_start`` and block indexes."""
        return self.contents.table

    @property
    def columns(self) -> tuple[ZarrColumn, ...]:
        """Columns whose rows have a fixed shape, with dtype and shape; `UsageError` where one has not."""
        return columns_of(self.schema)

    @property
    def layout(self) -> ZarrLayout:
        """Layout of a Zarr corpus."""
        if self.format != "zarr":
            raise UsageError(f"corpus {self.name!r} is in the format {self.format!r}, not 'zarr'")
        return ZarrLayout.from_documents(self.contents.documents)

    @property
    def shard_rows(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Rows of each shard number, int64 ``[shards]``."""
        return _first_per_shard(self.manifest, self.contents.shards)

    def shards(self, column: str = "") -> Shards:
        """The shards of one column of a Zarr corpus, or of an Arrow corpus, in order of their rows."""
        return Shards(self.manifest, self.name, column)

    def key(self, relative: str) -> str:
        """The key below the tier of a key below the corpus."""
        return f"{self.name}/{relative}"

    def at(self, tier: Tier) -> Corpus:
        """The same version on another tier that holds it.

        Raises:
            NotFound: the corpus or version is not there. Conflict: another corpus has its name there.
        """
        found = catalog.record(tier.store, self.name, self.version)
        if found != self.record:
            raise Conflict(
                f"another corpus is called {self.name!r} there", tier=tier.name, hint="Open it by open_corpus"
            )
        return self.with_copy(tier, here=True)

    def with_copy(self, tier: Tier, *, here: bool = False) -> Corpus:
        """This corpus, knowing of a copy on `tier`; with `here`, seen on that tier."""
        tiers = dict.fromkeys((tier, self.tier, *self.others) if here else (self.tier, *self.others, tier))
        first, *others = tiers
        return replace(self, tier=first, others=tuple(others))

    def absent(self) -> list[str]:
        """Keys of shards that are missing here or have another length, by listing; nothing is read."""
        present = {info.key: info.nbytes for info in self.tier.store.list(self.name)}
        keys, sizes = (self.manifest[name].to_pylist() for name in ("key", "nbytes"))
        return [key for key, nbytes in zip(keys, sizes, strict=True) if present.get(self.key(key)) != nbytes]

    def __len__(self) -> int:
        return self.rows

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All rows in stored order, read block by block: ``{column: array [*shape]}``."""
        return iter(self._row_reader())

    def __getitem__(self, rows: Any) -> Any:
        """Rows by number.

        ``corpus[i]`` is one: ``{column: array [*shape]}``. A slice, a list or array of ints or a bool mask
        gives ``{column: array [n, *shape]}``, in the order asked for.

        Reads whole blocks, each once a call, verified; `tiering.rows.RowReader` takes columns and a cache.

        Raises:
            OutOfRange: no such row. UsageError: a column has no fixed shape: use `to_arrow`.
            Corrupt: a block is damaged, and no other tier has a good copy.
            Unavailable, DeadlineExceeded: the tier does not answer.
        """
        return self._row_reader()[rows]

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """The rows of these numbers, each by itself: what the fetcher of a torch DataLoader asks for."""
        return self._row_reader().__getitems__(rows)

    def to_arrow(self, rows: Any = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of a slice, ints or a mask as a table; all rows and columns by default.

        Raises:
            As ``corpus[rows]``, but ragged columns are welcome.
        """
        return self._row_reader(columns).to_arrow(rows)

    def _row_reader(self, columns: Sequence[str] | None = None) -> RowReader:
        from tiering.rows import RowReader

        if columns is not None:
            return RowReader(self, columns)
        return self._reader.get(lambda: RowReader(self))

    def to_dask(self) -> Any:
        """The rows as Dask collections: ``{column: dask.array}`` for Zarr, a Dask DataFrame for Arrow."""
        from tiering.dask_view import arrays, dataframe

        if self.format == "arrow":
            return dataframe(self.tier, self.schema, self.shards())
        layout = self.layout
        return arrays(self.tier, layout, {column.name: self.shards(column.name) for column in layout.columns})


def open_corpus(
    tier: Tier, name: str, version: int | None = None, *, others: tuple[Tier, ...] = ()
) -> Corpus:
    """Open a version of a corpus, the newest by default.

    Args:
        tier: where it is read.
        name: its name.
        version: its number.
        others: tiers that hold copies too, asked when a copy on `tier` turns out bad.

    Raises:
        NotFound: no such corpus or version. Corrupt: its manifest is damaged.
        UnsupportedVersion: a newer engine wrote it.
    """
    need_tier(tier)
    need_tiers(others, "others")
    if version is not None:
        version = whole(version, "version", "version=1")
    record, contents = catalog.load(tier.store, name, version)
    return Corpus(name, tier, record, contents, tuple(others))


def need_corpus(corpus: object) -> None:
    """Raise `UsageError` unless it is a `Corpus`."""
    need(corpus, Corpus, "corpus", "open_corpus(tier, 'web-text')")


def _first_per_shard(table: pa.Table, shards: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    rows = np.zeros(shards, np.int64)
    rows[table["shard"].to_numpy()] = table["rows"].to_numpy()
    return rows
