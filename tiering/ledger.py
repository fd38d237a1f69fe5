"""How much room an ingest asks for while it goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dask.delayed import Delayed

from tiering.errors import CapacityExceeded
from tiering.room import Hold

if TYPE_CHECKING:
    from tiering.ingest import Target


class Ledger:
    """Bytes that an ingest has written and may write.

    What compression saves is not known before. So a compressed corpus asks for more room as it goes on; a
    shard in flight is counted as if it could not be compressed.
    """

    def __init__(self, target: Target, row_bytes: float) -> None:
        documents = target.layout.documents() if target.layout else {}
        compressed = target.layout is not None and target.layout.codec is not None
        self.shard_bytes = int(min(target.shard_rows, target.rows) * row_bytes)
        self._documents_bytes = sum(map(len, documents.values()))
        self._asked_bytes = target.stored_bytes(row_bytes)
        self._bound_bytes = 0  # what a shard in flight may take, where that was not asked for at first
        if compressed:
            self._bound_bytes = -(-self._asked_bytes // target.shards) * 65 // 64  # noise grows a little
            self._asked_bytes = self._bound_bytes
        self._stored_bytes = 0
        self._flying = 0
        self._next: Delayed | None = None

    def final(self, present: Mapping[str, int]) -> int:
        """What the folder will hold. What is there counts as ours: it is, or is swept before publication."""
        return max(sum(present.values()), self._asked_bytes + self._documents_bytes)

    def admitted(self, tasks: Iterator[Delayed], hold: Hold) -> Iterator[Delayed]:
        """The tasks as long as there is room for what they may write; the rest when those have ended.

        Raises:
            CapacityExceeded: there is no room for a single one.
        """
        while True:
            if self._next is None:
                self._next = next(tasks, None)
            if (task := self._next) is None:
                return
            try:
                self._ask(hold)
            except CapacityExceeded:
                if not self._flying:
                    raise
                return
            self._flying += 1
            self._next = None
            yield task

    def wrote(self, entries: list[dict[str, Any]]) -> None:
        """Count what one task wrote."""
        self._flying -= 1
        self._stored_bytes += sum(entry["nbytes"] for entry in entries)

    def finish(self, manifest_bytes: int, hold: Hold) -> None:
        """Ask for the room of the manifest, now that everything is known."""
        self._asked_bytes = self._stored_bytes + manifest_bytes
        hold.grow(self.final)

    def _ask(self, hold: Hold) -> None:
        """Ask for the room of one more shard in flight, and of as much again where there is so much."""
        before_bytes = self._asked_bytes
        needed_bytes = self._stored_bytes + (self._flying + 1) * self._bound_bytes
        if needed_bytes <= before_bytes:
            return
        try:
            self._asked_bytes = max(needed_bytes, 2 * before_bytes)
            hold.grow(self.final)
        except CapacityExceeded:
            try:
                self._asked_bytes = needed_bytes
                hold.grow(self.final)
            except CapacityExceeded:
                self._asked_bytes = before_bytes
                raise
