"""P3, P4, P6: what the machine around the engine may do: run out, turn read-only, turn its clock, forget."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.faults.zygote import Zygote
from tests.tiering.cache_tools import NBYTES, name_of, shard
from tiering import NodeCache
from tiering.cache import lock

COUNT = 20
FACTS: list[Any] = ["arrow", 1, COUNT]
ZARR: list[Any] = ["zarr", 1, COUNT]


@pytest.fixture
def source(zygote: Zygote, tmp_path: Path) -> str:
    zygote.value("ingest_rows", str(tmp_path / "source"), *FACTS)
    return str(tmp_path / "source")


@pytest.fixture
def disk(zygote: Zygote, tmp_path: Path) -> str:
    """Where children mount a disk that they alone see."""
    if not zygote.value("can_mount", str(tmp_path / "probe")):
        pytest.skip("this user may not mount in a namespace of its own")
    return str(tmp_path / "disk")


def test_disk_that_fills_up_in_mid_move_is_a_typed_error_and_the_next_run_finishes(
    zygote: Zygote, tmp_path: Path, source: str, disk: str
) -> None:
    told: Counter[str] = Counter()
    for pages in range(2, 26, 3):
        told[zygote.value("move_to_a_full_disk", source, f"{disk}{pages}", f"{pages * 4}k", *FACTS)] += 1
    assert set(told) == {"CapacityExceeded", ""}, told
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


def test_disk_that_turns_read_only_in_mid_move_is_a_typed_error_and_the_next_run_finishes(
    zygote: Zygote, source: str, disk: str
) -> None:
    seen: Counter[str] = Counter()
    for step in range(1, 30):
        job = ["move_to_a_disk_that_becomes_read_only", source, f"{disk}{step}", step, *FACTS]
        told, found, hit = zygote.value(*job)
        assert told in ("", "UsageError")
        assert found == "whole" or told == "UsageError"
        seen[found if hit else "unharmed"] += 1
        if not hit:
            break
    assert set(seen) >= {"absent", "unharmed"}, seen


@pytest.mark.parametrize("spare", range(0, 18, 3))
def test_loader_without_file_descriptors_is_a_typed_error_or_right(
    zygote: Zygote, tmp_path: Path, spare: int
) -> None:
    zygote.value("ingest_rows", str(tmp_path / "t"), *ZARR)
    told = zygote.value("with_descriptors", spare, "look", str(tmp_path / "t"), *ZARR)
    assert told in ("", "Unavailable")
    assert told or spare


def test_process_without_memory_ends_with_an_error_and_the_next_finishes(
    zygote: Zygote, tmp_path: Path
) -> None:
    told: Counter[str] = Counter()
    for number, spare_mib in enumerate([0, 1, 2, 4, 8, 16, 64, 1024]):
        place = str(tmp_path / str(number))
        error = zygote.value("with_memory", spare_mib << 20, "ingest_rows", place, *ZARR)
        told[error] += 1
        assert zygote.value("ingest_again", place, *ZARR) == ("absent" if error else "whole")
    assert told[""] > 0
    assert set(told) <= {"", "MemoryError", "Unavailable", "CapacityExceeded"}, told


def test_clock_that_jumps_changes_nothing(zygote: Zygote, tmp_path: Path) -> None:
    for seed in range(3):
        one, other = str(tmp_path / f"{seed}-one"), str(tmp_path / f"{seed}-other")
        jobs: list[list[Any]] = [
            ["kill_at", 40 + 10 * seed, False, "ingest_rows", one, *ZARR],
            ["ingest_again", one, *ZARR],
            ["move_rows", one, other],
            ["look", other, *ZARR],
            ["hold_name", other],
            ["release_rows", one, other],
            ["look_plainly", other, *ZARR],
        ]
        for number, job in enumerate(jobs):
            outcome = zygote.run("with_clock", 100 * seed + number, *job)
            assert outcome.error is None, (job, outcome.error)
        assert zygote.value("look", one, *ZARR) == "absent"


def test_clock_that_jumps_ends_no_wait_for_a_fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, waited, fetched = NodeCache(tmp_path / "cache", 10 * NBYTES), threading.Event(), list[int]()
    years = iter(range(1, 1_000_000))
    turned = {**vars(time), "time": lambda: time.time() + 3e7 * next(years)}
    tried, try_lock = list[bool](), lock.try_lock

    def counted(fd: int) -> bool:
        tried.append(got := try_lock(fd))
        if tried.count(False) >= 3:
            waited.set()
        return got

    def fetch() -> list[bytes]:
        fetched.append(1)
        assert waited.wait(60)  # somebody else has waited for this a while
        return [shard(1)]

    monkeypatch.setattr(lock, "try_lock", counted)
    for module in [module for name, module in sys.modules.items() if name.startswith("tiering.")]:
        if vars(module).get("time") is time:  # the clock of all others, Dask's too, stays
            monkeypatch.setattr(module, "time", SimpleNamespace(**turned))
    got: list[bool] = []
    threads = [
        threading.Thread(target=lambda: got.append(nodes.get(name_of(1), NBYTES, fetch))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (got, fetched) == ([True, True], [1])
    nodes.close()


def test_what_was_ingested_or_begun_is_read_from_the_disk_itself(zygote: Zygote, tmp_path: Path) -> None:
    place = str(tmp_path / "place")
    zygote.run("kill_at", 60, True, "ingest_rows", place, *ZARR)
    zygote.value("forget_pages", place)
    assert zygote.value("ingest_again", place, *ZARR) == "absent"
    before, left = zygote.value("forget_pages", place)
    if left == before:
        pytest.skip("this file system is memory itself")
    assert left < before // 4
    assert zygote.value("look", place, *ZARR) == "whole"
    zygote.value("look_plainly", place, *ZARR)
