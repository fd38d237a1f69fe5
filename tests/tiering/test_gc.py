"""Garbage goes, and nothing that anybody needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from tests.tiering.corpora import (
    Full,
    dead,
    flip,
    killed_after,
    objects,
    python,
    shard_keys,
    small,
    small_arrow,
    without_claims,
    wrapped,
)
from tests.tiering.test_claim import elsewhere
from tests.tiering.test_claim import put as put_claim
from tests.tiering.test_reservation import put as put_reservation
from tiering import Tier, catalog, open_corpus, plan_move, process, release, verify
from tiering.claim import claimed, claims
from tiering.digest import digest
from tiering.errors import Conflict, LastCopy, Locked, NotFound, TieringError, UsageError
from tiering.gc import GcReport, gc
from tiering.keys import INTERNAL
from tiering.process import ProcessId
from tiering.reservation import reservations, unlock_reservations
from tiering.room import usage
from tiering.stores.wrappers import Wrapper
from tiering.tickets import holder

A = digest(b"a")


def now(tier: Tier, *names: str, **options: Any) -> GcReport:
    return gc(tier, names or None, **{"older_than_seconds": 0, **options})


def orphans(tier: Tier) -> set[str]:
    return {key for key in objects(tier) if f"/{INTERNAL}/" not in key}


def test_gc_of_a_killed_ingest_takes_its_shards_when_they_are_old(lake: Tier) -> None:
    with killed_after(5, lake):
        small(lake)
    before = objects(lake)
    left = orphans(lake)
    assert left
    assert gc(lake).garbage == ()
    planned = now(lake, dry_run=True)
    assert objects(lake) == before
    assert {one.key for one in planned.garbage} == left
    assert planned.nbytes == sum(len(before[key]) for key in left)
    assert {one.reason for one in planned.garbage} == {"orphaned: no version names it"}
    done = now(lake)
    assert set(done.garbage) == set(planned.garbage)
    assert not orphans(lake)
    assert now(lake).garbage == ()
    assert verify(small(lake)).ok


def test_gc_of_a_store_without_times_deletes_only_when_told_that_age_does_not_matter(memory: Tier) -> None:
    with killed_after(5, memory):
        small(memory)
    assert gc(memory, older_than_seconds=1e-9).garbage == ()
    assert now(memory).garbage


def test_gc_beside_a_corpus_takes_what_no_version_names_and_nothing_foreign(lake: Tier) -> None:
    corpus = small(lake)
    second = small_arrow(lake)
    whole = objects(lake)
    garbage = {
        "web/tokens/c/77/0": b"orphan",
        "text/part-000099.arrow": b"orphan",
        f"web/{INTERNAL}/manifests/{A}.parquet": b"unreferenced",
        f"web/{INTERNAL}/probes/dead": dead().text().encode(),
    }
    foreign = {
        "web/README.md": b"mine",
        "web/b/notes": b"mine",
        "theirs/part-000000.arrow": b"mine",
        "theirs/tokens/c/0/0": b"mine",
        f"web/{INTERNAL}/probes/alive": process.current().text().encode(),
        f"web/{INTERNAL}/probes/odd": b"probe",
        f"web/{INTERNAL}/quarantine/{A}": b"bad",
    }
    for key, data in {**garbage, **foreign}.items():
        lake.store.write(key, [data])
    report = now(lake, "web", "text", "theirs")
    assert {one.key for one in report.garbage} == set(garbage)
    assert {one.reason for one in report.garbage} == {
        "orphaned: no version names it",
        "unreferenced manifest",
        "probe of a dead process",
    }
    left = {key: data for key, data in objects(lake).items() if "/claims/" not in key}
    assert left == {key: data for key, data in whole.items() if "/claims/" not in key} | foreign
    assert {one.reason for one in now(lake, "web", quarantine_seconds=0).garbage} == {"old quarantine"}
    assert now(lake, "web", quarantine_seconds=3600).garbage == ()
    assert verify(corpus).ok
    assert verify(second).ok


def test_gc_of_some_names_leaves_the_others(lake: Tier) -> None:
    for name in ("a", "b"):
        small(lake, name)
        lake.store.write(f"{name}/tokens/c/77/0", [b"x"])
    assert [one.key for one in now(lake, "b").garbage] == ["b/tokens/c/77/0"]
    assert "a/tokens/c/77/0" in objects(lake)


@pytest.mark.parametrize("owner", [process.current, elsewhere], ids=["living", "elsewhere"])
def test_gc_keeps_what_somebody_may_be_at_work_on(lake: Tier, owner: Callable[[], ProcessId]) -> None:
    with killed_after(5, lake):
        small(lake)
    before = objects(lake)
    if owner is elsewhere:
        put_claim(lake, 9, A, elsewhere())
        before = objects(lake)
        report = now(lake)
    else:
        with claimed(lake.store, "web", A, shared=True):
            report = now(lake)
    assert report.garbage == ()
    ((name, why),) = report.kept
    assert name == "web"
    assert "it is being written by" in why
    assert orphans(lake) == {key for key in before if f"/{INTERNAL}/" not in key}


def test_gc_with_a_manifest_that_cannot_be_read_deletes_nothing(lake: Tier) -> None:
    corpus = small(lake)
    lake.store.write("web/tokens/c/77/0", [b"orphan"])
    flip(lake, catalog.manifest_key("web", corpus.record.manifest))
    before = objects(lake)
    report = now(lake, "web")
    assert report.garbage == ()
    assert "the manifest has other bytes" in report.kept[0][1]
    assert objects(lake) == before


def test_gc_takes_dead_claims_and_reservations_but_the_highest(lake: Tier) -> None:
    small(lake)
    for number in (5, 6, 7):
        put_claim(lake, number, A, dead())
        put_reservation(lake, number, 10, dead())
    put_reservation(lake, 4, 10, elsewhere())
    report = now(lake)
    assert sorted(one.key for one in report.garbage if one.reason == "dead reservation") == [
        f"{INTERNAL}/reservations/{number:08d}.json" for number in (1, 2, 5, 6)
    ]
    assert reservations(lake.store).numbers() == [4, 7]
    assert len([one for one in report.garbage if one.reason == "dead claim"]) >= 2
    assert len(claims(lake.store, "web").numbers()) == 1


def test_gc_of_a_read_only_tier_is_refused_but_for_a_dry_run(
    make_tier: Callable[..., Tier], lake: Tier
) -> None:
    with killed_after(5, lake):
        small(lake)
    locked = make_tier("lake", read_only=True)
    with pytest.raises(UsageError, match="read-only"):
        now(locked)
    assert now(locked, dry_run=True).garbage


class Meanwhile(Wrapper):
    """Does something before the first delete of a shard."""

    then: Any = None

    def delete(self, key: str) -> None:
        if f"/{INTERNAL}/" not in key and self.then:
            then, self.then = self.then, None
            then()
        super().delete(key)


def test_gc_refuses_a_job_that_begins_meanwhile(lake: Tier) -> None:
    with killed_after(5, lake):
        small(lake)

    def job() -> None:
        with pytest.raises(Conflict, match="is being cleaned up by process"):
            small(lake)

    with wrapped(lake, Meanwhile(lake.store)) as store:
        store.then = job
        assert now(lake).kept == ()
        assert store.then is None
    assert not orphans(lake)


def test_gc_whose_claim_was_taken_away_stops(lake: Tier) -> None:
    with killed_after(8, lake):
        small(lake)
    left = orphans(lake)

    def taken() -> None:
        line = claims(lake.store, "web")
        mine = line.read(max(line.numbers()))
        assert mine is not None
        lake.store.write(line.key(mine.number), [mine.as_released().encode()])

    with wrapped(lake, Meanwhile(lake.store)) as store:
        store.then = taken
        report = now(lake)
    assert report.kept == (("web", "the claim on corpus 'web' was taken away"),)
    assert len(orphans(lake)) == len(left) - 1


def test_gc_between_the_tasks_of_a_graph_makes_it_start_over(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    tasks = list(plan_move(corpus, disk).tasks(final_bytes=0))
    whole = plan_move(corpus, disk).graph()
    for task in tasks:
        task.compute(scheduler="synchronous")
    assert len(now(disk).garbage) == 6
    assert whole.compute(scheduler="synchronous") == 6
    assert verify(corpus, disk).ok


@pytest.mark.parametrize("job", ["ingest", "move", "release"])
def test_gc_after_a_kill_anywhere_leaves_whole_versions_alone_and_no_orphan(
    make_tier: Callable[..., Tier], job: str
) -> None:
    for step in range(1, 40, 3):
        lake, disk = make_tier(f"lake{step}"), make_tier(f"disk{step}")
        if job != "ingest":
            corpus = small(lake)
        if job == "release":
            plan_move(corpus, disk).run()
        done = False
        with killed_after(step, lake, disk):
            if job == "ingest":
                small(lake)
            elif job == "move":
                plan_move(corpus, disk).run()
            else:
                release(corpus, lake, copies=[disk])
            done = True
        whole = 0
        for tier in (lake, disk):
            now(tier)
            if catalog.versions(tier.store, "web"):
                found = verify(open_corpus(tier, "web"))
                assert found.ok
                assert found.extra == ()
                whole += 1
            else:
                assert not orphans(tier)
        assert whole or job == "ingest"
        small(lake)
        assert verify(open_corpus(lake, "web")).ok
        if done:
            break
    assert done


LOOP = """
import sys, threading
from tiering import open_tier
from tiering.gc import gc
end = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), end.set()), daemon=True).start()
tiers = [open_tier(url) for url in sys.argv[1:]]
found = laps = 0
print("begun", flush=True)
while not end.is_set():
    for tier in tiers:
        found += len(gc(tier, older_than_seconds=0).garbage)
    laps += 1
print(found, laps, flush=True)
"""
ROUNDS = 8


def at_last(work: Callable[[], Any]) -> Any:
    """Do it again while the collector has the name."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return work()
        except (Conflict, LastCopy):  # the proof may be what is being looked at
            assert time.monotonic() < deadline


def test_gc_in_a_loop_beside_jobs_loses_nothing(lake: Tier, disk: Tier) -> None:
    with python(LOOP, lake.url, disk.url) as collector:
        assert collector.stdout is not None
        assert collector.stdout.readline() == "begun\n"
        for lap in range(ROUNDS):
            for changes in (4, 9):
                with killed_after(changes, lake), suppress(Conflict):
                    small(lake, seed=99)
            corpus = at_last(lambda lap=lap: small(lake, seed=lap))
            assert verify(corpus).ok
            with killed_after(6 + lap, disk), suppress(TieringError):
                plan_move(corpus, disk).run()
            at_last(lambda corpus=corpus: plan_move(corpus, disk).run())
            assert verify(corpus, disk).ok
            with killed_after(3 + lap, lake, disk), suppress(TieringError):
                release(corpus, lake, copies=[disk])
            there = corpus.at(disk)
            at_last(lambda there=there: release(there, lake))
            assert verify(there).ok
            at_last(lambda there=there: plan_move(there, lake).run())
            at_last(lambda there=there: release(there.at(lake), disk))
            assert verify(open_corpus(lake, "web")).ok
            at_last(lambda there=there: plan_move(there.at(lake), disk).run())
            at_last(lambda there=there: release(there.at(disk), lake))
            at_last(lambda: _drop(disk))
        told, _ = collector.communicate("")
    found, laps = map(int, told.split())
    assert collector.returncode == 0
    assert laps > ROUNDS
    assert found > 0


def _drop(tier: Tier) -> None:
    from tiering.forget import forget

    forget(tier, "web", last_copy=True)


def test_unlock_needs_the_holder_and_never_takes_from_the_living(lake: Tier) -> None:
    stranger = elsewhere()
    put_claim(lake, 1, A, stranger)
    put_reservation(lake, 1, 10, stranger, "web")
    with pytest.raises(Conflict, match="tiering unlock web --on lake --claim 1"):
        small(lake)
    with pytest.raises(Conflict, match=f"held by {holder(stranger)}, not by 'me'"):
        claims(lake.store, "web").unlock(1, "me")
    with pytest.raises(NotFound, match="no claim 2 is held"):
        claims(lake.store, "web").unlock(2, holder(stranger))
    claim = claims(lake.store, "web").unlock(1, holder(stranger))
    assert unlock_reservations(lake.store, "web", claim.owner) == 1
    assert usage(lake).reserved_bytes == 0
    with pytest.raises(NotFound):
        claims(lake.store, "web").unlock(1, holder(stranger))
    assert verify(small(lake)).ok
    with claimed(lake.store, "web", A, shared=True) as mine, pytest.raises(Locked, match="which lives"):
        claims(lake.store, "web").unlock(mine.number, holder(mine.owner))


def test_verify_tells_shards_of_dead_work_as_extra(lake: Tier) -> None:
    corpus = small(lake)
    lake.store.write("web/tokens/c/77/0", [b"orphan"])
    assert verify(corpus).extra == ("tokens/c/77/0",)
    assert shard_keys(corpus)[0] not in verify(corpus).extra


def test_gc_of_a_tier_that_is_full_makes_room(lake: Tier) -> None:
    corpus = small(lake)
    lake.store.write("web/tokens/c/99/0", [b"orphan"])
    before = without_claims(lake)
    with wrapped(lake, Full(lake.store, 0)):
        assert [one.key for one in now(lake, "web").garbage] == ["web/tokens/c/99/0"]
    del before["web/tokens/c/99/0"]
    assert without_claims(lake) == before  # HEAD, which made room for the claim, is back
    assert verify(corpus).ok
