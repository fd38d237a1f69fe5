"""Networks that cut, stall, lie and flip: a typed error within the deadline or right bytes, and nothing else.

There are no assertions of time here: a call that hangs meets the timeout of the test.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests import proxy as faults
from tests.certificates import self_signed, server_side
from tests.conformance.patterns import pattern
from tests.faults.network import (
    DEADLINE_SECONDS,
    LONG,
    READ_FAULTS,
    WRITE_FAULTS,
    StoreMaker,
    direct,
    opened,
    some,
    uploads,
)
from tests.proxy import Exchange, Fault, Proxy, Rule, every, first, proxy
from tests.servers import BUCKET, Endpoint
from tests.tiering.corpora import objects, small
from tiering import open_tier
from tiering.digest import digest
from tiering.errors import (
    ConfigError,
    Conflict,
    Corrupt,
    DeadlineExceeded,
    TieringError,
    Unavailable,
    UsageError,
)
from tiering.stores import object_uploads
from tiering.stores.fsspec import FsspecStore
from tiering.stores.object import ObjectStore
from tiering.transfer import put_verified

MAKERS = pytest.mark.parametrize("make", [ObjectStore, FsspecStore])
RuleMaker = Callable[[str, Fault], Rule]

pytestmark = pytest.mark.usefixtures("s3_environment")


def nothing(request: object) -> None:
    return None


@MAKERS
@some(READ_FAULTS)
@pytest.mark.parametrize("rule", [every, pytest.param(first, marks=pytest.mark.nightly)])
def test_read_gives_right_bytes_or_a_typed_error(
    make: StoreMaker, fault: Fault, rule: RuleMaker, relay: Proxy, prefix: str
) -> None:
    content = pattern(LONG)
    with direct(relay, prefix) as store:
        store.write("k", [content])
    with opened(make, relay, prefix, DEADLINE_SECONDS) as store:
        for call, right in (
            (lambda: store.read("k"), content),
            (lambda: read_middle(store, "k"), content[100:4900]),
        ):
            relay.rule = rule("GET", fault)
            with contextlib.suppress(Unavailable, DeadlineExceeded, UsageError, ConfigError):
                assert call() == right


def test_answer_that_is_shorter_than_it_said_is_retryable(relay_of_any: Proxy, prefix: str) -> None:
    """The client asks by itself for the rest, past the end, which some servers refuse: that is no setting."""
    with direct(relay_of_any, prefix) as store:
        store.write("k", [pattern(5000)])
    with opened(ObjectStore, relay_of_any, prefix, DEADLINE_SECONDS) as store:
        relay_of_any.rule = first("GET", faults.wrong_length(7))
        assert store.read("k") == pattern(5000)  # asked for again
        relay_of_any.rule = every("GET", faults.wrong_length(7))
        with pytest.raises((Unavailable, DeadlineExceeded)):
            store.read("k")
        relay_of_any.rule = nothing
        assert store.read("k") == pattern(5000)


def read_middle(store: ObjectStore | FsspecStore, key: str) -> bytearray:
    buffer = bytearray(4800)
    store.read_into(key, 100, memoryview(buffer))
    return buffer


@MAKERS
def test_slow_transfer_that_flows_is_not_cut(make: StoreMaker, relay: Proxy, prefix: str) -> None:
    data = pattern(100)
    with direct(relay, prefix) as store:
        store.write("k", [data])
    with opened(make, relay, prefix, DEADLINE_SECONDS) as store:
        relay.rule = every("GET", faults.slow(1, DEADLINE_SECONDS / 50))  # twice the deadline in all
        assert store.read("k") == data


@MAKERS
@pytest.mark.parametrize("keep", [None, 0, 1000])
def test_silent_transfer_is_cut(make: StoreMaker, keep: int | None, relay: Proxy, prefix: str) -> None:
    with direct(relay, prefix) as store:
        store.write("k", [pattern(5000)])
    with opened(make, relay, prefix, DEADLINE_SECONDS) as store:
        relay.rule = every("GET", faults.silent(keep))
        with pytest.raises((DeadlineExceeded, Unavailable)):
            store.read("k")


@pytest.mark.parametrize("heeded", [True, False])
def test_overwrite_between_two_ranges_never_mixes(
    heeded: bool, relay_of_any: Proxy, server: Endpoint, prefix: str
) -> None:
    old, new = pattern(LONG), pattern(LONG, 2)
    relay = relay_of_any
    if not heeded and server.kind == "ceph":
        pytest.skip("Ceph refuses requests whose signed headers are missing")
    with ObjectStore("other", f"s3://{BUCKET}/{prefix}", server.options()) as other:
        other.write("k", [old])

        def overwritten(exchange: Exchange) -> None:
            other.write("k", [new])
            (faults.passed_on if heeded else faults.unheard("if-match"))(exchange)

        with opened(ObjectStore, relay, prefix) as store:
            second = first("GET", overwritten)
            relay.rule = lambda request: (
                None if request.header("range").startswith("bytes=0-") else second(request)
            )
            assert store.read("k") == new
    assert sum(request.method == "GET" for request in relay.seen) >= 4


@MAKERS
@some(WRITE_FAULTS)
def test_write_is_done_or_a_typed_error(
    make: StoreMaker, fault: Fault, relay_of_any: Proxy, prefix: str
) -> None:
    """Old or new, whole, whatever was said; and calling again makes it new."""
    old, new = pattern(3000), pattern(5000, 2)
    relay = relay_of_any
    with direct(relay, prefix) as good:
        good.write("k", [old])
        with opened(make, relay, prefix, DEADLINE_SECONDS) as store:
            relay.rule = every("PUT", fault)
            with contextlib.suppress(Unavailable, DeadlineExceeded, Corrupt, ConfigError):
                put_verified(store, "k", [new], len(new), digest(new))
                assert good.read("k") == new
        put_verified(good, "k", [new], len(new), digest(new))
        assert good.read("k") == new
    assert uploads(relay.target, prefix) == []


@MAKERS
def test_flipped_upload_is_never_taken_for_right(
    make: StoreMaker, relay_of_any: Proxy, server: Endpoint, prefix: str
) -> None:
    data = pattern(5000)
    relay = relay_of_any
    with opened(make, relay, prefix) as store:
        relay.rule = every("PUT", faults.flipped_request(100))
        # Ceph compares the bytes with the signature; moto takes them, and reading back finds out.
        with pytest.raises(Unavailable if server.kind == "ceph" else Corrupt):
            put_verified(store, "k", [data], len(data), digest(data))
        relay.rule = nothing
        assert store.exists("k") == (server.kind == "moto")


@MAKERS
def test_create_whose_answer_is_lost_is_no_success(
    make: StoreMaker, relay_of_any: Proxy, prefix: str
) -> None:
    # aiohttp, below s3fs, sends a PUT again when a kept connection breaks, and so meets its own object.
    lost = (
        (Unavailable, DeadlineExceeded) if make is ObjectStore else (Unavailable, DeadlineExceeded, Conflict)
    )
    with opened(make, relay_of_any, prefix) as store:
        assert store.supports_conditional_create()
        relay_of_any.rule = first("PUT", faults.lost_answer)
        with pytest.raises(lost):
            store.write("k", [b"mine"], if_absent=True)
        with pytest.raises(Conflict):
            store.write("k", [b"other"], if_absent=True)
        assert store.read("k") == b"mine"


@MAKERS
def test_conditional_create_is_asked_for_once_and_leaves_nothing(
    make: StoreMaker, relay: Proxy, prefix: str
) -> None:
    with opened(make, relay, prefix) as store:
        store.write("a", [b"x"], if_absent=True)
        assert [request.method for request in relay.seen].count("PUT") == 3
        assert [info.key for info in store.list()] == ["a"]
        store.write("b", [b"x"], if_absent=True)
        assert [request.method for request in relay.seen].count("PUT") == 4


@MAKERS
def test_server_without_conditional_create_gets_no_corpus(
    make: StoreMaker, relay: Proxy, prefix: str
) -> None:
    relay.rule = every("PUT", faults.unheard("if-none-match"))
    driver = "obstore" if make is ObjectStore else "s3fs"
    tier = open_tier(f"s3://{BUCKET}/{prefix}", "lake", options=relay.endpoint.options(driver=driver))
    with contextlib.closing(tier):
        with pytest.raises(UsageError, match=r"ignores If-None-Match.*write through a server that has"):
            small(tier)
        assert objects(tier) == {}


def test_probe_that_fails_is_asked_again(relay: Proxy, prefix: str) -> None:
    with opened(ObjectStore, relay, prefix) as store:
        relay.rule = every("PUT", faults.status(503))
        with pytest.raises(Unavailable):
            store.write("k", [b"x"], if_absent=True)
        relay.rule = nothing
        assert store.write("k", [b"x"], if_absent=True).nbytes == 1


@pytest.mark.ceph
@MAKERS
def test_uploads_of_killed_writers_are_swept_when_old(
    make: StoreMaker, ceph_endpoint: Endpoint, prefix: str
) -> None:
    options = ceph_endpoint.options()
    client = ceph_endpoint.client()
    for key in (f"{prefix}/web/shard", f"{prefix}/web-2/shard"):
        upload = client.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
        client.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=1, Body=bytes(5 << 20))
    client.close()
    with make("lake", f"s3://{BUCKET}/{prefix}", options) as store:
        assert store.sweep() == store.sweep("web") == 0
        assert store.abort_uploads("web", 3600) == 0
        assert len(uploads(ceph_endpoint, prefix)) == 2
        assert store.abort_uploads("web", 0) == 1
        assert uploads(ceph_endpoint, prefix) == [f"{prefix}/web-2/shard"]
        assert store.abort_uploads(older_than_seconds=0) == 1
        assert list(store.list()) == []


@pytest.mark.ceph
def test_upload_of_this_very_second_is_no_younger_than_nothing(
    ceph_endpoint: Endpoint, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = ceph_endpoint.client()
    client.create_multipart_upload(Bucket=BUCKET, Key=f"{prefix}/k")
    client.close()
    just_before = datetime.now(UTC) - timedelta(seconds=1)
    monkeypatch.setattr(object_uploads, "_date", lambda _answer: just_before)
    with ObjectStore("lake", f"s3://{BUCKET}/{prefix}", ceph_endpoint.options()) as store:
        assert store.abort_uploads(older_than_seconds=1) == 0
        assert store.abort_uploads(older_than_seconds=0) == 1


def test_sweep_that_is_not_allowed_stops_nobody(
    relay: Proxy, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(ObjectStore, relay, prefix) as store:
        relay.rule = lambda request: faults.status(403) if "uploads" in request.path else None
        assert store.sweep("web") == 0
        assert "unfinished uploads were not looked for" in caplog.text
        with pytest.raises(TieringError):
            store.abort_uploads("web")


@pytest.fixture
def certificate(tmp_path: Path) -> ssl.SSLContext:
    """A server's side of TLS with a certificate that nobody vouches for."""
    return server_side(self_signed(tmp_path / "server.pem", "127.0.0.1"))


@MAKERS
def test_certificate_of_nobody_is_refused_unless_loopback_is_told_otherwise(
    make: StoreMaker, certificate: ssl.SSLContext, moto_endpoint: Endpoint, prefix: str
) -> None:
    with proxy(moto_endpoint, certificate) as relay:
        with opened(make, relay, prefix) as store, pytest.raises(ConfigError, match="certificate of 127"):
            store.write("k", [b"x"])
        assert relay.seen == []
        options = relay.endpoint.options(verify_tls=False)
        with make("lake", f"s3://{BUCKET}/{prefix}", options) as store:
            store.write("k", [b"x"], if_absent=True)
            assert store.read("k") == b"x"
            assert store.sweep() == 0
