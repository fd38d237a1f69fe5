from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from dask.delayed import delayed
from distributed import Client

from tests.tiering.corpora import copy_of, flip, shard_keys, small, small_arrow, without_claims, wrapped
from tiering import Corpus, Tier, catalog, open_corpus, open_tier, plan_move, verify
from tiering.digest import digest
from tiering.errors import Corrupt, NotFound, Unavailable, UsageError
from tiering.stores.wrappers import Wrapper

MAKERS = pytest.mark.parametrize("make", [small, small_arrow], ids=["zarr", "arrow"])


@MAKERS
def test_move_makes_the_same_objects(lake: Tier, disk: Tier, make: Callable[..., Corpus]) -> None:
    corpus = make(lake)
    report = plan_move(corpus, disk).run()
    assert (report.moved, report.skipped, report.nbytes) == (len(corpus.manifest), 0, corpus.nbytes)
    assert without_claims(disk) == without_claims(lake)
    assert corpus.at(disk).others == (lake,)
    assert verify(corpus, disk).ok


def test_move_again_skips_what_is_there_and_mends_what_is_not(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    copy_of(corpus, disk)
    keys = shard_keys(corpus)
    disk.store.delete(keys[0])
    disk.store.write(keys[1], [b"short"])
    flip(disk, keys[2])
    flip(disk, "web/zarr.json")
    flip(disk, catalog.manifest_key("web", corpus.record.manifest))
    report = plan_move(corpus, disk).run()
    assert (report.moved, report.skipped) == (3, 3)
    assert without_claims(disk) == without_claims(lake)


def test_move_of_a_corrupt_source_names_shard_and_tier_and_publishes_nothing(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    key = shard_keys(corpus)[4]
    for spoil in (lambda: flip(lake, key), lambda: lake.store.write(key, [b"short"])):
        spoil()
        with pytest.raises(Corrupt) as caught:
            plan_move(corpus, disk).run()
        assert (caught.value.tier, caught.value.key) == ("lake", key)
        with pytest.raises(NotFound):
            open_corpus(disk, "web")
    lake.store.delete(key)
    with pytest.raises(NotFound) as missing:
        plan_move(corpus, disk).run()
    assert (missing.value.tier, missing.value.key) == ("lake", key)
    with pytest.raises(NotFound):
        open_corpus(disk, "web")


def test_move_of_a_damaged_manifest_publishes_nothing(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    plan = plan_move(corpus, disk)
    flip(lake, catalog.manifest_key("web", corpus.record.manifest))
    with pytest.raises(Corrupt, match="the manifest has other bytes"):
        plan.run()
    with pytest.raises(NotFound):
        open_corpus(disk, "web")


def test_move_of_one_version_leaves_the_other_alone(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    newer = replace(corpus.contents, intent=digest(b"newer"))
    catalog.publish(lake.store, "web", 2, newer, newer.encode())
    copy_of(open_corpus(lake, "web", 1), disk)
    assert catalog.versions(disk.store, "web") == [1]
    copy_of(open_corpus(lake, "web", 2), disk)
    assert catalog.versions(disk.store, "web") == [1, 2]


@pytest.mark.parametrize("on_cluster", [False, True])
def test_move_graph_does_what_run_does(
    lake: Tier, disk: Tier, make_tier: Callable[..., Tier], cluster: Client, on_cluster: bool
) -> None:
    corpus = small(lake)
    other = make_tier("other")
    whole = plan_move(corpus, disk, release=True).graph()
    plan_move(corpus, other).run(cluster if on_cluster else None)
    doubled = delayed(lambda moved: 2 * moved, pure=False)(whole)
    found = cluster.compute(doubled).result() if on_cluster else doubled.compute(scheduler="synchronous")
    assert found == 12
    assert without_claims(disk) == without_claims(other)
    assert without_claims(lake) == {}
    assert verify(open_corpus(disk, "web"), client=cluster).ok


def test_move_graph_computed_again_ends_the_release_that_was_cut_short(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    plan = plan_move(corpus, disk, release=True)
    shard = shard_keys(corpus)[3]

    class Stops(Wrapper):
        def delete(self, key: str) -> None:
            if key == shard:
                raise Unavailable("stopped")
            super().delete(key)

    whole = plan.graph()
    with wrapped(lake, Stops(lake.store)), pytest.raises(Unavailable):
        whole.compute(scheduler="synchronous")
    assert not catalog.is_published(lake.store, "web", 1)
    assert without_claims(lake)
    assert whole.compute(scheduler="synchronous") == 0
    assert without_claims(lake) == {}
    assert whole.compute(scheduler="synchronous") == 0  # nothing is left to do
    assert verify(open_corpus(disk, "web")).ok


def test_move_from_a_read_only_source_with_release_is_refused_before_anything(lake: Tier, disk: Tier) -> None:
    small(lake)
    locked = open_tier(lake.url, "locked", read_only=True)
    with pytest.raises(UsageError, match="the source is read-only, and shall be released") as caught:
        plan_move(open_corpus(locked, "web"), disk, release=True)
    assert caught.value.tier == "locked"
    assert without_claims(disk) == {}


def test_move_graph_carries_no_manifest(lake: Tier, disk: Tier) -> None:
    from distributed.protocol.pickle import dumps

    corpus = small(lake, rows=4000)
    whole = plan_move(corpus, disk).graph()
    assert corpus.contents.shards == 1000
    assert len(dumps(dict(whole.dask))) < 1000 * 150


def test_move_on_a_cluster_with_a_memory_tier_runs_here(lake: Tier, memory: Tier, cluster: Client) -> None:
    corpus = small(lake)
    assert plan_move(corpus, memory).run(cluster).moved == 6
    assert verify(corpus, memory, client=cluster).ok
    with pytest.raises(UsageError, match="lives in the process that opened it"):
        cluster.compute(plan_move(small(lake, "two"), memory).graph()).result()


def test_move_then_release_leaves_one_copy(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    plan = plan_move(corpus, disk, release=True)
    plan.run()
    assert without_claims(lake) == {}
    assert verify(open_corpus(disk, "web")).ok
    report = plan.run()  # all was done; nothing is left to do
    assert (report.moved, report.nbytes) == (0, 0)


def test_move_whose_release_was_cut_short_goes_on(lake: Tier, disk: Tier) -> None:
    class Sick(Wrapper):
        def delete(self, key: str) -> None:
            if key == shard_keys(corpus)[3]:
                raise Unavailable("the tier went away", tier="lake")
            super().delete(key)

    corpus = small(lake)
    plan = plan_move(corpus, disk, release=True)
    with wrapped(lake, Sick(lake.store)), pytest.raises(Unavailable):
        plan.run()
    with pytest.raises(NotFound):
        open_corpus(lake, "web")
    assert verify(open_corpus(disk, "web")).ok
    plan.run()
    assert without_claims(lake) == {}
