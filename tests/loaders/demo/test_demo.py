"""The demo as users run it: in processes of its own, twice, on a folder and on real S3 servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from loaders import Loader
from tests.servers import ACCESS_KEY_ID, BUCKET, SECRET_ACCESS_KEY, Endpoint, ceph_missing
from tiering import open_corpus, open_tier, verify

SECONDS = 240
KEYS = {"ok", "rows", "shards", "corpus_bytes", "object_path", "staged_path", "resume_identical", "epochs"}
EPOCH_KEYS = {"bytes_fetched", "hit_ratio", "bound", "distance_from_bound", "rows_per_second"}


def run_demo(folder: Path, *options: str, **environment: str) -> Any:
    command = [sys.executable, "-c", "from tiering.cli.main import main; main()", "demo", "--json"]
    done = subprocess.run(
        [*command, "--dir", str(folder), *options],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "dashboard: http://127.0.0.1:" in done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("demo")
    return [run_demo(folder), run_demo(folder)]


def test_demo_reports_what_was_promised(runs: list[Any]) -> None:
    for document in runs:
        assert document.keys() >= KEYS
        assert all(epoch.keys() >= EPOCH_KEYS for epoch in document["epochs"])
        assert document["ok"]
        assert document["resume_identical"]
        assert len(document["epochs"]) == 3


def test_second_run_skips_what_is_there(runs: list[Any]) -> None:
    first, second = runs
    assert (first["moved"], first["skipped"]) == (first["shards"], 0)
    assert (second["moved"], second["skipped"]) == (0, first["shards"])
    assert second["manifest"] == first["manifest"]


def test_cache_reaches_its_bound(runs: list[Any]) -> None:
    first, second = (document["epochs"] for document in runs)
    corpus, shard = runs[0]["corpus_bytes"], runs[0]["corpus_bytes"] / runs[0]["shards"]
    assert first[0]["hit_ratio"] == first[0]["bound"] == 0
    assert abs(first[0]["bytes_fetched"] - corpus) < 0.02 * corpus  # padding and indexes apart: once
    for epoch in (*first[1:], *second):
        assert -1e-4 <= epoch["distance_from_bound"] <= shard / corpus + 0.02
        assert epoch["bytes_fetched"] <= 0.6 * corpus + shard


def test_staged_copy_is_the_library_text(runs: list[Any]) -> None:
    tokens = zarr.open_group(runs[0]["staged_path"], mode="r")["tokens"][:].reshape(-1)
    found = tokens[tokens != 256].astype(np.uint8).tobytes()
    library = Path(sysconfig.get_path("stdlib"))
    assert len(found) > 10_000_000
    for path in (library / "this.py", library / "json" / "decoder.py"):
        assert path.read_bytes() in found


def test_copies_verify_and_load(runs: list[Any]) -> None:
    staged = Path(runs[0]["staged_path"])
    corpus = open_corpus(open_tier(staged.parent), staged.name)
    assert verify(corpus).ok
    batch = next(iter(Loader(corpus, 64)))
    assert batch["tokens"].shape == (64, 2049)


@pytest.mark.nightly
def test_demo_on_moto_works(tmp_path: Path, moto_endpoint: Endpoint) -> None:
    check_on_server(tmp_path, moto_endpoint)


@pytest.mark.ceph
def test_demo_on_the_most_real_server_here_works(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    name = "moto_endpoint" if ceph_missing() else "ceph_endpoint"
    check_on_server(tmp_path, request.getfixturevalue(name))


def check_on_server(folder: Path, endpoint: Endpoint) -> None:
    options = ("--object", f"s3://{BUCKET}/demo", "--endpoint-url", endpoint.url)
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY}
    document = run_demo(folder, *options, **keys)
    assert document["ok"]
    assert document["object_path"].startswith(f"s3://{BUCKET}/demo/")
    written = "".join(path.read_text() for path in folder.glob("*.json"))
    assert SECRET_ACCESS_KEY not in written + json.dumps(document)
