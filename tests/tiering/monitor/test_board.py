"""The board: nothing counted is forgotten, nothing odd gets in."""

from __future__ import annotations

from typing import Any

import pytest

from tiering.errors import UsageError
from tiering.monitor.board import MAX_TIERS, Board
from tiering.monitor.stats import Counters


def counted(nbytes: int) -> Counters:
    counters = Counters()
    counters.add_moved("lake", "read", nbytes)
    return counters


def test_report_of_several_processes_sums() -> None:
    board = Board()
    for nbytes in (3, 5, 7):
        board.report(counted(nbytes).snapshot())
    assert board.observed()["counters"]["moved"]["lake"]["read"] == 15


def test_report_out_of_order_keeps_the_newest() -> None:
    board, counters = Board(), counted(3)
    old = counters.snapshot()
    counters.add_moved("lake", "read", 5)
    board.report(counters.snapshot())
    board.report(old)
    assert board.observed()["counters"]["moved"]["lake"]["read"] == 8


def test_compact_keeps_the_sum_and_the_processes_that_reported_last() -> None:
    board = Board()
    processes = [counted(nbytes) for nbytes in (3, 5, 7)]
    for counters in processes:
        board.report(counters.snapshot())
    board.report(processes[0].snapshot())
    board.compact(kept=1)
    assert board.observed()["counters"]["moved"]["lake"]["read"] == 15
    processes[0].add_moved("lake", "read", 11)
    board.report(processes[0].snapshot())
    assert board.observed()["counters"]["moved"]["lake"]["read"] == 26


def test_wrong_report_leaves_the_last_good_one() -> None:
    board, counters = Board(), counted(3)
    board.report(counters.snapshot())
    broken: Any = counters.snapshot()
    broken["moved"] = {"lake": {"read": -1, "write": 0}}
    with pytest.raises(UsageError, match="read is -1"):
        board.report(broken)
    assert board.observed()["counters"]["moved"]["lake"]["read"] == 3


def test_unknown_fields_of_a_snapshot_are_not_kept() -> None:
    board = Board()
    snapshot: Any = counted(3).snapshot()
    snapshot["secret"] = "canary"
    snapshot["cache"]["secret"] = "canary"
    board.event({"counters": snapshot})
    assert "canary" not in str(board.observed())
    assert "canary" not in str(vars(board))


def test_tiers_are_replaced_by_name() -> None:
    board = Board()
    board.event({"tiers": {"lake": {"kind": "object", "used_bytes": 3, "capacity_bytes": None}}})
    board.event({"tiers": {"disk": {"kind": "file", "used_bytes": 5, "capacity_bytes": 11}}})
    board.event({"tiers": {"disk": {"kind": "file", "used_bytes": 7, "capacity_bytes": 11}}})
    assert board.observed()["tiers"] == {
        "lake": {"kind": "object", "used_bytes": 3, "capacity_bytes": None},
        "disk": {"kind": "file", "used_bytes": 7, "capacity_bytes": 11},
    }


def test_tiers_are_bounded() -> None:
    board = Board()
    for number in range(MAX_TIERS + 3):
        board.event({"tiers": {f"t{number}": {"kind": "file", "used_bytes": 0}}})
    assert len(board.observed()["tiers"]) == MAX_TIERS


def test_moves_are_running_done_or_stopped() -> None:
    board = Board()
    for name, done_bytes, client in (("a", 3, "one"), ("b", 5, "two"), ("c", 11, "two")):
        board.event({"move": name, "done_bytes": done_bytes, "total_bytes": 11, "client": client})
    board.keep_clients({"one"})
    states = {name: move["state"] for name, move in board.observed()["moves"].items()}
    assert states == {"a": "running", "b": "stopped", "c": "done"}
    board.event({"move": "b", "done_bytes": 7, "total_bytes": 11, "client": "three"})
    assert board.observed()["moves"]["b"] == {"done_bytes": 7, "total_bytes": 11, "state": "running"}


def test_moves_counted_in_processes_show_unless_published() -> None:
    board, counters = Board(), Counters()
    counters.set_move("a", 3, 11)
    counters.set_move("b", 5, 5)
    board.report(counters.snapshot())
    board.event({"move": "a", "done_bytes": 7, "total_bytes": 13, "client": "one"})
    moves = board.observed()["moves"]
    assert moves["a"] == {"done_bytes": 7, "total_bytes": 13, "state": "running"}
    assert moves["b"]["state"] == "done"


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (None, "event is a NoneType"),
        ({1: 2}, "event is a dict"),
        ({"nonsense": 1}, r"event has keys \['nonsense'\]"),
        ({"tiers": ["lake"]}, "tiers is a list"),
        ({"tiers": {"lake": {"kind": "object", "used_bytes": -1}}}, "used_bytes is -1"),
        ({"tiers": {"lake": {"kind": "object", "used_bytes": True}}}, "used_bytes is True"),
        ({"tiers": {"lake": {"kind": "object", "used_bytes": 1, "key": "x"}}}, r"unknown fields \['key'\]"),
        ({"tiers": {"lake": {"used_bytes": 1}}}, "kind is None"),
        ({"tiers": {"x" * 201: {"kind": "object", "used_bytes": 1}}}, "tier is 'xxx"),
        ({"move": "", "done_bytes": 1, "total_bytes": 1, "client": "c"}, "move is ''"),
        ({"move": "m", "done_bytes": 1.5, "total_bytes": 1, "client": "c"}, "done_bytes is 1.5"),
        ({"counters": {"process": "p", "sequence": 1}}, "cache is a NoneType"),
    ],
)
def test_wrong_event_is_refused_and_changes_nothing(event: object, message: str) -> None:
    board = Board()
    with pytest.raises(UsageError, match=message):
        board.event(event)
    assert board.observed() == Board().observed()
