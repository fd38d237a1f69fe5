"""The command doctor on this machine, as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

NAMES = {
    "zarr",
    "obstore",
    "s3fs",
    "kvikio",
    "libcuda",
    "GPUDirect Storage",
    "O_DIRECT",
    "huge pages",
    "free space",
}


def test_doctor_tries_everything(tiering: Any, tmp_path: Path) -> None:
    answer = tiering("doctor", "--json")
    checks = {check["name"]: check for check in answer.document["checks"]}
    assert set(checks) >= NAMES
    assert checks["obstore"]["verdict"] == "ok"
    assert answer.document["ok"] == (answer.code == 0)


def test_doctor_tries_the_tiers(tiering: Any, tmp_path: Path) -> None:
    Path("tiering.toml").write_text(
        f'[tiers.good]\nurl = "{tmp_path}"\n[tiers.gone]\nurl = "block://{tmp_path}/none.img"\n'
    )
    answer = tiering("doctor", "--json")
    verdicts = {check["name"]: check["verdict"] for check in answer.document["checks"]}
    assert (verdicts["tier good"], verdicts["tier gone"]) == ("ok", "bad")
    assert answer.code == 1


def test_doctor_leaves_nothing(tiering: Any) -> None:
    tiering("doctor")
    assert list(Path().iterdir()) == []
