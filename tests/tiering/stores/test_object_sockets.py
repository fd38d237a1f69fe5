"""Ranges by connections of our own: taken when they are as asked for, else asked for again by obstore."""

from __future__ import annotations

import http.client
import uuid
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests import proxy as faults
from tests.conformance.patterns import pattern
from tests.proxy import Fault, Proxy, proxy
from tests.servers import BUCKET, Endpoint
from tiering.stores.object import PIECE_BYTES, ObjectStore

pytestmark = pytest.mark.usefixtures("s3_environment")

LONG = PIECE_BYTES + 5
OURS = "user-agent"
"""A header that obstore sends and we do not."""


@pytest.fixture
def relay(moto_endpoint: Endpoint) -> Iterator[Proxy]:
    with proxy(moto_endpoint) as relay:
        yield relay


@pytest.fixture
def store(relay: Proxy) -> Iterator[ObjectStore]:
    with ObjectStore("lake", f"s3://{BUCKET}/{uuid.uuid4().hex}", relay.endpoint.options()) as store:
        store.write("k", [pattern(LONG)])
        yield store


def gets(relay: Proxy) -> list[bool]:
    """For each GET of an object, whether it was by our own connections."""
    return [
        not request.header(OURS) for request in relay.seen if request.method == "GET" and request.is_object
    ]


def test_read_asks_once_for_each_piece_by_connections_that_are_used_again(
    store: ObjectStore, relay: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[http.client.HTTPConnection] = []
    connect = http.client.HTTPConnection.connect

    def counted(connection: http.client.HTTPConnection) -> None:
        made.append(connection)
        connect(connection)

    monkeypatch.setattr("tiering.stores.object_sockets.http.client.HTTPConnection.connect", counted)
    for _ in range(3):
        assert store.read("k") == pattern(LONG)
        target = bytearray(1 << 20)
        store.read_into("k", 7, memoryview(target))
        assert target == pattern(LONG)[7 : 7 + (1 << 20)]
    # The last bytes of an object are too few for it.
    assert sorted(gets(relay)) == [False] * 3 + [True] * 6
    assert not [request for request in relay.seen if request.method == "HEAD"]
    from_here = [connection for connection in made if connection.port == urlsplit(relay.endpoint.url).port]
    assert len(from_here) == 1


LIES: dict[str, Fault] = {
    "cut": faults.truncated(1000),
    "other-length": faults.wrong_length(-100),
    "no-etag": faults.without("etag"),
    "no-range": faults.without("content-range"),
    "refused": faults.status(403),
    "busy": faults.status(503),
}


@pytest.mark.parametrize("fault", LIES.values(), ids=LIES.keys())
def test_answer_that_is_not_as_asked_for_is_asked_for_by_obstore(
    store: ObjectStore, relay: Proxy, fault: Fault
) -> None:
    relay.rule = lambda request: fault if request.method == "GET" and not request.header(OURS) else None
    assert store.read("k") == pattern(LONG)
    assert True in gets(relay)
    assert False in gets(relay)


def test_server_that_refuses_signed_urls_is_asked_for_no_more(store: ObjectStore, relay: Proxy) -> None:
    relay.rule = lambda request: faults.status(403) if not request.header(OURS) else None
    store.read("k")
    before = len(gets(relay))
    store.read("k")
    assert not any(gets(relay)[before:])


def test_proxy_of_the_environment_is_left_to_obstore(
    store: ObjectStore, relay: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"http": "http://127.0.0.1:9"})
    monkeypatch.setattr("urllib.request.proxy_bypass", lambda _host: False)
    assert store.read("k") == pattern(LONG)
    assert not any(gets(relay))
