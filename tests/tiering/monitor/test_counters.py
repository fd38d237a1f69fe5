"""Counters: each process counts once, whatever happens to its snapshots on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import msgpack  # type: ignore[import-untyped]
import pytest

from tiering.errors import UsageError
from tiering.monitor.stats import KEPT_MOVES, Counters, MoveProgress, empty, merge, trim_moves


def test_snapshot_has_every_counter_and_survives_msgpack() -> None:
    counters = Counters()
    counters.add_moved("lake", "read", 3)
    counters.add_moved("lake", "write", 5)
    counters.add_moved("disk", "write", 7)
    counters.add_cache(hits=11, misses=13, hit_bytes=17, miss_bytes=19)
    counters.add_loaded(31, 37, 41)
    counters.set_move("web to disk", 23, 29)

    snapshot = counters.snapshot()

    assert snapshot["moved"] == {"lake": {"read": 3, "write": 5}, "disk": {"read": 0, "write": 7}}
    assert snapshot["cache"] == {"hits": 11, "misses": 13, "hit_bytes": 17, "miss_bytes": 19}
    assert snapshot["loaded"] == {"rows": 31, "nanoseconds": 37, "stall_nanoseconds": 41}
    assert snapshot["moves"] == {"web to disk": {"done_bytes": 23, "total_bytes": 29}}
    assert msgpack.unpackb(msgpack.packb(snapshot), use_list=False) == snapshot


def test_snapshot_taken_earlier_does_not_change() -> None:
    counters = Counters()
    counters.add_moved("lake", "read", 3)
    before = counters.snapshot()
    counters.add_moved("lake", "read", 5)
    counters.add_cache(hits=1)
    assert before["moved"]["lake"]["read"] == 3
    assert before["cache"]["hits"] == 0


def test_add_moved_from_many_threads_loses_nothing() -> None:
    counters = Counters()

    def add_many() -> None:
        for _ in range(1000):
            counters.add_moved("lake", "read", 3)

    with ThreadPoolExecutor(8) as pool:
        for _ in range(8):
            pool.submit(add_many)
    assert counters.snapshot()["moved"]["lake"]["read"] == 8 * 1000 * 3


def test_merge_of_processes_sums_every_counter() -> None:
    first, second = Counters(), Counters()
    first.add_moved("lake", "read", 3)
    second.add_moved("lake", "read", 5)
    second.add_moved("lake", "write", 7)
    first.add_cache(hits=1, misses=2, hit_bytes=3, miss_bytes=4)
    second.add_cache(hits=10, misses=20, hit_bytes=30, miss_bytes=40)
    first.set_move("m", 3, 5)
    second.set_move("m", 7, 11)

    total = merge([first.snapshot(), second.snapshot()])

    assert total["moved"] == {"lake": {"read": 8, "write": 7}}
    assert total["cache"] == {"hits": 11, "misses": 22, "hit_bytes": 33, "miss_bytes": 44}
    assert total["moves"] == {"m": {"done_bytes": 10, "total_bytes": 16}}


@pytest.mark.parametrize("newest_first", [False, True])
def test_merge_of_one_process_counts_its_newest_snapshot_only(newest_first: bool) -> None:
    counters = Counters()
    counters.add_moved("lake", "read", 3)
    snapshots = [counters.snapshot()]
    counters.add_moved("lake", "read", 5)
    snapshots.append(counters.snapshot())
    total = merge(snapshots[::-1] if newest_first else snapshots)
    assert total["moved"]["lake"]["read"] == 8


def test_merge_of_merged_snapshots_sums_them() -> None:
    counters = Counters()
    counters.add_moved("lake", "read", 3)
    part = merge([counters.snapshot()])
    assert merge([part, part])["moved"]["lake"]["read"] == 6


def test_merge_of_nothing_is_empty() -> None:
    assert merge([]) == empty()


def test_reset_starts_a_new_process() -> None:
    counters = Counters()
    counters.add_moved("lake", "read", 3)
    before = counters.snapshot()
    counters.reset()
    counters.add_moved("lake", "read", 5)
    assert merge([before, counters.snapshot()])["moved"]["lake"]["read"] == 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_counters_after_fork_start_from_zero() -> None:
    program = (
        "import os, sys\n"
        "from tiering.monitor.stats import COUNTERS\n"
        "COUNTERS.add_moved('lake', 'read', 3)\n"
        "process = COUNTERS.snapshot()['process']\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    mine = COUNTERS.snapshot()\n"
        "    os._exit(0 if not mine['moved'] and mine['process'] != process else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_moves_beyond_the_limit_drop_oldest_finished_first() -> None:
    moves = {
        "old, running": MoveProgress(done_bytes=1, total_bytes=2),
        "old, done": MoveProgress(done_bytes=2, total_bytes=2),
        "new, done": MoveProgress(done_bytes=3, total_bytes=3),
        "new, running": MoveProgress(done_bytes=0, total_bytes=3),
    }
    trim_moves(moves, kept=3)
    assert list(moves) == ["old, running", "new, done", "new, running"]
    trim_moves(moves, kept=1)
    assert list(moves) == ["new, running"]


def test_set_move_keeps_a_bounded_number() -> None:
    counters = Counters()
    for number in range(KEPT_MOVES + 5):
        counters.set_move(f"m{number}", number, 1000)
    moves = counters.snapshot()["moves"]
    assert len(moves) == KEPT_MOVES
    assert "m4" not in moves
    assert "m5" in moves


def test_wrong_arguments_are_refused() -> None:
    counters = Counters()
    with pytest.raises(UsageError, match="direction is 'up'"):
        counters.add_moved("lake", "up", 3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="nbytes is -3"):
        counters.add_moved("lake", "read", -3)
    with pytest.raises(UsageError, match="misses is -1"):
        counters.add_cache(misses=-1)
    with pytest.raises(UsageError, match="done_bytes is -1"):
        counters.set_move("m", -1, 3)
    assert counters.snapshot()["moved"] == {}


def test_counters_adopt_what_workers_moved_and_found_but_not_their_rows() -> None:
    worker, own = Counters(), Counters()
    own.add_moved("lake", "read", 5)
    own.add_loaded(7, 10, 3)
    worker.add_moved("lake", "read", 100)
    worker.add_cache(hits=2, hit_bytes=20)
    worker.add_loaded(50, 60, 6)
    older = worker.snapshot()
    worker.add_moved("disk", "write", 9)
    for snapshot in (worker.snapshot(), older):  # of one process the newest counts, whichever comes last
        own.adopt(snapshot)
    found = own.snapshot()
    assert found["moved"] == {"lake": {"read": 105, "write": 0}, "disk": {"read": 0, "write": 9}}
    assert found["cache"]["hit_bytes"] == 20
    assert found["loaded"] == {"rows": 7, "nanoseconds": 10, "stall_nanoseconds": 3}
    assert (found["process"], found["sequence"]) == (own.snapshot()["process"], 1)
    own.reset()
    assert own.snapshot()["moved"] == {}
