"""Two processes that write one key at one moment, on tiers that processes share: one wins, none is mixed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.corpora import start_python
from tests.servers import BUCKET
from tiering import open_tier

ROUNDS = int(os.environ.get("TIERING_RACE_ROUNDS", "6"))

WRITER = """
import json, sys
from tiering import open_tier
from tiering.errors import Conflict

url, options, seed = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
store = open_tier(url, "tier", options=options).store
for line in sys.stdin:
    key, if_absent = json.loads(line)
    data = bytes([seed]) * 3_000_000
    try:
        store.write(key, [data[:1_000_000], data[1_000_000:]], if_absent=if_absent)
        print("won", flush=True)
    except Conflict:
        print("lost", flush=True)
"""


@pytest.fixture(params=["file", "object"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    if request.param == "file":
        return str(tmp_path / "tier"), {}
    request.getfixturevalue("s3_environment")
    options = request.getfixturevalue("moto_endpoint").options()
    return f"s3://{BUCKET}/{uuid.uuid4().hex}", options


def race(writers: list[subprocess.Popen[str]], key: str, *, if_absent: bool) -> list[str]:
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(f"{json.dumps([key, if_absent])}\n")
        writer.stdin.flush()
    return [writer.stdout.readline().strip() for writer in writers if writer.stdout is not None]


def test_two_processes_at_one_key_have_one_winner_and_never_mix(place: tuple[str, dict[str, Any]]) -> None:
    url, options = place
    tier = open_tier(url, "tier", options=options)
    with contextlib.ExitStack() as stack:
        writers = [start_python(WRITER, url, json.dumps(options), seed) for seed in (1, 2)]
        for writer in writers:
            stack.enter_context(writer)
            stack.callback(writer.kill)
        for number in range(ROUNDS):
            told = race(writers, f"new/{number}", if_absent=True)
            assert sorted(told) == ["lost", "won"]
            data = tier.store.read(f"new/{number}")
            assert data == bytes([1 + told.index("won")]) * 3_000_000
            assert race(writers, "same", if_absent=False) == ["won", "won"]
            assert tier.store.read("same") in (bytes([1]) * 3_000_000, bytes([2]) * 3_000_000)
        assert [writer.communicate(timeout=60)[1] for writer in writers] == ["", ""]
    assert len(list(tier.store.list())) == ROUNDS + 1
    tier.close()
