"""What a killed probe leaves on a tier is known by its name, and goes."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiering.corpora import dead, python
from tests.tiering.test_claim import elsewhere
from tiering import Tier, open_tier, process
from tiering.gc import gc
from tiering.probe import probe
from tiering.probe_keys import PROBES, abandoned, probe_key
from tiering.process import ProcessId
from tiering.stores.base import ObjectInfo
from tiering.stores.memory import MemoryStore

KILLED_AT_ITS_FIRST_DELETE = """
import os, signal, sys
from tiering import open_tier
from tiering.probe import probe
from tiering.stores.file import FileStore
FileStore.delete = lambda self, key: os.kill(os.getpid(), signal.SIGKILL)
probe(open_tier(sys.argv[1], "lake"))
"""


def keys(tier: Tier) -> list[str]:
    return [info.key for info in tier.store.list(PROBES)]


def collect(tier: Tier) -> str:
    (garbage,) = gc(tier).garbage
    return garbage.reason


def tell(tier: Tier) -> str:
    (check,) = [check for check in probe(tier) if check.name.endswith("earlier probes")]
    return check.detail


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Name of what a killed doctor left."""
    folder = tmp_path_factory.mktemp("lake")
    with python(KILLED_AT_ITS_FIRST_DELETE, folder) as killed:
        pass
    assert killed.returncode == -signal.SIGKILL
    (key,) = keys(open_tier(folder, "lake"))
    return key


@pytest.mark.parametrize(
    ("clean", "said"),
    [(collect, "probe of a dead process"), (tell, "1 removed that were killed")],
    ids=["gc", "doctor"],
)
def test_probe_that_was_killed_leaves_nothing_for_ever(
    lake: Tier, left: str, clean: Callable[[Tier], str], said: str
) -> None:
    lake.store.write(left, [b"second"])
    assert [one.key for one in gc(lake, dry_run=True).garbage] == [left]
    assert clean(lake) == said
    assert keys(lake) == []
    assert not any("earlier" in check.name for check in probe(lake))
    assert gc(lake).garbage == ()


class Aged(MemoryStore):
    """Knows when all of it was written."""

    def list(self, prefix: str = "") -> Any:
        for info in super().list(prefix):
            yield ObjectInfo(info.key, info.nbytes, info.etag, 1000.0)


def key_of(owner: ProcessId, monkeypatch: pytest.MonkeyPatch) -> str:
    with monkeypatch.context() as patch:
        patch.setattr(process, "current", lambda: owner)
        return probe_key()


@pytest.mark.parametrize(
    ("owner", "goes_young", "goes_old"),
    [(dead, True, True), (process.current, False, False), (elsewhere, False, True), (None, False, True)],
    ids=["dead", "living", "elsewhere", "nobody"],
)
def test_probe_of_a_process_that_may_live_stays_for_an_hour(
    monkeypatch: pytest.MonkeyPatch, owner: Callable[[], ProcessId] | None, goes_young: bool, goes_old: bool
) -> None:
    key = key_of(owner(), monkeypatch) if owner else f"{PROBES}/0123456789abcdef"
    aged, ageless = Aged("lake"), MemoryStore("lake")
    for store in (aged, ageless):
        store.write(key, [b"probe"])
    assert [info.key for info in abandoned(aged, 1000 + 3599)] == [key] * goes_young
    assert [info.key for info in abandoned(aged, 1000 + 3600)] == [key] * goes_old
    assert [info.key for info in abandoned(ageless, 1e12)] == [key] * goes_young


def test_probe_removes_nothing_of_a_tier_that_is_read_only(tmp_path: Path) -> None:
    tier = open_tier(tmp_path, "lake")
    tier.store.write(f"{PROBES}/x", [b"probe"])
    probe(open_tier(tmp_path, "lake", read_only=True))
    assert len(keys(tier)) == 1
