from __future__ import annotations

import contextlib
import os
import pickle
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from hypothesis import given
from hypothesis import strategies as st

from tests.tiering.corpora import objects, python, small
from tiering import Prices, Tier, open_tier, plan_move, verify
from tiering.errors import CapacityExceeded, ConfigError, NotFound, UsageError
from tiering.sizes import parse_size
from tiering.stores import open as open_module
from tiering.tier import S3_LIST_PRICES, close_stores

SECRET = "hunter2-canary"


@pytest.mark.parametrize(
    ("given", "url", "kind"),
    [
        ("/a//b/./c/", "/a/b/c", "file"),
        ("file:///a/b/", "/a/b", "file"),
        ("file:///a?b#c", "/a?b#c", "file"),
        ("relative/x", str(Path("relative/x").absolute()), "file"),
        (Path("/a/b"), "/a/b", "file"),
        ("s3://bucket/prefix/", "s3://bucket/prefix", "object"),
        ("S3://bucket", "s3://bucket", "object"),
        ("gs://bucket", "gs://bucket", "object"),
        ("hdfs://host:8020/x", "hdfs://host:8020/x", "object"),
        ("block:///a/vol#1.img", "block:///a/vol#1.img", "block"),
        ("memory://", "memory://", "memory"),
        ("memory://x/y", "memory://x/y", "memory"),
        ("shm://staging-1", "shm://staging-1", "memory"),
    ],
)
def test_tier_url_tells_place_and_kind(given: Any, url: str, kind: str) -> None:
    tier = open_tier(given, "t")
    assert (tier.url, tier.kind) == (url, kind)
    assert tier.process_bound == url.startswith(("memory://", "block://"))


def test_tier_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_tier("~/tier").url == str(tmp_path / "tier")


@pytest.mark.parametrize(
    "url",
    [
        *("", "a\0b", "s3://", "s3:///key", "s3://[bad", "file://rel"),
        *("block://", "block:///", "block://rel.img"),
        *("shm://", "shm://a/b", f"shm://{'x' * 65}"),
    ],
)
def test_tier_url_that_names_nothing_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(ConfigError, match=r"://") as caught:
        open_tier(url)
    assert caught.value.hint


@pytest.mark.parametrize("url", [f"s3://u:{SECRET}@b", f"s3://{SECRET}@b", f"hdfs://h/p?delegation={SECRET}"])
def test_tier_secret_in_a_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match="credentials") as caught:
        open_tier(url, "lake")
    assert SECRET not in str(caught.value)


def test_tier_options_are_checked_and_never_shown() -> None:
    with pytest.raises(ConfigError, match="holds a credential itself") as caught:
        open_tier("s3://bucket", options={"secret_access_key": SECRET})
    assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError, match=r"option 'region' .* is a dict"):
        open_tier("s3://bucket", options={"region": {}})  # type: ignore[dict-item]
    tier = open_tier("s3://bucket", options={"secret_access_key": "env:LAKE_SECRET"})
    assert "LAKE_SECRET" not in repr(tier)
    assert tier.options == {"secret_access_key": "env:LAKE_SECRET"}


def test_tier_names_come_from_the_url() -> None:
    assert open_tier("/mnt/nvme/tier").name == "mnt-nvme-tier"
    assert open_tier("/").name == "root"
    assert open_tier("/mnt", "disk").name == "disk"


def test_tier_prices_default_to_amazon_only_on_amazon() -> None:
    assert open_tier("s3://bucket").prices == S3_LIST_PRICES
    assert open_tier("s3://bucket", options={"endpoint_url": "http://127.0.0.1:1"}).prices == Prices()
    assert open_tier("/mnt", prices={"egress_gb": 3}).prices == Prices(egress_gb=3)
    with pytest.raises(ConfigError, match="price 'nope' is not known"):
        open_tier("/mnt", prices={"nope": 3})


def test_prices_say_what_reading_and_writing_cost() -> None:
    prices = Prices(storage_gb_month=3, egress_gb=5, get_1000=7, put_1000=11)
    assert prices.reading(13_000_000_000, 2_000) == 13 * 5 + 2 * 7
    assert prices.writing(3_000) == 3 * 11


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), True, "1", None])
def test_prices_that_are_no_dollars_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="price egress_gb"):
        Prices(egress_gb=value)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("64MiB", 64 << 20),
        ("2TB", 2 * 10**12),
        ("5.5 GB", 5_500_000_000),
        ("1e3", 1000),
        (7, 7),
        (np.int64(9), 9),
    ],
)
def test_parse_size_forms(text: Any, nbytes: int) -> None:
    assert parse_size(text, "capacity") == nbytes


@pytest.mark.parametrize(
    "text", ["", "MiB", "-5", "0", "1e999", "nan", "2XB", 0, -1, True, 1.5, None, [], "0.1"]
)
def test_parse_size_refuses_what_is_no_size(text: Any) -> None:
    with pytest.raises(ConfigError, match=r"capacity = .* is not a size.*64MiB"):
        parse_size(text, "capacity")


@given(st.text(max_size=12))
def test_parse_size_answers_any_text(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert parse_size(text, "size") > 0


def test_tier_pickles_as_the_same_place_without_a_connection(lake: Tier) -> None:
    lake.store.write("k", [b"v"])
    copy = pickle.loads(pickle.dumps(lake))
    assert copy == lake
    assert copy.store is lake.store
    assert len(pickle.dumps(lake)) < 2000


def test_tier_closed_opens_again(lake: Tier) -> None:
    before = lake.store
    before.write("k", [b"v"])
    lake.close()
    lake.close()
    assert lake.store is not before
    assert lake.store.read("k") == b"v"
    close_stores()
    assert lake.store.read("k") == b"v"


def test_memory_tier_keeps_its_bytes_when_closed_and_under_other_names(memory: Tier) -> None:
    memory.store.write("k", [b"v"])
    memory.close()
    assert memory.store.read("k") == b"v"
    assert open_tier(memory.url, "other name").store.read("k") == b"v"


def test_memory_tier_answers_under_the_name_it_was_opened_by(memory: Tier) -> None:
    other = open_tier(memory.url, "other name")
    for tier in (memory, other):
        with pytest.raises(NotFound) as caught:
            tier.store.read("none")
        assert caught.value.tier == tier.name
    with pytest.raises(ConfigError, match="is memory in use that has no capacity"):
        open_tier(memory.url, "bounded", capacity=100).store.stat("k")


HANGS = """
import os, sys, threading
from tiering import open_tier, tier
folder, real = sys.argv[1], tier.open_store
opening, go = threading.Event(), threading.Event()

def open_store(what):
    if what.name == "dead" and os.getpid() == parent:
        opening.set()
        go.wait()
    return real(what)

parent, tier.open_store = os.getpid(), open_store
dead, alive = open_tier(f"{folder}/dead", "dead"), open_tier(f"{folder}/alive", "alive")
thread = threading.Thread(target=lambda: dead.store.write("k", [b"v"]))
thread.start()
opening.wait()
alive.store.write("k", [b"v"])
child = os.fork()
if not child:
    dead.store.write("k", [b"w"])
    os._exit(alive.store.read("k") != b"v")
assert os.waitpid(child, 0)[1] == 0
assert dead.url not in [held.url for held, _process in tier._open_stores]
go.set()
thread.join()
print(bytes(dead.store.read("k")))
"""


def test_tier_that_takes_long_to_open_keeps_no_other_waiting_nor_a_forked_child(tmp_path: Path) -> None:
    with python(f"import warnings; warnings.simplefilter('ignore'){HANGS}", tmp_path) as child:
        assert child.communicate(timeout=60)[0] == "b'v'\n"
    assert child.returncode == 0


USE_MEMORY = """
import pickle, sys
from tiering.errors import UsageError
tier = pickle.loads(bytes.fromhex(sys.stdin.read()))
try:
    tier.store
except UsageError as error:
    print(error)
"""


@pytest.fixture
def shared() -> Iterator[Tier]:
    """A shared memory tier, whose holder ends with the test."""
    tier = open_tier(f"shm://test-{secrets.token_hex(8)}", "shared")
    yield tier
    tier.close()
    open_module._held.pop((tier.url, os.getpid())).close()


def test_driver_that_nobody_knows_is_refused() -> None:
    tier = open_tier("s3://bucket/x", "lake", options={"driver": "obstor"})
    with pytest.raises(ConfigError, match=r"option driver of tier 'lake' is 'obstor'.*obstore"):
        tier.store.stat("k")


def test_memory_tier_refuses_use_in_another_process(memory: Tier) -> None:
    with python(USE_MEMORY) as child:
        told, _ = child.communicate(pickle.dumps(memory).hex())
    assert "lives in the process that opened it" in told
    assert "Use a shm:// or file tier" in told


def test_read_only_tier_refuses_changes(make_tier: Callable[..., Tier]) -> None:
    make_tier("lake").store.write("k", [b"v"])
    tier = make_tier("lake", read_only=True)
    assert tier.store.read("k") == b"v"
    with pytest.raises(UsageError, match="read-only"):
        tier.store.write("k", [b"w"])
    with pytest.raises(UsageError, match="read-only"):
        tier.store.delete("k")
    with pytest.raises(UsageError, match="read-only"):
        small(tier)
    with pytest.raises(UsageError, match="read-only"):
        plan_move(small(make_tier("other")), tier)


def test_tier_room_is_the_smaller_of_capacity_and_medium(make_tier: Callable[..., Tier]) -> None:
    tier = make_tier("lake", capacity=10)
    tier.store.write("a/b", [b"1234567"])
    assert tier.used_bytes() == 7
    assert tier.room_bytes() == 3
    tier.store.write("c", [b"12345"])
    assert tier.room_bytes() == 0
    assert make_tier("lake", capacity=10**18).room_bytes() == pytest.approx(tier.store.free_bytes(), rel=0.01)
    assert open_tier("memory://unlimited").room_bytes() is None


def test_memory_tier_of_bounded_capacity_is_full_in_time() -> None:
    tier = open_tier("memory://bounded", capacity=5)
    tier.store.write("k", [b"12345"])
    with pytest.raises(CapacityExceeded):
        tier.store.write("l", [b"1"])
    tier.store.delete("k")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"retry_attempts": 0}, ["retry_attempts of tier 't' is 0", "retry_attempts = 5"]),
        ({"retry_attempts": True}, ["retry_attempts", "True"]),
        ({"retry_attempts": 2.0}, ["retry_attempts", "2.0"]),
        ({"retry_seconds": "60"}, ["retry_seconds", "'60'", "retry_seconds = 60"]),
        ({"retry_seconds": 0}, ["retry_seconds", "is 0"]),
        ({"breaker_failures": -1}, ["breaker_failures", "-1", "breaker_failures = 10"]),
        ({"breaker_seconds": float("inf")}, ["breaker_seconds", "inf", "breaker_seconds = 15"]),
        ({"operation_deadline_seconds": float("nan")}, ["operation_deadline_seconds", "nan", "= 120"]),
        ({"max_bytes_per_second": "fast"}, ["max_bytes_per_second", "'fast'", '"200MB"']),
        ({"max_bytes_per_second": 0}, ["max_bytes_per_second", "= 0 ", '"200MB"']),
        ({"max_requests_per_second": -1}, ["max_requests_per_second", "-1", "= 50"]),
    ],
)
@pytest.mark.parametrize("url", ["/mnt", "s3://bucket", "memory://x", "shm://x", "block:///dev/x"])
def test_tier_wrapper_option_that_is_wrong_is_refused_with_an_example(
    url: str, given: dict[str, Any], told: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        open_tier(url, "t", options=given)
    for words in told:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"high_water": 1.5}, ["high_water = 1.5", "Example: high_water = 0.95"]),
        ({"low_water": 0}, ["low_water = 0 ", "Example: low_water = 0.85"]),
        ({"low_water": True}, ["low_water = True"]),
        ({"high_water": "x"}, ["high_water = 'x'"]),
        ({"high_water": float("nan")}, ["high_water = nan"]),
        ({"high_water": 0.5}, ["low_water = 0.85 is not below high_water = 0.5"]),
        ({"high_water": 0.5, "low_water": 0.5}, ["not below"]),
    ],
)
def test_tier_water_marks_that_are_wrong_are_refused(given: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        open_tier("/mnt", **given)
    for words in told:
        assert words in str(caught.value)


def test_tier_water_marks_are_values_of_the_tier() -> None:
    tier = open_tier("/mnt")
    assert (tier.low_water, tier.high_water) == (0.85, 0.95)
    tier = open_tier("/mnt", low_water=0.2, high_water=1)
    assert (tier.low_water, tier.high_water) == (0.2, 1)
    assert pickle.loads(pickle.dumps(tier)) == tier


def test_shared_memory_tier_serves_other_processes_and_outlives_close(shared: Tier) -> None:
    shared.store.write("k", [b"v"])
    shared.close()
    with python(READ_KEY) as child:
        told, _ = child.communicate(pickle.dumps(shared).hex())
    assert told == "b'v'\n"
    assert shared.store.read("k") == b"v"


READ_KEY = """
import pickle, sys
tier = pickle.loads(bytes.fromhex(sys.stdin.read()))
print(bytes(tier.store.read("k")))
"""


def test_shared_memory_tier_is_used_by_workers_of_a_cluster(
    shared: Tier, lake: Tier, cluster: Client
) -> None:
    corpus = small(lake)
    report = plan_move(corpus, shared).run(client=cluster, progress=False)
    assert report.moved == 6
    assert cluster.submit(look, shared, pure=False).result() == sorted(objects(shared))
    assert verify(corpus, shared, client=cluster, progress=False).ok


def look(tier: Tier) -> list[str]:
    return [info.key for info in tier.store.list()]
