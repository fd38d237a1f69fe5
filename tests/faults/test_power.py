"""A power cut at any instant: old or new, whole; and what was said to be done is done."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.faults.power import POLICIES
from tests.faults.zygote import Zygote

STRIDE = int(os.environ.get("TIERING_POWER_STRIDE", "4"))
"""Cut the power after every change (1), or after every fourth."""

COUNT = 20
CUT, CUT_DIRECT = "cut_power", "cut_power_direct"
"""Through the page cache, and past it."""


@pytest.mark.parametrize(("form", "cut"), [("zarr", CUT), ("arrow", CUT), ("zarr", CUT_DIRECT)])
def test_ingest_that_returned_survives_a_power_cut_and_one_that_did_not_is_finished(
    zygote: Zygote, tmp_path: Path, form: str, cut: str
) -> None:
    (tmp_path / "disk").mkdir()
    facts: list[Any] = [form, 1, COUNT]
    job = ["ingest_again", "ingest_rows", [], "/place", *facts]
    found = zygote.value(cut, str(tmp_path), STRIDE, *job)
    assert found[-len(POLICIES) :] == ["whole"] * len(POLICIES)
    assert found.count("absent") * STRIDE > 20


@pytest.mark.parametrize(
    ("job", "cut"), [("move_rows", CUT), ("move_rows", CUT_DIRECT), ("demote_rows", CUT)]
)
def test_move_that_returned_survives_a_power_cut_and_one_that_did_not_is_finished(
    zygote: Zygote, tmp_path: Path, job: str, cut: str
) -> None:
    facts: list[Any] = ["arrow", 1, COUNT]
    zygote.value("ingest_rows", str(tmp_path / "disk" / "from"), *facts)
    again = job.replace("rows", "again")
    found = zygote.value(cut, str(tmp_path), STRIDE, again, job, facts, "/from", "/to")
    assert all("whole" in one for one in found[-len(POLICIES) :])
    assert len(set(found)) > 1
