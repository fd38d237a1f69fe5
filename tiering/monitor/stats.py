"""Process-wide counters: bytes moved per tier, cache hits and misses, rows of loaders, progress of moves.

Invariant: counters only grow, and each snapshot carries its process's token and a sequence number. So
`merge` counts every process once, however many workers share the process or repeat a heartbeat.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterable
from typing import Literal, TypedDict

from tiering.errors import UsageError

Direction = Literal["read", "write"]

KEPT_MOVES = 32
"""Moves remembered; beyond it the oldest finished ones are dropped first."""


class MovedBytes(TypedDict):
    """Bytes read from and written to one tier since the process started."""

    read: int
    write: int


class CacheCounts(TypedDict):
    """Requests to the node cache, and their bytes, since the process started."""

    hits: int
    misses: int
    hit_bytes: int
    miss_bytes: int


class LoadedRows(TypedDict):
    """What loops over loaders got since the process started, their time, and what of it was waiting."""

    rows: int
    nanoseconds: int
    stall_nanoseconds: int


class MoveProgress(TypedDict):
    """How far a named move has come."""

    done_bytes: int
    total_bytes: int


class Snapshot(TypedDict):
    """Counters at one moment: nested dicts of str and int, which msgpack carries unchanged.

    `process` is the token of the process, empty for a merged snapshot; `sequence` grows with each snapshot
    of one process.
    """

    process: str
    sequence: int
    moved: dict[str, MovedBytes]
    cache: CacheCounts
    loaded: LoadedRows
    moves: dict[str, MoveProgress]


def empty() -> Snapshot:
    """Return a snapshot of nothing: all counters zero, of no process."""
    return Snapshot(
        process="",
        sequence=0,
        moved={},
        cache=CacheCounts(hits=0, misses=0, hit_bytes=0, miss_bytes=0),
        loaded=LoadedRows(rows=0, nanoseconds=0, stall_nanoseconds=0),
        moves={},
    )


class Counters:
    """Thread-safe counters of one process."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start again from zero as a new process: used in tests, and in the child after a fork."""
        self._lock = threading.Lock()
        self._now = empty()
        self._now["process"] = uuid.uuid4().hex
        self._adopted: dict[str, Snapshot] = {}

    def add_moved(self, tier: str, direction: Direction, nbytes: int) -> None:
        """Count `nbytes` read from, or written to, the tier of that name.

        Raises:
            UsageError: `direction` is neither "read" nor "write", or `nbytes` is negative.
        """
        if direction not in ("read", "write"):
            raise UsageError(f"direction is {direction!r}", tier=tier, hint='Use "read" or "write"')
        _check_counts(nbytes=nbytes)
        with self._lock:
            moved = self._now["moved"].get(tier)
            if moved is None:
                moved = self._now["moved"][tier] = MovedBytes(read=0, write=0)
            moved[direction] += nbytes

    def add_cache(self, *, hits: int = 0, misses: int = 0, hit_bytes: int = 0, miss_bytes: int = 0) -> None:
        """Count requests that the node cache answered (hits) or passed on (misses), and their bytes.

        Raises:
            UsageError: a number is negative.
        """
        _check_counts(hits=hits, misses=misses, hit_bytes=hit_bytes, miss_bytes=miss_bytes)
        with self._lock:
            cache = self._now["cache"]
            cache["hits"] += hits
            cache["misses"] += misses
            cache["hit_bytes"] += hit_bytes
            cache["miss_bytes"] += miss_bytes

    def add_loaded(self, rows: int, nanoseconds: int, stall_nanoseconds: int) -> None:
        """Count a batch that a loader handed out, the time since the one before, and what of it was waiting.

        Raises:
            UsageError: a number is negative.
        """
        _check_counts(rows=rows, nanoseconds=nanoseconds, stall_nanoseconds=stall_nanoseconds)
        with self._lock:
            loaded = self._now["loaded"]
            loaded["rows"] += rows
            loaded["nanoseconds"] += nanoseconds
            loaded["stall_nanoseconds"] += stall_nanoseconds

    def set_move(self, name: str, done_bytes: int, total_bytes: int) -> None:
        """Say how far this process is with its part of the move of that name.

        Raises:
            UsageError: a number is negative.
        """
        _check_counts(done_bytes=done_bytes, total_bytes=total_bytes)
        with self._lock:
            moves = self._now["moves"]
            moves.pop(name, None)
            moves[name] = MoveProgress(done_bytes=done_bytes, total_bytes=total_bytes)
            trim_moves(moves)

    def adopt(self, snapshot: Snapshot) -> None:
        """Count from now on what a process that works for this one has moved, and found in caches.

        Of one process the newest snapshot counts. Its rows do not: whoever hands them out counts them.
        """
        with self._lock:
            before = self._adopted.get(snapshot["process"])
            if before is None or before["sequence"] < snapshot["sequence"]:
                self._adopted[snapshot["process"]] = {**snapshot, "loaded": empty()["loaded"]}

    def snapshot(self) -> Snapshot:
        """Return a copy of all counters, numbered one higher than the snapshot before."""
        with self._lock:
            self._now["sequence"] += 1
            copy = merge([self._now, *self._adopted.values()])
            copy["process"], copy["sequence"] = self._now["process"], self._now["sequence"]
            return copy


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Return the sum over processes, as a new snapshot of no process.

    Of several snapshots with one process token only the one with the highest sequence number counts;
    snapshots without a token (merged ones) all count. Parts of a move with one name are added up.
    """
    newest: dict[str, Snapshot] = {}
    counted: list[Snapshot] = []
    for snapshot in snapshots:
        process = snapshot["process"]
        if not process:
            counted.append(snapshot)
        elif process not in newest or newest[process]["sequence"] < snapshot["sequence"]:
            newest[process] = snapshot
    total = empty()
    for snapshot in (*counted, *newest.values()):
        for tier, moved in snapshot["moved"].items():
            tier_total = total["moved"].setdefault(tier, MovedBytes(read=0, write=0))
            tier_total["read"] += moved["read"]
            tier_total["write"] += moved["write"]
        cache, cache_total = snapshot["cache"], total["cache"]
        cache_total["hits"] += cache["hits"]
        cache_total["misses"] += cache["misses"]
        cache_total["hit_bytes"] += cache["hit_bytes"]
        cache_total["miss_bytes"] += cache["miss_bytes"]
        loaded, loaded_total = snapshot["loaded"], total["loaded"]
        loaded_total["rows"] += loaded["rows"]
        loaded_total["nanoseconds"] += loaded["nanoseconds"]
        loaded_total["stall_nanoseconds"] += loaded["stall_nanoseconds"]
        for name, move in snapshot["moves"].items():
            move_total = total["moves"].setdefault(name, MoveProgress(done_bytes=0, total_bytes=0))
            move_total["done_bytes"] += move["done_bytes"]
            move_total["total_bytes"] += move["total_bytes"]
    return total


def trim_moves(moves: dict[str, MoveProgress], kept: int = KEPT_MOVES) -> None:
    """Drop moves until `kept` are left, in place: finished ones first, then the least recently updated.

    `moves` is in order of last update, as `dict` keeps it when a key is removed and set again.
    """
    finished_first = sorted(moves, key=lambda name: moves[name]["done_bytes"] < moves[name]["total_bytes"])
    for name in finished_first[: max(0, len(moves) - kept)]:
        del moves[name]


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 0:
            raise UsageError(f"{name} is {count}", hint="Counters only grow: pass zero or more")


COUNTERS = Counters()
"""The counters of this process. One instance, because the bytes that a process moved are one number."""

os.register_at_fork(after_in_child=COUNTERS.reset)
