"""The commands status and cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiering.cache_tools import NBYTES, Make, caches_in, files_below, name_of, outlook, put
from tests.tiering.cli.conftest import Run
from tiering import NodeCache
from tiering.cache import Registration


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with caches_in(tmp_path / "cache") as make_cache:
        yield make_cache


@pytest.fixture
def nodes(make: Make) -> NodeCache:
    filled = make(4, "auto")
    for number in (0, 1, 0):
        put(filled, number)
    return filled


def configure(path: Path, sick: Path | None = None) -> None:
    tables = [
        f'[caches.node]\npath = "{path}"\ncapacity = "1GB"\n[caches.new]\npath = "/no/such"\ncapacity = 1\n'
    ]
    tables += [f'[caches.sick]\npath = "{sick}"\ncapacity = 1\n'] if sick else []
    Path("tiering.toml").write_text("".join(tables))


def test_status_shows_content_hits_policy_and_readers(tiering: Run, nodes: NodeCache) -> None:
    reader = Registration()
    nodes.foretell(reader, outlook([range(9), range(9)], 2.0, corpus="web-text", rank=1, world_size=4))
    for number in (0, 1, 2):
        put(nodes, number, reader=reader)
    outcome = tiering("status", nodes.path)
    assert outcome.code == 0
    for told in (
        "2.93 kiB of 3.91 kiB (75%), 3 shards", "0.500 of the bytes asked for so far: 3 hits, 3 misses",
        "0.444, of any policy", "auto: pin", "one reader takes each of its shards once an epoch",
        "web-text", "1 of 4", "3 of 9", "2.00",
    ):  # fmt: skip
        assert told in outcome.out, told
    (document,) = tiering("status", nodes.path, "--json").document["caches"]
    assert (document["path"], document["decision"], document["hit_ratio"]) == (str(nodes.path), "pin", 0.5)
    (one,) = document["readers"]
    assert (one["corpus"], one["rank"], one["epoch"], one["position"]) == ("web-text", 1, 0, 3)


def test_status_shows_the_caches_of_the_configuration(tiering: Run, nodes: NodeCache, tmp_path: Path) -> None:
    configure(nodes.path)
    outcome = tiering("status")
    assert outcome.code == 0
    assert "new: nobody has used it yet" in outcome.out
    assert "not known while nobody is registered" in outcome.out
    documents = tiering("status", "--json").document["caches"]
    assert [one["name"] for one in documents] == ["node", "new"]
    assert tiering("status", "node", "--json").document["caches"][0]["shards"] == 2


def test_status_of_some_sick_caches_is_partial(tiering: Run, nodes: NodeCache, tmp_path: Path) -> None:
    sick = tmp_path / "sick"
    (sick / "locks").mkdir(parents=True)
    (sick / "index.sqlite").write_text("")
    (sick / "locks" / "index").mkdir()
    configure(nodes.path, sick)
    outcome = tiering("status", "--json")
    assert outcome.code == 3
    assert str(sick) in outcome.document["caches"][2]["problem"]
    assert tiering("status", sick).code == 1


def test_status_of_nothing_and_of_no_cache_says_what_to_do(tiering: Run, tmp_path: Path) -> None:
    outcome = tiering("status")
    assert outcome.code == 2
    assert "[caches.NAME]" in outcome.err
    outcome = tiering("status", tmp_path)
    assert outcome.code == 1
    assert "no node cache in" in outcome.err
    assert not (tmp_path / "index.sqlite").exists()


def test_cache_clear_says_what_went(tiering: Run, nodes: NodeCache) -> None:
    assert tiering("cache", "clear", nodes.path, "--json").document == {
        "ok": True,
        "shards": 2,
        "bytes": 2000,
    }
    assert nodes.status().shards == 0
    assert "0 shards dropped" in tiering("cache", "clear", nodes.path).out


def test_cache_verify_names_what_was_bad(tiering: Run, nodes: NodeCache) -> None:
    outcome = tiering("cache", "verify", nodes.path, "--subset", "1/1")
    assert outcome.code == 0
    assert "2 shards, 1.95 kiB verified, 100.0% of all: all right" in outcome.out
    for file in files_below(nodes.path):
        if file.name == name_of(1):
            file.write_bytes(bytes(NBYTES))
    outcome = tiering("cache", "verify", nodes.path, "--json")
    assert outcome.code == 1
    assert outcome.document["corrupt"] == [name_of(1)]
    assert tiering("cache", "verify", nodes.path).code == 0


def test_cache_resize_sets_and_forgets(tiering: Run, nodes: NodeCache) -> None:
    configure(nodes.path)
    outcome = tiering("cache", "resize", "node", "1kB")
    assert outcome.code == 0
    assert "0.98 kiB from now on; 0.98 kiB are used" in outcome.out
    assert "set by tiering cache resize" in tiering("status", "node").out
    assert tiering("cache", "resize", "node", "--forget", "--json").document["capacity_bytes"] == 4000
    for wrong in ((), ("1kB", "--forget"), ("much",)):
        assert tiering("cache", "resize", "node", *wrong).code == 2
