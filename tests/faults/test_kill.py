"""P3: kill -9 at any instant of ingest and move, start again, and it converges unaided.

At random instants (the clock decides where, a seed decides when), and before every single change of the disk.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tests.faults.cluster_work import NAME, SHARD_SIZE
from tests.faults.terminal import Terminal
from tests.faults.zygote import Zygote
from tiering import ingest, open_corpus, open_tier, plan_move, verify
from tiering.errors import NotFound
from tiering.stores.block import format_volume

ROUNDS = int(os.environ.get("TIERING_KILL_ROUNDS", "40"))
"""Kills of ingest, and as many of move; 100 take about two minutes of processor time."""

STRIDE = int(os.environ.get("TIERING_KILL_STRIDE", "32"))
"""Kill before every change (1), or before every 32nd; at most every other one of an ingest of Arrow."""

COUNT = 48
SMALL_COUNT = 20
FORMS = ("zarr", "arrow")
VOLUME_BYTES = 1 << 20
MAX_STEPS = 600


def undisturbed_seconds(zygote: Zygote, job: str, targets: list[list[Any]]) -> float:
    """Median time of the job over several targets."""
    outcomes = [zygote.run(job, *arguments) for arguments in targets]
    assert not any(outcome.error for outcome in outcomes), outcomes
    return sorted(outcome.seconds for outcome in outcomes)[len(outcomes) // 2]


def began(folder: Path) -> bool:
    return folder.exists() and any(path.is_file() for path in folder.rglob("*"))


def assert_hit_in_the_middle(seen: Counter[str], rounds: int) -> None:
    """Many kills came between the first byte and the publication: else these rounds prove nothing."""
    assert seen.total() == rounds
    if rounds >= 20:
        assert seen["middle"] >= rounds // 10, seen


@pytest.mark.parametrize("form", FORMS)
def test_ingest_killed_at_random_is_finished_by_the_next(zygote: Zygote, tmp_path: Path, form: str) -> None:
    rounds = max(1, ROUNDS // 2)
    dice = random.Random(f"ingest {form}")
    trial = [[str(tmp_path / f"trial{lap}"), form, 1, COUNT] for lap in range(5)]
    seconds = undisturbed_seconds(zygote, "ingest_rows", trial)
    seen: Counter[str] = Counter()
    for lap in range(rounds):
        place = tmp_path / str(lap)
        zygote.run("ingest_rows", str(place), form, 1, COUNT, kill_after_seconds=dice.uniform(0, seconds))
        some = began(place)
        found = zygote.value("ingest_again", str(place), form, 1, COUNT)
        seen["after" if found == "whole" else "middle" if some else "before"] += 1
        shutil.rmtree(place)
    assert_hit_in_the_middle(seen, rounds)


@pytest.fixture(scope="module", params=FORMS)
def source(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory, request: Any) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("source")
    zygote.value("ingest_rows", str(folder), request.param, 1, COUNT)
    return request.param, folder


def test_move_killed_at_random_is_finished_by_the_next(
    zygote: Zygote, tmp_path: Path, source: tuple[str, Path]
) -> None:
    form, folder = source
    rounds = max(1, ROUNDS // 4)
    dice = random.Random(f"move {form}")
    trial = [[str(folder), str(tmp_path / f"trial{lap}")] for lap in range(5)]
    seconds = undisturbed_seconds(zygote, "move_rows", trial)
    seen: Counter[str] = Counter()
    for lap in range(rounds):
        place = tmp_path / str(lap)
        zygote.run("move_rows", str(folder), str(place), kill_after_seconds=dice.uniform(0, seconds))
        some = began(place)
        found = zygote.value("move_again", str(folder), str(place), form, 1, COUNT)
        seen["after" if found == "whole" else "middle" if some else "before"] += 1
        shutil.rmtree(place)
    assert zygote.value("look", str(folder), form, 1, COUNT) == "whole"  # the source has not suffered
    zygote.value("look_plainly", str(folder), form, 1, COUNT)
    assert_hit_in_the_middle(seen, rounds)


def test_demote_killed_at_random_never_loses_the_last_copy(
    zygote: Zygote, tmp_path: Path, source: tuple[str, Path]
) -> None:
    form, folder = source
    rounds = max(1, ROUNDS // 8)
    dice = random.Random(f"demote {form}")

    def fresh(name: str) -> list[str]:
        shutil.copytree(folder, tmp_path / name / "from")
        return [str(tmp_path / name / "from"), str(tmp_path / name / "to")]

    seconds = undisturbed_seconds(zygote, "demote_rows", [fresh(f"trial{lap}") for lap in range(5)])
    seen: Counter[str] = Counter()
    for lap in range(rounds):
        places = fresh(str(lap))
        zygote.run("demote_rows", *places, kill_after_seconds=dice.uniform(0, seconds))
        seen[zygote.value("demote_again", *places, form, 1, COUNT)] += 1
        shutil.rmtree(tmp_path / str(lap))
    assert seen.total() == rounds


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume.img"
    format_volume(path, VOLUME_BYTES)
    return path


def fresh_volume(volume: Path, folder: Path) -> str:
    """A copy of the empty volume in `folder`; gives its url."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("", ".index"):
        shutil.copy(f"{volume}{suffix}", folder / f"volume.img{suffix}")
    return f"block://{folder}/volume.img"


def test_move_to_a_volume_killed_at_random_is_finished_by_the_next(
    zygote: Zygote, tmp_path: Path, source: tuple[str, Path], volume: Path
) -> None:
    form, folder = source
    rounds = max(1, ROUNDS // 8)
    dice = random.Random(f"volume {form}")
    trial = [[str(folder), fresh_volume(volume, tmp_path / f"trial{lap}")] for lap in range(3)]
    seconds = undisturbed_seconds(zygote, "move_rows", trial)
    seen: Counter[str] = Counter()
    for lap in range(rounds):
        place = fresh_volume(volume, tmp_path / str(lap))
        zygote.run("move_rows", str(folder), place, kill_after_seconds=dice.uniform(0, seconds))
        seen[zygote.value("move_again", str(folder), place, form, 1, COUNT)] += 1
        shutil.rmtree(tmp_path / str(lap))
    assert seen.total() == rounds
    if rounds >= 10:
        assert seen["absent"] > rounds // 10, seen


def kill_at_every_change(
    zygote: Zygote, tmp_path: Path, job: str, setup: Any, again: str, *facts: Any, stride: int = 1
) -> Counter[str]:
    """Do `job` once for each change of the disk that it makes, killed just before it; then `again`."""
    seen: Counter[str] = Counter()
    for step in range(0, MAX_STEPS, stride):
        arguments = setup(tmp_path / str(step))
        outcome = zygote.run("kill_at", step, step // stride % 2 == 0, job, *arguments)
        assert outcome.error is None, (step, outcome.error)
        try:
            seen[zygote.value(again, *arguments, *facts)] += 1
        except AssertionError as error:
            raise AssertionError(f"killed before change {step} of {job}: {error}") from error
        shutil.rmtree(tmp_path / str(step))
        if not outcome.killed:
            return seen
    raise AssertionError(f"{job} makes more than {MAX_STEPS} changes")


@pytest.mark.parametrize(("form", "stride"), [("arrow", min(2, STRIDE)), ("zarr", STRIDE)])
def test_ingest_killed_before_every_change_is_finished_by_the_next(
    zygote: Zygote, tmp_path: Path, form: str, stride: int
) -> None:
    facts = (form, 1, SMALL_COUNT)
    seen = kill_at_every_change(
        zygote, tmp_path, "ingest_rows", lambda folder: [str(folder), *facts], "ingest_again", stride=stride
    )
    assert seen["absent"] * stride > 20
    assert seen["whole"] * stride > 5


@pytest.mark.parametrize(
    ("form", "job", "stride"),
    [
        ("arrow", "move_rows", min(4, STRIDE)),
        ("zarr", "move_rows", STRIDE),
        ("arrow", "demote_rows", STRIDE),
        ("arrow", "move_and_release", STRIDE),
    ],
)
def test_move_killed_before_every_change_is_finished_by_the_next(
    zygote: Zygote, tmp_path: Path, form: str, job: str, stride: int
) -> None:
    facts = (form, 1, SMALL_COUNT)
    zygote.value("ingest_rows", str(tmp_path / "source"), *facts)

    def setup(folder: Path) -> list[str]:
        shutil.copytree(tmp_path / "source", folder / "from")
        return [str(folder / "from"), str(folder / "to")]

    again, *last = ("move_again",) if job == "move_rows" else ("demote_again", job)
    seen = kill_at_every_change(zygote, tmp_path, job, setup, again, *facts, *last, stride=stride)
    assert len(seen) > 1, seen


def test_move_to_a_volume_killed_before_every_change_is_finished_by_the_next(
    zygote: Zygote, tmp_path: Path, volume: Path
) -> None:
    facts = ("arrow", 1, SMALL_COUNT)
    source = str(tmp_path / "source")
    zygote.value("ingest_rows", source, *facts)

    def setup(folder: Path) -> list[str]:
        return [source, fresh_volume(volume, folder)]

    seen = kill_at_every_change(zygote, tmp_path, "move_rows", setup, "move_again", *facts, stride=STRIDE)
    assert seen["absent"] * STRIDE > 20
    assert seen["whole"] * STRIDE > 5


@pytest.mark.parametrize("form", FORMS)
def test_killed_ingest_shows_nothing_through_other_content_of_its_name(
    zygote: Zygote, tmp_path: Path, form: str
) -> None:
    dice = random.Random(f"other {form}")
    seen: Counter[str] = Counter()
    for lap in range(8):
        place = str(tmp_path / str(lap))
        zygote.run("kill_at", dice.randrange(60, 120), False, "ingest_rows", place, "zarr", 1, COUNT)
        seen[zygote.value("ingest_other", place, form, 2, SMALL_COUNT)] += 1
    assert seen["absent"] >= 4, seen


CLUSTER_ROUNDS = max(2, ROUNDS // 50)


def write_text(path: Path, nbytes: int) -> Path:
    path.write_bytes(random.Random("text").randbytes(nbytes))
    return path


def cluster_work(text: Path, folder: Path) -> Terminal:
    command = [sys.executable, "-m", "tests.faults.cluster_work", text, folder]
    return Terminal(command, text.parent)


def check_places(text: Path, folder: Path) -> list[str]:
    """Which tiers hold the text now, whole; anything else than whole or absent fails."""
    found = []
    for name in ("lake", "disk"):
        tier = open_tier(folder / name)
        with contextlib.suppress(NotFound):
            corpus = open_corpus(tier, NAME)
            report = verify(corpus)
            assert report.ok
            assert not report.extra
            rows = zarr.open_group(f"{tier.url}/{corpus.name}", mode="r")["tokens"][:]
            assert rows.reshape(-1)[: text.stat().st_size].astype(np.uint8).tobytes() == text.read_bytes()
            found.append(name)
    return found


def test_cluster_killed_at_random_is_finished_by_the_next(tmp_path: Path) -> None:
    dice = random.Random("cluster")
    text = write_text(tmp_path / "text", 1 << 19)
    with cluster_work(text, tmp_path / "trial") as trial:
        trial.wait_for("cluster is up")
        began_at = time.monotonic()
        trial.wait_for("moved")
        seconds = time.monotonic() - began_at
        assert trial.end() == 0, trial
    for lap in range(CLUSTER_ROUNDS):
        with cluster_work(text, tmp_path / "work") as victim:
            victim.wait_for("cluster is up")
            victim.read_for(dice.uniform(0, seconds), "moved")
            if lap % 2:  # the workers find out by themselves that nobody commands them any more
                victim.process.kill()
            else:
                os.killpg(victim.process.pid, signal.SIGKILL)
            assert victim.end() in (-signal.SIGKILL, 0)
        check_places(text, tmp_path / "work")
    lake, disk = open_tier(tmp_path / "work" / "lake"), open_tier(tmp_path / "work" / "disk")
    corpus = ingest(text, lake, NAME, reader="text", shard_size=SHARD_SIZE)
    plan_move(corpus, disk).run()
    assert check_places(text, tmp_path / "work") == ["lake", "disk"]
    assert not list((tmp_path / "work" / "disk").rglob(".tmp-*"))
