"""Tiers that hang: calls end as typed errors in time; training goes on from another copy, and comes back."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders import Loader
from tests.servers import BUCKET, REFERENCES, silent_server
from tests.tiering.reader_tools import FORMATS, ROWS, alone, stage
from tests.tiering.stores.wrapper_tools import Clock, calls
from tiering import Corpus, NodeCache, Tier, open_corpus, open_tier, plan_move, release, verify
from tiering import tier as tier_module
from tiering.claim import claims
from tiering.errors import Conflict, DeadlineExceeded, TieringError, Unavailable
from tiering.stores.base import Store
from tiering.stores.wrappers import Breaker, CircuitOpen, Deadline, Guard, Retry, Wrapper

SHORT = 0.05
"""Seconds that a call which hangs is given; nothing depends on how long it really takes."""


class Hanging(Guard):
    """A store whose calls never end while `go` is cleared, as on a dead mount."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.go = threading.Event()
        self.asked = 0

    def list(self, prefix: str = "") -> Iterator[Any]:
        return self._call(prefix, lambda: self.inner.list(prefix))

    def _call(self, key: str, call: Callable[[], Any]) -> Any:
        self.asked += 1
        self.go.wait()
        return call()


class HangingDeletes(Wrapper):
    """A store whose deletes of shards take effect only when `go` is set."""

    def __init__(self, inner: Store, kept: set[str]) -> None:
        super().__init__(inner)
        self.kept = kept
        self.go = threading.Event()

    def delete(self, key: str) -> None:
        if key in self.kept:
            self.go.wait()
        super().delete(key)


@contextmanager
def hanging(tier: Tier, clock: Clock, failures: int = 3) -> Iterator[tuple[Hanging, Breaker]]:
    """The tier's store hangs, behind the wrappers of a tier with a deadline."""
    place = (tier, os.getpid())
    raw = Hanging(tier.store)
    breaker = Breaker(Deadline(raw, SHORT), failures, 30, clock=clock)
    tier_module._open_stores[place] = Retry(breaker, 2, 60, clock=clock, sleep=clock.sleep)
    try:
        yield raw, breaker
    finally:
        tier_module._open_stores[place] = raw.inner
        raw.go.set()
        breaker.inner.close()
        for thread in threading.enumerate():
            if thread.name == f"deadline-{tier.name}":
                thread.join(60)
                assert not thread.is_alive()


def rows(corpus: Corpus, **options: Any) -> list[np.ndarray[Any, Any]]:
    """All rows of an epoch, in its order."""
    loader = Loader(corpus, 40, drop_last=False, **options)
    column = corpus.schema.names[0]
    found = [row for batch in loader for row in batch[column]]
    assert loader.stats.damaged == []  # a tier that hangs has no bad copies
    return found


@pytest.mark.parametrize("kind", FORMATS)
def test_hanging_tier_is_left_for_another_copy_and_taken_up_again(tmp_path: Path, kind: str) -> None:
    staged = stage(tmp_path, kind)
    wanted = rows(staged)
    assert len(wanted) == ROWS
    clock = Clock()
    with hanging(staged.tier, clock) as (raw, breaker):
        assert np.array_equal(rows(staged), wanted)
        assert breaker.state == "open"
        assert raw.asked <= 20  # threads that were under way; not once for each of the blocks
        asked = raw.asked
        assert np.array_equal(rows(staged), wanted)
        assert raw.asked == asked  # nobody waits for it any more
        clock.now += 31
        assert np.array_equal(rows(staged), wanted)
        assert (raw.asked, breaker.state) == (asked + 1, "open")  # one probe
        raw.go.set()
        breaker.inner._seconds = 250.0  # type: ignore[attr-defined]  # it is well: no haste on a busy machine
        clock.now += 31
        assert np.array_equal(rows(staged), wanted)
        assert breaker.state == "closed"
        assert raw.asked > asked + 10


def test_hanging_tier_without_another_copy_is_a_typed_error(tmp_path: Path) -> None:
    staged = alone(stage(tmp_path, "zarr"))
    clock = Clock()
    with hanging(staged.tier, clock), pytest.raises((DeadlineExceeded, Unavailable)) as caught:
        rows(staged)
    assert caught.value.tier == "disk"
    assert caught.value.hint


def test_hanging_tier_behind_a_node_cache_gives_way_too(tmp_path: Path) -> None:
    staged = stage(tmp_path, "zarr")
    wanted = rows(staged)
    clock = Clock()
    cache = NodeCache(tmp_path / "cache", "1GB")
    with hanging(staged.tier, clock):
        assert np.array_equal(rows(staged, cache=cache), wanted)
    assert np.array_equal(rows(staged, cache=cache), wanted)
    cache.close()


def test_hanging_source_fails_the_move_in_time_and_the_next_one_ends_it(tmp_path: Path) -> None:
    staged = stage(tmp_path, "zarr")
    target = open_tier(tmp_path / "target", "target")
    clock = Clock()
    plan = plan_move(staged, target)
    with hanging(staged.tier, clock), pytest.raises((DeadlineExceeded, Unavailable)):
        plan.run(progress=False)
    assert plan_move(staged, target).run(progress=False).moved
    assert verify(open_corpus(target, staged.name), progress=False).ok


def test_hanging_target_fails_the_move_in_time_and_the_next_one_ends_it(tmp_path: Path) -> None:
    staged = stage(tmp_path, "zarr")
    target = open_tier(tmp_path / "target", "target")
    clock = Clock()
    plan = plan_move(staged, target)
    with hanging(target, clock), pytest.raises((DeadlineExceeded, Unavailable)):
        plan.run(progress=False)
    assert plan_move(staged, target).run(progress=False).moved
    assert verify(open_corpus(target, staged.name), progress=False).ok


def test_delete_that_was_given_up_takes_nothing_from_a_later_move(tmp_path: Path) -> None:
    staged = stage(tmp_path, "zarr")
    disk, name = staged.tier, staged.name
    (lake,) = staged.others
    place = (disk, os.getpid())
    raw = HangingDeletes(disk.store, set(map(staged.key, staged.manifest["key"].to_pylist())))
    deadline = Deadline(raw, SHORT)
    tier_module._open_stores[place] = Retry(deadline, 2, 60, sleep=lambda _seconds: None)
    try:
        with pytest.raises(DeadlineExceeded):
            release(open_corpus(lake, name), disk)
        (held,) = [claim for claim in claims(disk.store, name).all() if claim.counts]
        assert held.purpose == "released"
        with pytest.raises(Conflict, match="is being released"):
            plan_move(open_corpus(lake, name), disk).run(progress=False)
        raw.go.set()
        deadline._seconds = 250.0
        while claims(disk.store, name).read(held.number).counts:  # type: ignore[union-attr]
            time.sleep(0.001)
        assert plan_move(open_corpus(lake, name), disk).run(progress=False).moved
        assert release(open_corpus(disk, name), lake)
    finally:
        tier_module._open_stores[place] = raw.inner
        raw.go.set()
        deadline.close()
    assert verify(open_corpus(disk, name), progress=False).ok


@pytest.mark.usefixtures("s3_environment")
def test_silent_server_opens_the_breaker_and_every_call_is_a_typed_error() -> None:
    with silent_server() as url:
        options = {**REFERENCES, "endpoint_url": url, "deadline_seconds": 0.1}
        options |= {"retry_attempts": 2, "retry_seconds": 5, "breaker_failures": 4, "breaker_seconds": 0.01}
        tier = open_tier(f"s3://{BUCKET}/silent", "lake", options=options)
        try:
            store = tier.store
            while not isinstance(store, Breaker):
                assert isinstance(store, Wrapper)
                store = store.inner
            for name in ("stat", "read", "write_if_absent", "list"):
                with pytest.raises((DeadlineExceeded, Unavailable)) as caught:
                    calls()[name](tier.store)
                assert caught.value.tier == "lake"
            assert store.state == "open"
            store._cooldown_seconds = store._probe_at = 1e12  # from here on no probe is due
            for call in calls().values():
                with pytest.raises(CircuitOpen, match="The next probe is due") as refused:
                    call(tier.store)
                assert isinstance(refused.value, TieringError)
        finally:
            tier.close()
