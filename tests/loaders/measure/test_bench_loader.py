"""bench-loader on small corpora: what it reports is what the loader did."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from loaders import Loader
from loaders.measure.epochs import gather_from_ram, run_epoch
from tests.corpora import make_corpus
from tiering import ingest, open_tier
from tiering.cli.main import run

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tier with a corpus of fixed columns, ``c``, and a ragged one, ``t``."""
    folder = tmp_path_factory.mktemp("tier")
    tier = open_tier(folder, "disk")
    make_corpus(tier, 600, 16, 4)
    table = pa.table({"n": range(200), "text": ["x" * (n % 9) for n in range(200)]})
    ingest(table, tier, "t", block_rows=8, progress=False)
    return folder


@pytest.fixture
def bench(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: object, code: int = 0) -> Any:
        assert run(["bench-loader", *map(str, words), "--on", str(folder)]) == code
        printed = capsys.readouterr()
        return json.loads(printed.out) if "--json" in words else printed.out + printed.err

    return call


def test_bench_loader_reports_epochs_a_cache_and_the_gather(bench: Call, tmp_path: Path) -> None:
    document = bench("c", "--batch-size", 60, "--cache", tmp_path / "cache", "--epochs", 3, "--json")
    assert document["ok"]
    assert [epoch["rows"] for epoch in document["epochs"]] == [600] * 3
    assert [epoch["hit_ratio"] for epoch in document["epochs"][1:]] == [1.0, 1.0]
    for epoch in document["epochs"]:
        assert epoch["whole"]
        assert epoch["rows_per_second"] > 0
        assert 0 < epoch["bytes_per_second"] == pytest.approx(epoch["rows_per_second"] * 20)
        assert 0 <= epoch["stall_share"] <= 1
    assert document["epochs"][0]["bytes_fetched"] > 0
    assert list(document["epochs"][2]["bytes_read"]) == ["node cache"]
    ram = document["gather_from_ram"]
    assert (ram["rows"], ram["nbytes"]) == (600, 600 * 20)
    assert document["ratio_to_gather_from_ram"] > 0
    assert document["peak_rss_bytes"] > 1 << 20


def test_bench_loader_prints_a_table(bench: Call) -> None:
    printed = bench("c", "--batch-size", 60, "--columns", "row", "--sample", "2KB", "--epochs", 1)
    assert "c on " in printed
    assert "batches of 60" in printed
    assert "A gather from 1.88 kiB in RAM" in printed


def test_bench_loader_takes_ragged_columns_as_record_batches(bench: Call) -> None:
    document = bench("t", "--batch-size", 20, "--json")
    assert [epoch["rows"] for epoch in document["epochs"]] == [200, 200]
    assert document["gather_from_ram"]["rows"] == 200


@pytest.mark.parametrize("collate", ["pad", "pack"])
def test_bench_loader_collates_without_a_gather_to_compare_with(bench: Call, collate: str) -> None:
    words = ("t", "--batch-size", 20, "--collate", collate, "--epochs", 1)
    document = bench(*words, "--json")
    assert document["gather_from_ram"] is None
    assert document["epochs"][0]["rows"] == 200
    assert "A gather" not in bench(*words)


def test_bench_loader_refuses_what_does_not_fit(bench: Call) -> None:
    assert "no column 'nope'" in bench("c", "--columns", "nope", code=2)
    assert "too few for one batch" in bench("c", "--batch-size", 1024, code=2)


def test_epoch_is_cut_after_its_time_and_the_sample_is_bounded(folder: Path) -> None:
    from tiering import open_corpus

    loader = Loader(open_corpus(open_tier(folder, "disk"), "c"), 60)
    epoch = run_epoch(loader, max_seconds=0.0)
    assert (epoch.rows, epoch.whole) == (60, False)
    assert gather_from_ram(loader, 1).rows == 60
    assert gather_from_ram(loader, 2 * 60 * 20 + 1).rows == 120


@pytest.mark.parametrize("seconds", ["nan", "0", "-1"])
def test_bench_loader_without_time_is_refused(bench: Call, seconds: str) -> None:
    assert f"--max-seconds {float(seconds)} is no time" in bench("c", "--max-seconds", seconds, code=2)
