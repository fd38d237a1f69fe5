"""The commands on block volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def test_format_then_move_then_check(tiering: Any, parquet: Path, tmp_path: Path) -> None:
    volume, lake = tmp_path / "volume.img", tmp_path / "lake"
    assert tiering("block", "format", volume, "--size", "4MiB").code == 0
    assert tiering("ingest", parquet, "--to", lake, "--name", "rows", "--shard-size", "8KiB").code == 0
    assert tiering("move", "rows", "--from", lake, "--to", f"block://{volume}").code == 0
    assert tiering("verify", "rows", "--on", f"block://{volume}").code == 0
    checked = tiering("block", "check", volume, "--json")
    assert checked.document["ok"]
    assert checked.document["objects"] > 2


def test_format_refuses_what_carries_data(tiering: Any, tmp_path: Path) -> None:
    volume = tmp_path / "volume.img"
    assert tiering("block", "format", volume, "--size", "4MiB").code == 0
    refused = tiering("block", "format", volume, "--size", "4MiB")
    assert refused.code == 1
    assert "--force" in refused.err or "force" in refused.err
    assert tiering("block", "format", volume, "--size", "4MiB", "--force").code == 0


def test_missing_volume_says_how_to_make_one(tiering: Any, tmp_path: Path) -> None:
    assert "tiering block format" in tiering("ls", f"block://{tmp_path}/none.img").err
    for words in ((tmp_path / "no" / "v.img",), (tmp_path / "v.img", "--index", tmp_path / "no" / "index")):
        told = tiering("block", "format", *words, "--size", "4MiB").err.replace("\n", "")
        assert f"no folder {tmp_path / 'no'}. Make it first" in told


def test_check_finds_a_flipped_bit(tiering: Any, parquet: Path, tmp_path: Path) -> None:
    volume = tmp_path / "volume.img"
    tiering("block", "format", volume, "--size", "4MiB")
    tiering("ingest", parquet, "--to", f"block://{volume}", "--name", "rows", "--shard-size", "8KiB")
    data = bytearray(volume.read_bytes())
    place = data.index(b"row 6 row 6")
    data[place] ^= 1
    volume.write_bytes(data)
    assert tiering("block", "check", volume).code == 0, "headers alone are right"
    checked = tiering("block", "check", volume, "--deep", "--json")
    assert checked.code == 1
    assert "part-000000.arrow" in checked.document["problems"][0]["key"]


def test_info_grow_and_rebuild(tiering: Any, tmp_path: Path) -> None:
    volume = tmp_path / "volume.img"
    tiering("block", "format", volume, "--size", "4MiB")
    told = tiering("block", "info", volume, "--json").document
    assert (told["nbytes"], told["fragmentation"], told["sector_bytes"]) == (4 << 20, 0.0, None)
    assert tiering("block", "grow", volume, "--size", "2MiB").code == 2
    assert tiering("block", "grow", volume, "--size", "5MiB", "--json").document["nbytes"] == 5 << 20
    rebuilt = tiering("block", "rebuild", volume, "--json").document
    assert (rebuilt["ok"], rebuilt["lost"], rebuilt["info"]["nbytes"]) == (True, [], 5 << 20)


def test_check_repairs_a_header_that_the_data_prove(tiering: Any, parquet: Path, tmp_path: Path) -> None:
    volume = tmp_path / "volume.img"
    tiering("block", "format", volume, "--size", "4MiB")
    tiering("ingest", parquet, "--to", f"block://{volume}", "--name", "rows", "--shard-size", "8KiB")
    data = bytearray(volume.read_bytes())
    data[data.index(b"CORPUSTIERINGEXT") + 60] ^= 1
    volume.write_bytes(data)
    assert tiering("block", "check", volume).code == 1
    assert tiering("block", "check", volume, "--repair").code == 0
    assert tiering("block", "check", volume, "--deep").code == 0
