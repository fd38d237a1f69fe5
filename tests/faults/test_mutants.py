"""The harnesses of this folder find the loss of any guard: each is run with that guard taken away.

And without a mutant each is silent: what it finds is the mutant and nothing else.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.mutants import MUTANTS
from tests.faults.power import POLICIES
from tests.faults.zygote import Zygote

COUNT = 20
ARROW: list[Any] = ["arrow", 1, COUNT]
ZARR: list[Any] = ["zarr", 1, COUNT]
MAX_STEPS = 400

Harness = Callable[[Zygote, Path, str | None], str | None]


def run(zygote: Zygote, mutant: str | None, job: str, *arguments: Any) -> str | None:
    """Do a job with this guard taken away; what it found, or None."""
    return zygote.run("mutated", mutant, job, *arguments).error


def power(zygote: Zygote, folder: Path, mutant: str | None) -> str | None:
    """Cut the power after every ninth change of an ingest, and after the last."""
    (folder / "disk").mkdir()
    job = ["ingest_again", "ingest_rows", [], "/place", *ARROW]
    outcome = zygote.run("mutated", mutant, "cut_power", str(folder), 9, *job)
    kept = (outcome.value or [])[-len(POLICIES) :]
    return outcome.error or (None if set(kept) == {"whole"} else f"after the last change: {kept}")


def kills(zygote: Zygote, folder: Path, mutant: str | None, job: str, again: str, *facts: Any) -> str | None:
    """Kill a move before every sixth change of the disk."""
    zygote.value("ingest_rows", str(folder / "source"), *ARROW)
    for step in range(1, MAX_STEPS, 6):
        place = folder / str(step)
        shutil.copytree(folder / "source", place / "from")
        arguments = [str(place / "from"), str(place / "to")]
        outcome = zygote.run("mutated", mutant, "kill_at", step, True, job, *arguments)
        # What is left is looked at by the engine as it is.
        found = outcome.error or zygote.run(again, *arguments, *facts).error
        shutil.rmtree(place)
        if found or not outcome.killed:
            return found
    raise AssertionError(f"{job} makes more than {MAX_STEPS} changes")


def kills_of_move(zygote: Zygote, folder: Path, mutant: str | None) -> str | None:
    return kills(zygote, folder, mutant, "move_rows", "move_again", *ARROW)


def kills_of_demote(zygote: Zygote, folder: Path, mutant: str | None) -> str | None:
    return kills(zygote, folder, mutant, "move_and_release", "demote_again", *ARROW, "move_and_release")


def kills_of_write(zygote: Zygote, folder: Path, mutant: str | None) -> str | None:
    for step in range(20):
        place = str(folder / str(step))
        zygote.value("lay_old", place)
        outcome = zygote.run("mutated", mutant, "kill_at", step, True, "replace_object", place)
        found = outcome.error or zygote.run("object_again", place, "replace_object").error
        if found or not outcome.killed:
            return found
    raise AssertionError("a write makes more than 20 changes")


def lying_disk(zygote: Zygote, folder: Path, mutant: str | None) -> str | None:
    return run(zygote, mutant, "ingest_on_a_lying_disk", str(folder / "place"), *ZARR)


def flips(zygote: Zygote, folder: Path, mutant: str | None) -> str | None:
    zygote.value("ingest_rows", str(folder), *ZARR)
    return run(zygote, mutant, "read_flipped", str(folder), *ZARR)


def rival(zygote: Zygote, folder: Path, mutant: str | None) -> str | None:
    return run(zygote, mutant, "ingest_beside_another", str(folder), *ARROW)


def bad_proof(zygote: Zygote, folder: Path, mutant: str | None) -> str | None:
    places = [str(folder / "one"), str(folder / "other")]
    zygote.value("ingest_rows", places[0], *ARROW)
    zygote.value("move_rows", *places)
    return run(zygote, mutant, "release_with_a_bad_copy", *places, *ARROW)


FINDS: dict[str, tuple[Harness, str]] = {
    "bytes_not_synced": (power, "power cut after change"),
    "folder_not_synced": (power, "absent"),
    "written_in_place": (kills_of_write, "KeyError"),  # neither the old bytes nor the new
    "source_released_before_the_copy_is_published": (kills_of_demote, 'assert "whole" in found'),
    "released_without_proof": (bad_proof, "told ''"),
    "not_read_back": (lying_disk, "told ''"),
    "block_checksum_ignored": (flips, "Arrays are not equal"),
    "published_before_the_last_shard": (kills_of_move, "went away while it was moved"),
    "claim_ignored": (rival, "told ''"),
}
"""Mutant: the harness that must find it, and in which words."""


@pytest.mark.parametrize("mutant", MUTANTS)
def test_harness_finds_the_loss_of_a_guard(zygote: Zygote, tmp_path: Path, mutant: str) -> None:
    harness, words = FINDS[mutant]
    found = harness(zygote, tmp_path, mutant)
    assert found is not None, f"nothing notices {mutant}"
    assert words in found


@pytest.mark.parametrize("harness", sorted({h for h, _ in FINDS.values()}, key=lambda h: h.__name__))
def test_harness_finds_nothing_in_the_engine_as_it_is(
    zygote: Zygote, tmp_path: Path, harness: Harness
) -> None:
    assert harness(zygote, tmp_path, None) is None
