"""What a loader is to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers.rows import Rows

Epochs = Callable[[], Iterator[Any]]
"""Begins an epoch of shuffled batches, arrays or tensors ``[batch, ...]``."""


@dataclass(frozen=True)
class Task:
    """Rows to be read in shuffled batches.

    Attributes:
        rows: what was given.
        folder: for the rows in the loader's own format.
        batch: rows of a batch.
        shard_bytes: of the files in `folder`, about, where its format has several.
        variant: one of the module's VARIANTS.
        uploaded: `folder` is, or will be, read from an object store.
        remote: the URL of its copy there; None reads the folder.
        endpoint: of that store.
        cache: the folder that keeps what was fetched from there.
        cache_bytes: the most that it may hold.
    """

    rows: Rows
    folder: Path
    batch: int
    shard_bytes: int
    variant: str = "0 workers"
    uploaded: bool = False
    remote: str | None = None
    endpoint: str | None = None
    cache: Path | None = None
    cache_bytes: int = 0

    @property
    def workers(self) -> int:
        """How many worker processes, where the variant says so."""
        return int(self.variant.split()[0])
