"""What a scheduler knows about tiering: last counters of every process, tiers, and moves.

Invariant: nothing that was counted is forgotten when a worker leaves, and whatever arrives from outside is
checked field by field, so that an odd message can neither break the scheduler nor put bulk data here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, TypedDict, cast

from tiering.errors import UsageError
from tiering.monitor.rates import History
from tiering.monitor.stats import (
    CacheCounts,
    LoadedRows,
    MovedBytes,
    MoveProgress,
    Snapshot,
    empty,
    merge,
    trim_moves,
)

MAX_NAME_CHARACTERS = 200
MAX_TIERS = 200


class TierUse(TypedDict):
    """How full a tier is; `capacity_bytes` is None where there is no limit."""

    kind: str
    used_bytes: int
    capacity_bytes: int | None


class MoveState(MoveProgress):
    """Progress of a move, and whether anybody still works on it."""

    state: Literal["running", "done", "stopped"]


class Observed(TypedDict):
    """All that is known at one moment; `workers` counts those that report."""

    counters: Snapshot
    tiers: dict[str, TierUse]
    moves: dict[str, MoveState]
    workers: int


class Board:
    """Gathers snapshots and events; time is passed in."""

    def __init__(self) -> None:
        self.history = History()
        self.workers = 0
        self._folded = empty()
        self._processes: dict[str, Snapshot] = {}
        self._tiers: dict[str, TierUse] = {}
        self._moves: dict[str, MoveProgress] = {}
        self._movers: dict[str, str | None] = {}

    def report(self, snapshot: object) -> None:
        """Take a process's counters, unless newer ones are here.

        Raises:
            UsageError: it is not a snapshot.
        """
        fields = _mapping(snapshot, "snapshot")
        process, sequence = _name(fields.get("process"), "process"), _count(fields, "sequence")
        known = self._processes.get(process)
        if known is None or known["sequence"] < sequence:
            known = check_snapshot(fields)
        self._processes.pop(process, None)
        self._processes[process] = known  # now last in order, as `compact` wants it

    def compact(self, kept: int) -> None:
        """Keep `kept` processes apart, and add those that reported longest ago to one sum."""
        for process in list(self._processes)[: max(0, len(self._processes) - kept)]:
            self._folded = merge([self._folded, self._processes.pop(process)])

    def event(self, message: object) -> None:
        """Take a published event: a dict with key "tiers", "move" or "counters".

        Raises:
            UsageError: it is none of these, or a field is wrong.
        """
        event = _mapping(message, "event")
        if "tiers" in event:
            self._tiers |= check_tiers(event["tiers"])
            for name in list(self._tiers)[:-MAX_TIERS]:
                del self._tiers[name]
        elif "counters" in event:
            self.report(event["counters"])
        elif "move" in event:
            name = _name(event["move"], "move")
            self._moves.pop(name, None)
            self._moves[name] = _progress(event)
            self._movers[name] = _name(event.get("client"), "client")
            trim_moves(self._moves)
            self._movers = {move: self._movers[move] for move in self._moves}
        else:
            raise UsageError(f"event has keys {sorted(event)}", hint='One of "tiers", "move", "counters"')

    def keep_clients(self, present: Collection[str]) -> None:
        """Mark unfinished moves as stopped whose client is not among those `present`."""
        for move, client in self._movers.items():
            if client not in present:
                self._movers[move] = None

    def observed(self) -> Observed:
        """Return the sum over all processes ever seen, with tiers and moves."""
        counters = merge([self._folded, *self._processes.values()])
        moves = {name: _move_state(move, stopped=False) for name, move in counters["moves"].items()}
        for name, move in self._moves.items():
            moves[name] = _move_state(move, stopped=self._movers[name] is None)
        return Observed(counters=counters, tiers=dict(self._tiers), moves=moves, workers=self.workers)


def check_tiers(tiers: object) -> dict[str, TierUse]:
    """Return `{name: TierUse}` with exactly its known fields.

    Raises:
        UsageError: a field is missing, unknown or of the wrong type.
    """
    checked: dict[str, TierUse] = {}
    for name, use in _mapping(tiers, "tiers").items():
        fields = _mapping(use, f"tiers[{name!r}]")
        unknown = sorted(set(fields) - {"kind", "used_bytes", "capacity_bytes"})
        if unknown:
            raise UsageError(
                f"unknown fields {unknown}", tier=name, hint="Use kind, used_bytes and capacity_bytes"
            )
        capacity = fields.get("capacity_bytes")
        checked[_name(name, "tier")] = TierUse(
            kind=_name(fields.get("kind"), "kind"),
            used_bytes=_count(fields, "used_bytes"),
            capacity_bytes=None if capacity is None else _count(fields, "capacity_bytes"),
        )
    return checked


def check_snapshot(snapshot: object) -> Snapshot:
    """Return a copy of a snapshot with exactly its known fields.

    Raises:
        UsageError: it is of another form.
    """
    fields = _mapping(snapshot, "snapshot")
    cache, loaded = _mapping(fields.get("cache"), "cache"), _mapping(fields.get("loaded"), "loaded")
    checked = Snapshot(
        process=_name(fields.get("process"), "process"),
        sequence=_count(fields, "sequence"),
        moved={},
        cache=cast(CacheCounts, {name: _count(cache, name) for name in CacheCounts.__required_keys__}),
        loaded=cast(LoadedRows, {name: _count(loaded, name) for name in LoadedRows.__required_keys__}),
        moves={},
    )
    for tier, moved in _mapping(fields.get("moved"), "moved").items():
        counts = _mapping(moved, "moved")
        checked["moved"][_name(tier, "tier")] = MovedBytes(
            read=_count(counts, "read"), write=_count(counts, "write")
        )
    for name, move in _mapping(fields.get("moves"), "moves").items():
        checked["moves"][_name(name, "move")] = _progress(_mapping(move, "move"))
    return checked


def _move_state(move: MoveProgress, *, stopped: bool) -> MoveState:
    done = move["done_bytes"] >= move["total_bytes"]
    return MoveState(
        done_bytes=move["done_bytes"],
        total_bytes=move["total_bytes"],
        state="done" if done else "stopped" if stopped else "running",
    )


def _progress(fields: Mapping[str, Any]) -> MoveProgress:
    return MoveProgress(done_bytes=_count(fields, "done_bytes"), total_bytes=_count(fields, "total_bytes"))


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise UsageError(f"{what} is a {type(value).__name__}", hint="Pass a dict with str keys")
    return value


def _name(value: object, what: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_CHARACTERS:
        raise UsageError(
            f"{what} is {value!r:.60}", hint=f"Pass a str of 1 to {MAX_NAME_CHARACTERS} characters"
        )
    return value


def _count(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UsageError(f"{name} is {value!r:.60}", hint="Pass an int of zero or more")
    return value
