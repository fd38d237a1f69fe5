"""A node cache looked after from outside, while others use it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.tiering.cache_tools import (
    NBYTES,
    Make,
    caches_in,
    content,
    files_below,
    held,
    name_of,
    on_disk,
    outlook,
    put,
    shard,
)  # fmt: skip
from tiering import NodeCache
from tiering.cache import Registration
from tiering.cache.upkeep import Upkeep
from tiering.errors import ConfigError, NotFound, Unavailable, UsageError


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with caches_in(tmp_path / "cache") as make_cache:
        yield make_cache


@pytest.fixture
def nodes(make: Make) -> NodeCache:
    """Four shards in a cache for five."""
    filled = make(5)
    for number in range(4):
        put(filled, number)
    return filled


def test_upkeep_of_no_cache_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no node cache in"):
        Upkeep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_upkeep_status_is_what_the_cache_says_and_evicts_nothing(make: Make, nodes: NodeCache) -> None:
    put(nodes, 0)
    smaller = make(4)  # the last that said a capacity
    assert smaller.status().shards == 4
    with Upkeep(nodes.path) as upkeep:
        status = upkeep.status()
    assert (status.policy, status.capacity_bytes, status.used_bytes) == ("pin", 4 * NBYTES, 4 * NBYTES)
    assert (status.counts.hits, status.counts.misses, status.counts.hit_ratio) == (1, 4, 0.2)
    assert not status.resized


def test_cache_counts_requests_of_all_processes_and_makes(make: Make, nodes: NodeCache) -> None:
    nodes.close()
    put(make(5), 1)
    files_below(nodes.path)[0].unlink()
    for number in range(4):
        put(make(5), number)
    counts = make(5).status().counts
    assert (counts.hits, counts.misses) == (4, 5)
    assert (counts.hit_bytes, counts.miss_bytes) == (4 * NBYTES, 5 * NBYTES)


def test_upkeep_clear_drops_all_but_what_is_being_filled_and_who_has_one_open_reads_on(
    make: Make, nodes: NodeCache
) -> None:
    opened = nodes.locate(name_of(0)).path.open("rb")

    def fetch() -> Sequence[bytes]:
        with Upkeep(nodes.path) as upkeep:
            assert upkeep.clear() == (4, 4 * NBYTES)
            assert upkeep.clear() == (0, 0)
        return [shard(9)]

    assert nodes.get(name_of(9), NBYTES, fetch)
    with opened:
        assert opened.read() == shard(0)
    assert held(nodes) == [9]
    status = nodes.status()
    assert (status.used_bytes, status.counts.hits, status.counts.misses) == (NBYTES, 0, 0)


def test_upkeep_resize_counts_for_those_that_run_and_those_to_come(
    make: Make, nodes: NodeCache, caplog: pytest.LogCaptureFixture
) -> None:
    with Upkeep(nodes.path) as upkeep:
        assert upkeep.resize(2 * NBYTES).used_bytes == on_disk(nodes) == 2 * NBYTES
        assert held(nodes) == [0, 1]
        assert not put(nodes, 2)  # it runs, and does not grow back
        assert nodes.capacity_bytes == 2 * NBYTES
        other = make(9)
        assert not put(other, 2)
        assert (other.status().capacity_bytes, other.status().resized) == (2 * NBYTES, True)
        assert upkeep.resize(7 * NBYTES).capacity_bytes == 7 * NBYTES
        assert all(put(nodes, number) for number in range(7))
        assert upkeep.resize(None).resized is False
    assert not put(nodes, 8)
    assert nodes.status().used_bytes == 5 * NBYTES
    assert nodes.capacity_bytes == 5 * NBYTES
    assert [record.message.count("was resized to") for record in caplog.records] == [1, 1, 1]


def test_upkeep_resize_below_what_is_being_filled_holds_once_it_is_whole(nodes: NodeCache) -> None:
    def fetch() -> Sequence[bytes]:
        with Upkeep(nodes.path) as upkeep:
            assert upkeep.resize(NBYTES // 2).used_bytes == NBYTES  # reserved by a fill that lives
        return [shard(9)]

    nodes.get(name_of(9), NBYTES, fetch)
    assert nodes.status().used_bytes == on_disk(nodes) == 0


def test_upkeep_resize_evicts_what_living_readers_use_last(make: Make) -> None:
    nodes, reader = make(4, "clairvoyant"), Registration()
    nodes.foretell(reader, outlook([[0, 1, 2, 3], [3, 1, 0, 2]]))
    for number in range(4):
        assert put(nodes, number, reader=reader)
    with Upkeep(nodes.path) as upkeep:
        upkeep.resize(2 * NBYTES)
    assert held(nodes) == [1, 3]


@pytest.mark.parametrize("size", ["", "-1", "much", 0])
def test_upkeep_resize_to_no_size_is_refused(nodes: NodeCache, size: str | int) -> None:
    with Upkeep(nodes.path) as upkeep, pytest.raises(ConfigError, match="capacity"):
        upkeep.resize(size)
    assert len(held(nodes)) == 4


def test_upkeep_verify_drops_and_names_bad_copies(nodes: NodeCache) -> None:
    bad, cut, gone = (nodes.path / "objects" / name_of(n)[:2] / name_of(n) for n in (0, 1, 2))
    data = bytearray(bad.read_bytes())
    data[500] ^= 1
    bad.write_bytes(data)
    os.truncate(cut, 10)
    gone.unlink()
    with Upkeep(nodes.path) as upkeep:
        report = upkeep.verify()
        assert not report.ok
        assert sorted(report.corrupt) == sorted([name_of(0), name_of(1)])  # what is gone is not there
        assert held(nodes) == [3]
        assert (report.checked, report.nbytes, report.share) == (3, 2 * NBYTES + 10, 1.0)
        assert upkeep.verify().ok
    assert put(nodes, 0)
    assert content(nodes, 0) == shard(0)


def test_upkeep_verify_in_parts_reads_each_copy_once(nodes: NodeCache) -> None:
    with Upkeep(nodes.path) as upkeep:
        parts = [upkeep.verify((k, 3)) for k in (1, 2, 3)]
        assert sum(part.checked for part in parts) == 4
        assert sum(part.share for part in parts) == pytest.approx(1)
        with pytest.raises(UsageError, match="part of anything"):
            upkeep.verify("4/3")


def test_upkeep_verify_passes_over_what_was_evicted_meanwhile(
    nodes: NodeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Upkeep(nodes.path) as upkeep:
        good = Upkeep._is_good

        def evicting(self: Upkeep, name: str, nbytes: int) -> bool:
            nodes.discard(name_of(1))
            return good(self, name, nbytes)

        monkeypatch.setattr(Upkeep, "_is_good", evicting)
        report = upkeep.verify()
    assert report.ok
    assert report.checked == 3


def test_upkeep_of_a_sick_cache_is_an_error_that_names_it(nodes: NodeCache) -> None:
    nodes.close()
    (nodes.path / "locks" / "index").unlink()
    (nodes.path / "locks" / "index").mkdir()
    with Upkeep(nodes.path) as upkeep, pytest.raises(Unavailable, match=str(nodes.path)):
        upkeep.status()


def test_upkeep_of_an_index_made_anew_does_not_know_the_capacity(nodes: NodeCache) -> None:
    nodes.close()
    nodes._content.index_path.write_bytes(b"not a database" * 1000)
    with Upkeep(nodes.path) as upkeep:
        status = upkeep.status()
    assert (status.capacity_bytes, status.policy, status.shards) == (None, "auto", 4)
