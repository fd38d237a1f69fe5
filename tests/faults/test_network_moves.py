"""Whole moves over a network that cuts, stalls, lies and flips: done, or an error and then done."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import proxy as faults
from tests.faults.network import (
    DEADLINE_SECONDS,
    PATIENCE_SECONDS,
    READ_FAULTS,
    WRITE_FAULTS,
    uploads,
)
from tests.proxy import Fault, Proxy, every, first, proxy
from tests.servers import BUCKET, Endpoint
from tests.tiering.corpora import small
from tiering import Tier, catalog, open_corpus, open_tier, plan_move, verify
from tiering.errors import (
    Corrupt,
    TieringError,
)

DRIVERS = pytest.mark.parametrize("driver", ["obstore", "s3fs"])

pytestmark = pytest.mark.usefixtures("s3_environment")


MOVE_READS = {**READ_FAULTS, "flipped": faults.flipped_answer(1000)}
MOVE_READS_S3FS = ("truncated", "flipped")
MOVE_WRITES = tuple(name for name in WRITE_FAULTS if name != "flipped")
MOVE_WRITES_S3FS = ("answer-lost",)


@contextlib.contextmanager
def lake(endpoint: Endpoint, prefix: str, driver: str, deadline_seconds: float) -> Iterator[Tier]:
    options = endpoint.options(driver=driver, deadline_seconds=deadline_seconds)
    tier = open_tier(f"s3://{BUCKET}/{prefix}", "lake", options=options)
    with contextlib.closing(tier):
        yield tier


def check_converges(source: Tier, target: Tier, good_source: Tier, good_target: Tier) -> None:
    """A move that meets faults is done or fails with a type, never half published; the next one is done."""
    corpus = open_corpus(good_source, "web")
    with contextlib.suppress(TieringError):
        plan_move(open_corpus(source, "web"), target).run(progress=False)
    if catalog.versions(good_target.store, "web"):
        assert verify(corpus, good_target).ok
    plan_move(corpus, good_target).run(progress=False)
    assert verify(corpus, good_target).ok


@pytest.mark.parametrize(
    ("driver", "name"),
    [*(("obstore", name) for name in MOVE_READS), *(("s3fs", name) for name in MOVE_READS_S3FS)],
)
@pytest.mark.parametrize("times", [1, pytest.param(1000, marks=pytest.mark.nightly)])
def test_move_to_file_converges(
    driver: str, name: str, times: int, relay: Proxy, prefix: str, tmp_path: Path
) -> None:
    with (
        lake(relay.target, prefix, driver, PATIENCE_SECONDS) as good,
        lake(relay.endpoint, prefix, driver, DEADLINE_SECONDS) as source,
    ):
        small(good, rows=10)
        disk = open_tier(tmp_path / "disk", "disk")
        relay.rule = first("GET", MOVE_READS[name], times)
        check_converges(source, disk, good, disk)


@pytest.mark.parametrize(
    ("driver", "name"),
    [*(("obstore", name) for name in MOVE_WRITES), *(("s3fs", name) for name in MOVE_WRITES_S3FS)],
)
@pytest.mark.parametrize("after", [4, pytest.param(0, marks=pytest.mark.nightly)])
def test_move_to_object_converges(
    driver: str, name: str, after: int, relay: Proxy, prefix: str, tmp_path: Path
) -> None:
    """From the first write on, which is the claim, or from the first shard on."""
    check_writing(relay, prefix, driver, after, WRITE_FAULTS[name], tmp_path)


@pytest.mark.ceph
@DRIVERS
@pytest.mark.parametrize("after", [4, pytest.param(0, marks=pytest.mark.nightly)])
def test_move_with_flipped_uploads_converges_where_the_server_checks(
    driver: str, after: int, ceph_endpoint: Endpoint, prefix: str, tmp_path: Path
) -> None:
    with proxy(ceph_endpoint) as relay:
        check_writing(relay, prefix, driver, after, faults.flipped_request(100), tmp_path)


def check_writing(relay: Proxy, prefix: str, driver: str, after: int, fault: Fault, folder: Path) -> None:
    disk = open_tier(folder / "disk", "disk")
    small(disk, rows=10)
    with (
        lake(relay.target, prefix, driver, PATIENCE_SECONDS) as good,
        lake(relay.endpoint, prefix, driver, DEADLINE_SECONDS) as target,
    ):
        skipped, faulty = first("PUT", faults.passed_on, after), every("PUT", fault)
        relay.rule = lambda request: skipped(request) or faulty(request)
        check_converges(disk, target, disk, good)
    assert uploads(relay.target, prefix) == []


def test_flipped_claims_on_a_server_that_does_not_check_leave_nothing_behind(
    relay: Proxy, prefix: str, tmp_path: Path
) -> None:
    """Moto stores what it gets; a claim is read back, and what is not the claim is taken away again."""
    disk = open_tier(tmp_path / "disk", "disk")
    corpus = small(disk, rows=10)
    with (
        lake(relay.target, prefix, "obstore", PATIENCE_SECONDS) as good,
        lake(relay.endpoint, prefix, "obstore", PATIENCE_SECONDS) as target,
    ):
        relay.rule = lambda request: faults.flipped_request(0) if "/claims/" in request.path else None
        with pytest.raises(Corrupt, match="claim") as caught:
            plan_move(corpus, target).run(progress=False)
        assert caught.value.key == "web/.tiering/claims/00000001.json"
        assert catalog.versions(good.store, "web") == []
        assert list(good.store.list("web/.tiering/claims")) == []
        plan_move(corpus, good).run(progress=False)
        assert verify(corpus.at(good)).ok


def test_flipped_reads_of_every_object_publish_nothing(relay: Proxy, prefix: str, tmp_path: Path) -> None:
    with lake(relay.endpoint, prefix, "obstore", PATIENCE_SECONDS) as source:
        plan = plan_move(small(source), open_tier(tmp_path / "disk", "disk"))
        relay.rule = every("GET", faults.flipped_answer(7))
        with pytest.raises(TieringError):
            plan.run(progress=False)
    assert catalog.versions(open_tier(tmp_path / "disk", "disk").store, "web") == []
