"""The commands on corpora, from the command line to the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import zarr


@pytest.fixture
def ingested(tiering: Any, parquet: Path, tmp_path: Path) -> Path:
    lake = tmp_path / "lake"
    assert tiering("ingest", parquet, "--to", lake, "--name", "rows", "--shard-size", "8KiB").code == 0
    return lake


def test_ingest_of_parquet_opens_with_pyarrow(ingested: Path, parquet: Path) -> None:
    found = pads.dataset(ingested / "rows", format="ipc").to_table()
    assert found.sort_by("id").equals(pq.read_table(parquet))


def test_ingest_of_text_opens_with_zarr(tiering: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc\xff" * 100)
    done = tiering(
        "ingest", tmp_path / "a.txt", "--to", tmp_path / "lake", "--name", "t", "--row-tokens", 9, "--json"
    )
    assert done.code == 0
    assert done.document["rows"] == 45
    array = zarr.open_group(str(tmp_path / "lake" / "t"), mode="r")["tokens"]
    assert bytes(array[:].reshape(-1)[:400].astype("u1")) == b"abc\xff" * 100


def test_ingest_again_is_nothing_to_do(tiering: Any, ingested: Path, parquet: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in ingested.rglob("*.arrow")}
    assert tiering("ingest", parquet, "--to", ingested, "--name", "rows", "--shard-size", "8KiB").code == 0
    assert {path: path.stat().st_mtime_ns for path in ingested.rglob("*.arrow")} == before


def test_ls_lists_corpora(tiering: Any, ingested: Path) -> None:
    assert tiering("--json", "ls", ingested).document["corpora"][0]["name"] == "rows"
    assert "1,000" in tiering("ls", ingested).out


def test_ls_of_an_empty_tier_says_what_to_do(tiering: Any, tmp_path: Path) -> None:
    assert "tiering ingest" in tiering("ls", tmp_path).out


def test_ls_of_a_damaged_corpus_names_it(tiering: Any, ingested: Path) -> None:
    (ingested / "rows" / ".tiering" / "versions" / "00000001.json").write_bytes(b"{")
    done = tiering("ls", ingested)
    assert "not JSON" in done.out
    assert done.code == 1
    (ingested / "a.txt").write_text("text")
    assert (
        tiering("ingest", ingested / "a.txt", "--to", ingested, "--name", "good", "--row-tokens", 3).code == 0
    )
    done = tiering("ls", ingested, "--json")
    assert (done.code, done.document["ok"]) == (3, False)


def test_show_names_the_columns(tiering: Any, ingested: Path) -> None:
    assert tiering("show", ingested, "rows", "--json").document["columns"] == {
        "id": "int64",
        "text": "string",
    }


def test_move_verify_release_go_round(tiering: Any, ingested: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    planned = tiering("move", "rows", "--from", ingested, "--to", disk, "--dry-run", "--json")
    assert planned.document["plan"]["bytes"] > 0
    assert not disk.exists()
    moved = tiering("move", "rows", "--from", ingested, "--to", disk, "--json")
    assert moved.document["moved"] > 1
    again = tiering("move", "rows", "--from", ingested, "--to", disk, "--json")
    assert (again.document["moved"], again.document["skipped"]) == (0, moved.document["moved"])
    assert tiering("verify", "rows", "--on", disk, "--json").document["ok"]
    assert tiering("release", ingested, "rows", "--proof", disk).code == 0
    assert tiering("show", ingested, "rows").code == 1
    assert tiering("show", disk, "rows").code == 0


def test_release_of_the_last_copy_is_refused(tiering: Any, ingested: Path) -> None:
    refused = tiering("release", ingested, "rows")
    assert refused.code == 1
    assert refused.err.startswith("LastCopy")
    assert tiering("verify", "rows", "--on", ingested).code == 0


def test_verify_of_damage_names_it_and_fails(tiering: Any, ingested: Path) -> None:
    shard = next(ingested.rglob("part-000001.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    found = tiering("verify", "rows", "--on", ingested, "--json")
    assert found.code == 1
    assert found.document["corrupt"] == ["part-000001.arrow"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["ls", "nowhere"], 1, "no tier is called 'nowhere'"),
        (["ls", "./nowhere"], 1, "folder that does not exist"),
        (["show", "LAKE", "nope"], 1, "no corpus 'nope'"),
        (["show", "LAKE", "../x"], 2, "has a '..' segment"),
        (["show", "LAKE", "rows", "--version", "9"], 1, "Versions: 1"),
        (["ingest", "missing.txt", "--to", "LAKE", "--name", "x"], 1, "no file or folder 'missing.txt'"),
        (["ingest", "PARQUET", "--to", "LAKE", "--name", "x", "--shard-size", "3"], 2, "smaller than a row"),
        (
            ["ingest", "PARQUET", "--to", "LAKE", "--name", "x", "--shard-size", "big"],
            2,
            'shard_size = "64MiB"',
        ),
        (["ingest", "PARQUET", "--to", "LAKE", "--name", "x", "--format", "csv"], 2, "zarr, arrow"),
        (
            ["ingest", "PARQUET", "--to", "LAKE", "--name", "x", "--format", "zarr"],
            2,
            "'text' of type string",
        ),
        (["ingest", "PARQUET", "--to", "LAKE", "--name", "rows", "--block-rows", "7"], 1, "exists already"),
        (["move", "rows", "--from", "LAKE", "--to", "LAKE"], 2, "is on tier"),
        (["move", "rows", "--from", "LAKE", "--to", "s3://user:word@bucket"], 2, "carries credentials"),
        (["ls", "LAKE", "--scheduler", "10.0.0.1:8786"], 0, ""),
        (["verify", "rows", "--on", "LAKE", "--scheduler", "10.0.0.1:8786"], 2, "neither on loopback"),
        (["ls", "LAKE", "--config", "none.toml"], 1, "no file 'none.toml'"),
        (["lss"], 2, "No such command"),
        (["ls"], 2, "no tier is named, nor is one in the configuration"),
    ],
)
def test_bad_input_gets_one_clear_answer(
    tiering: Any, ingested: Path, parquet: Path, arguments: list[str], code: int, said: str
) -> None:
    words = [{"LAKE": str(ingested), "PARQUET": str(parquet)}.get(word, word) for word in arguments]
    answer = tiering(*words)
    assert answer.code == code
    assert said in " ".join(answer.err.split())
    assert "Traceback" not in answer.err


def test_errors_are_json_when_asked(tiering: Any, ingested: Path) -> None:
    answer = tiering("show", ingested, "nope", "--json")
    assert answer.document["error"] == "NotFound"
    assert answer.document["ok"] is False


def test_configuration_names_tiers(tiering: Any, ingested: Path) -> None:
    Path("tiering.toml").write_text(f'[tiers.lake]\nurl = "{ingested}"\n')
    assert tiering("ls", "lake", "--json").document["tier"] == "lake"
    assert "Did you mean 'lake'?" in tiering("ls", "lakes").err


def test_version_and_help_are_printed(tiering: Any) -> None:
    assert tiering("--version").out.strip() == "0.1.0"
    assert "verified" in tiering("move", "--help").out
    assert tiering().code == 2


def test_names_that_look_like_markup_are_shown_as_they_are(tiering: Any, tmp_path: Path) -> None:
    table = pa.table({"[/b]": pa.array([1, 2]), "at": pa.array([0, 1], pa.timestamp("us", "UTC"))})
    pq.write_table(table, tmp_path / "a.parquet")
    lake = tmp_path / "[/lake]"
    Path("tiering.toml").write_text(f"[tiers.'[red]disk']\nurl = '{tmp_path}/disk'\n")
    assert tiering("ingest", tmp_path / "a.parquet", "--to", lake, "--name", "[b]x").code == 0
    shown = tiering("show", lake, "[b]x").out
    for text in ("[b]x", "[/b]", "timestamp[us, tz=UTC]"):
        assert text in shown
    planned = tiering("move", "[b]x", "--from", lake, "--to", "[red]disk", "--dry-run")
    assert planned.code == 0
    assert "[red]disk" in planned.out.replace("\n", "")


def test_release_makes_no_folder_of_a_proof_that_is_misspelt(
    tiering: Any, ingested: Path, tmp_path: Path
) -> None:
    done = tiering("release", ingested, "rows", "--proof", tmp_path / "dsik")
    assert done.code == 1
    assert "does not exist" in done.err
    assert not (tmp_path / "dsik").exists()


def test_ls_without_a_tier_lists_all_of_the_configuration(tiering: Any, ingested: Path) -> None:
    lake, empty = f'[tiers.lake]\nurl = "{ingested}"\n', '[tiers.empty]\nurl = "empty"\n'
    Path("empty").mkdir()
    Path("tiering.toml").write_text(lake + empty)
    done = tiering("ls", "--json")
    assert (done.code, done.document["ok"]) == (0, True)
    assert [tier["tier"] for tier in done.document["tiers"]] == ["lake", "empty"]
    assert [len(tier["corpora"]) for tier in done.document["tiers"]] == [1, 0]
    assert "Corpora on lake" in tiering("ls").out
    Path("tiering.toml").write_text(empty)
    assert "tiering ingest" in tiering("ls").out
    Path("tiering.toml").write_text(lake + '[tiers.volume]\nurl = "block:///none/volume.img"\n')
    done = tiering("ls")
    assert done.code == 3  # one tier that is away keeps no other from being told
    assert "Corpora on lake" in done.out
    assert "volume: no folder /none" in done.out
    Path("empty").rmdir()
    Path("tiering.toml").write_text(empty)
    done = tiering("ls", "--json")
    assert (done.code, done.document["ok"]) == (1, False)  # a disk that is not mounted is no empty tier
    assert "a folder that does not exist" in done.document["tiers"][0]["corpora"][0]["problem"]
