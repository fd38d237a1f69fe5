"""The command doctor on this machine, as it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.servers import BUCKET, Endpoint
from tiering import Tier, open_tier
from tiering.digest import Buffer
from tiering.doctor import examine
from tiering.probe import Check, probe
from tiering.stores import hurry
from tiering.stores.base import ObjectInfo, Store
from tiering.stores.memory import MemoryStore
from tiering.stores.wrappers import ReadOnly

NAMES = {
    "zarr",
    "obstore",
    "s3fs",
    "cupy",
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


def test_doctor_says_what_becomes_of_direct_io_where_the_kernel_does_not_say_what_is_cached(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def direct_io() -> Check:
        return next(check for check in examine(tmp_path, []) if check.name == "O_DIRECT")

    if direct_io().verdict != "ok":
        pytest.skip(direct_io().detail)
    monkeypatch.setattr(hurry, "_CACHESTAT", -1)
    assert direct_io().verdict == "optional"
    assert "Linux 6.5" in direct_io().detail


def test_doctor_tries_the_tiers(tiering: Any, tmp_path: Path) -> None:
    Path("tiering.toml").write_text(
        f'[tiers.good]\nurl = "{tmp_path}"\n[tiers.gone]\nurl = "block://{tmp_path}/none.img"\n'
    )
    answer = tiering("doctor", "--json")
    verdicts = {check["name"]: check["verdict"] for check in answer.document["checks"]}
    assert (verdicts["tier good"], verdicts["tier gone"]) == ("ok", "bad")
    assert answer.code == 1


def test_doctor_tells_what_a_tier_can_do_and_leaves_nothing_on_it(tiering: Any, tmp_path: Path) -> None:
    tier = tmp_path / "tier"
    (tier / "web").mkdir(parents=True)
    (tier / "web" / "object").write_bytes(b"x")
    answer = tiering("doctor", str(tier), "--json")
    verdicts = {check["name"]: check["verdict"] for check in answer.document["checks"]}
    for what in (
        "write and read back",
        "range",
        "listing",
        "overwrite",
        "conditional create",
        "delete",
        "speed",
    ):
        assert verdicts[f"tier {open_tier(tier).name}: {what}"] == "ok"
    assert [path for path in tier.rglob("*") if path.is_file()] == [tier / "web" / "object"]


class Forgetful(MemoryStore):
    """Overwrites what it was told only to create."""

    def write(
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        return super().write(key, buffers)


class Late(MemoryStore):
    """Lists nothing."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter(())


@pytest.mark.parametrize(
    ("store", "what", "words"),
    [
        (Forgetful("m"), "conditional create", "two writers could publish one version"),
        (Late("m"), "listing", "not listed at once"),
        (ReadOnly(MemoryStore("m")), "write and read back", "read-only"),
    ],
)
def test_probe_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, store: Store, what: str, words: str
) -> None:
    monkeypatch.setattr(Tier, "store", store)
    last = probe(open_tier("memory://m", "m"))[-1]
    assert (last.name, last.verdict) == (f"tier m: {what}", "bad")
    assert words in last.detail


def test_probe_only_reads_a_read_only_tier(tmp_path: Path) -> None:
    checks = probe(open_tier(tmp_path / "none", "m", read_only=True))
    assert checks[-1].verdict == "optional"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("server", ["rclone_endpoint", "moto_endpoint"])
def test_probe_of_a_server(request: pytest.FixtureRequest, s3_environment: None, server: str) -> None:
    endpoint: Endpoint = request.getfixturevalue(server)
    with contextlib.closing(open_tier(f"s3://{BUCKET}/probe", "lake", options=endpoint.options())) as tier:
        verdicts = {check.name: check.verdict for check in probe(tier)}
    expected = "optional" if server == "rclone_endpoint" else "ok"
    assert verdicts["tier lake: conditional create"] == expected
    assert "bad" not in verdicts.values()


def test_doctor_leaves_nothing(tiering: Any) -> None:
    tiering("doctor")
    assert list(Path().iterdir()) == []
