"""What an ingest asks of its input.

Invariant: a source has a fixed number of rows and a fingerprint; the same fingerprint means the same rows,
so that an ingest that was killed can be finished by another one. Where that is not certain, all rows are
compared with those of a corpus that is there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, TypeAlias

import pyarrow as pa

from tiering.schema import Arrays

Values: TypeAlias = Arrays | pa.Table
"""Rows of all columns: arrays ``[rows, *shape]`` by column, or a table."""


class Part(Protocol):
    """A picklable recipe for some rows, read where it is called."""

    def __call__(self) -> Values:
        """The rows."""
        ...


class Source(ABC):
    """Rows to be ingested."""

    format: ClassVar[str]
    """``zarr`` or ``arrow``: the format that suits it."""
    in_memory: bool = False
    """Whether the rows lie in this process's memory, so that they are written from here."""

    schema: pa.Schema
    rows: int
    row_bytes: float
    """Bytes of a row; a mean where rows differ."""
    fingerprint: str
    """Digest of what identifies the rows."""
    is_certain: ClassVar[bool] = True
    """Whether sources of one fingerprint surely give the same rows."""
    notes: Mapping[str, Any] = {}
    """What the user should know about the input, such as files left out."""

    @abstractmethod
    def part(self, start: int, stop: int) -> Any:
        """Rows [start, stop): the values themselves, a `Part`, or a Dask Delayed that gives the values."""
