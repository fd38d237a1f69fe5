"""Rows of a corpus by their numbers: random access, for looking, evaluation and sampling.

Invariant: rows come in the order asked for, repeated where asked for twice; every block that holds one is
read once a call, verified, however many of its rows are asked for.

A row costs its block. Training reads each block once an epoch instead, through `loaders.Loader`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiering.errors import OutOfRange, UsageError
from tiering.own import Own
from tiering.reader import BlockReader
from tiering.schema import to_table

if TYPE_CHECKING:
    from tiering.cache import NodeCache
    from tiering.corpus import Corpus

Row = dict[str, Any]
"""One row: an array ``[*shape]`` by column, a numpy scalar where the shape is ``()``."""
Rows = dict[str, np.ndarray[Any, Any]]
"""Arrays ``[rows, *shape]`` by column."""
Numbers = npt.NDArray[np.int64]

_FAR_SECONDS: Final = 1e-3  # a tier of this latency is asked for many blocks at a time


@dataclass(frozen=True, slots=True)
class _Run:
    """The rows asked for that lie in one block."""

    shard: int
    block: int
    within: Numbers
    """Which rows of the block."""
    at: Numbers
    """Which of the rows asked for they are."""


class RowReader:
    """Rows of some columns of a corpus. Usable from many threads, after a fork, and as a torch dataset.

    `Corpus` has the same methods for all columns, read from its tier.

    Args:
        corpus: the corpus, on the tier to read from.
        columns: names; all by default. Ragged ones come by `to_arrow` alone.
        cache: the node's cache, which takes whole shards; None reads single blocks from the tier.
        threads: the most blocks of a distant tier that are read at the same time.
    """

    def __init__(
        self,
        corpus: Corpus,
        columns: Sequence[str] | None = None,
        cache: NodeCache | None = None,
        threads: int = 8,
    ) -> None:
        if threads < 1:
            raise UsageError(f"threads = {threads} must be at least 1")
        self.corpus = corpus
        self.columns = columns
        self._cache = cache
        self._threads = threads
        self._starts = np.append(0, np.cumsum(corpus.shard_rows))
        self._blocks: Own[BlockReader] = Own()
        self._batches: Own[BlockReader] = Own()

    def __len__(self) -> int:
        return self.corpus.rows

    def __iter__(self) -> Iterator[Row]:
        """All rows in stored order, read block by block."""
        step = self.corpus.contents.block_rows
        for first, last in pairwise(self._starts.tolist()):
            for start in range(first, last, step):
                yield from self._split(self[start : min(start + step, last)])

    def __getitem__(self, rows: Any) -> Any:
        """One row of a number, or arrays of the rows of a slice, numbers or a mask.

        Args:
            rows: an int gives a `Row`; a slice, a list or array of ints ``[n]``, or a bool mask ``[rows]``
                gives `Rows`. Negative numbers count from the end.

        Raises:
            OutOfRange: no such row. UsageError: it is none of these, or a column has no fixed shape.
            Corrupt: a block is damaged, and no other tier has a good copy.
            Unavailable, DeadlineExceeded: the tier does not answer.
        """
        number = None if isinstance(rows, slice | bool | np.bool_) else _index(rows)
        if number is None:
            return self._gather(self._numbers(rows))
        self._check_range(number, number)
        found = self._gather(self._numbers([number]))
        return {name: values[0] for name, values in found.items()}

    def __getitems__(self, rows: Sequence[int]) -> list[Row]:
        """The rows of these numbers, each by itself: what the fetcher of a torch DataLoader asks for."""
        return list(self._split(self._gather(self._numbers(rows))))

    def to_arrow(self, rows: Any = None) -> pa.Table:
        """Rows of any schema as a table.

        Args:
            rows: a slice, a list or array of ints, or a bool mask; all rows by default.

        Raises:
            As ``[]``, but for columns without a fixed shape, which are welcome. UsageError: more than Arrow's
                arrays of text or lists hold.
        """
        schema = self.corpus.schema
        names = list(schema.names) if self.columns is None else list(dict.fromkeys(self.columns))
        self._check_columns(names)
        numbers = self._numbers(slice(None) if rows is None else rows)
        if self.corpus.format == "zarr":
            return to_table(self._gather(numbers))
        schema = pa.schema([schema.field(name) for name in names], schema.metadata)
        reader = self._batches.get(lambda: BlockReader(self.corpus, cache=self._cache, ragged=True))
        runs = list(self._runs(numbers))
        pieces: list[pa.Table] = [None] * len(runs)

        def read(place: int) -> None:
            run = runs[place]
            batch = reader.read_batch(run.shard, run.block).select(names)
            first, count = int(run.within[0]), len(run.within)
            if np.array_equal(run.within, np.arange(first, first + count)):
                pieces[place] = pa.Table.from_batches([batch.slice(first, count)], schema)
            else:
                pieces[place] = pa.Table.from_batches([batch.take(pa.array(run.within))], schema)

        self._each(read, range(len(runs)), reader)
        table = pa.concat_tables([schema.empty_table(), *pieces])
        order = np.concatenate([run.at for run in runs]) if runs else np.arange(0)
        if np.array_equal(order, np.arange(len(order))):
            return table
        try:
            return table.take(pa.array(np.argsort(order)))
        except pa.ArrowInvalid as error:
            raise UsageError(
                f"{len(order)} rows cannot be brought into the order asked for: {error}",
                hint="Ask for fewer rows at a time, or for rows in ascending order",
            ) from error

    def _gather(self, numbers: Numbers) -> Rows:
        reader = self._blocks.get(self._block_reader)
        shapes = {column.name: column for column in reader.columns}
        rows = {name: np.empty((len(numbers), *c.shape), c.dtype) for name, c in shapes.items()}

        def read(run: _Run) -> None:
            slots = {name: np.empty((reader.slot_rows(c), *c.shape), c.dtype) for name, c in shapes.items()}
            reader.read(run.shard, run.block, {name: _bytes(slot) for name, slot in slots.items()})
            for name, slot in slots.items():
                rows[name][run.at] = slot[run.within]

        self._each(read, list(self._runs(numbers)), reader)
        return rows

    def _block_reader(self) -> BlockReader:
        try:
            return BlockReader(self.corpus, self.columns, self._cache)
        except UsageError as error:
            if self.columns is not None or self.corpus.format == "zarr":
                raise
            raise UsageError(
                error.message, hint="Use to_arrow, or RowReader(corpus, columns=...) for the others"
            ) from error

    def _numbers(self, rows: Any) -> Numbers:
        """Row numbers from 0 on: int64 ``[n]``."""
        count = len(self)
        if isinstance(rows, slice):
            try:
                return np.arange(*rows.indices(count))
            except (TypeError, ValueError) as error:
                raise UsageError(f"{rows} gives no rows: {error}", hint="Example: corpus[100:200]") from None
        try:
            array = np.asarray(rows)
        except ValueError:  # lists of unequal length
            array = np.asarray(None)
        if array.dtype == np.bool_ and array.shape == (count,):
            return np.flatnonzero(array)
        if array.ndim == 1 and not array.size:
            return np.arange(0)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise UsageError(
                f"rows are asked for by {array.dtype} of shape {array.shape}",
                hint=f"Give an int, a slice, ints of shape (n,), or a bool mask of shape ({count},)",
            )
        self._check_range(int(array.min()), int(array.max()))
        numbers = array.astype(np.int64)
        numbers[numbers < 0] += count
        return numbers

    def _check_range(self, least: int, most: int) -> None:
        count = len(self)
        if least < -count or most >= count:
            wrong = least if least < -count else most
            raise OutOfRange(f"corpus {self.corpus.name!r} has {count} rows, and no row {wrong}")

    def _runs(self, numbers: Numbers) -> Iterator[_Run]:
        """What to read for these rows, in stored order."""
        step = self.corpus.contents.block_rows
        at = np.argsort(numbers, kind="stable")
        numbers = numbers[at]
        shards = np.searchsorted(self._starts, numbers, side="right") - 1
        blocks, within = np.divmod(numbers - self._starts[shards], step)
        edges = np.flatnonzero((np.diff(shards) != 0) | (np.diff(blocks) != 0)) + 1
        for start, stop in pairwise([0, *edges.tolist(), len(numbers)]):
            if start < stop:
                yield _Run(int(shards[start]), int(blocks[start]), within[start:stop], at[start:stop])

    def _each(self, work: Callable[[Any], None], items: Sequence[Any], reader: BlockReader) -> None:
        """Do `work` for all items; for many at a time where each waits for a distant tier."""
        try:
            if len(items) > 1 and self.corpus.tier.speed.latency_seconds >= _FAR_SECONDS:
                with ThreadPoolExecutor(min(self._threads, len(items)), "tiering-rows") as pool:
                    for _ in pool.map(work, items):
                        pass
            else:
                for item in items:
                    work(item)
        finally:
            if self._cache is None:
                reader.rest()
            else:
                reader.new_epoch()  # what the cache refused now it may take later

    def _split(self, rows: Rows) -> Iterator[Row]:
        return (dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True))

    def _check_columns(self, names: Sequence[str]) -> None:
        known = self.corpus.schema.names
        missing = [name for name in names if name not in known]
        if missing or not names:
            raise UsageError(
                f"corpus {self.corpus.name!r} has no column {missing[0]!r}"
                if missing
                else "columns is empty",
                hint=f"Its columns are {', '.join(known)}",
            )


def _index(rows: Any) -> int | None:
    try:
        return operator.index(rows)
    except TypeError:
        return None


def _bytes(slot: np.ndarray[Any, Any]) -> memoryview:
    return memoryview(slot.reshape(-1).view(np.uint8))
