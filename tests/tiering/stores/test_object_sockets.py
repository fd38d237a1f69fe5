"""Ranges by connections of our own: taken when they are as asked for, else asked for again by obstore."""

from __future__ import annotations

import contextlib
import http.client
import math
import socket
import traceback
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests import proxy as faults
from tests.certificates import self_signed, server_side
from tests.conformance.patterns import pattern
from tests.conformance.test_store_contract import TRICKY_KEYS
from tests.proxy import Exchange, Fault, Proxy, proxy
from tests.servers import BUCKET, Endpoint
from tiering.errors import ConfigError, Corrupt, DeadlineExceeded, NotFound
from tiering.stores import object_sockets
from tiering.stores.fsspec import FsspecStore
from tiering.stores.object import PIECE_BYTES, ObjectStore
from tiering.stores.object_options import ObjectOptions
from tiering.stores.object_sockets import LEAST_BYTES, Sockets
from tiering.stores.object_uploads import abort_abandoned

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


@pytest.fixture
def made(relay: Proxy, monkeypatch: pytest.MonkeyPatch) -> list[http.client.HTTPConnection]:
    """Connections that are made to the relay."""
    made: list[http.client.HTTPConnection] = []
    connect = http.client.HTTPConnection.connect

    def noted(connection: http.client.HTTPConnection) -> None:
        if connection.port == urlsplit(relay.endpoint.url).port:
            made.append(connection)
        connect(connection)

    monkeypatch.setattr(http.client.HTTPConnection, "connect", noted)
    return made


def gets(relay: Proxy) -> list[bool]:
    """For each GET of an object, whether it was by our own connections."""
    return [
        not request.header(OURS) for request in relay.seen if request.method == "GET" and request.is_object
    ]


def test_read_asks_once_for_each_piece_by_connections_that_are_used_again(
    store: ObjectStore, relay: Proxy, made: list[http.client.HTTPConnection]
) -> None:
    for _ in range(3):
        assert store.read("k") == pattern(LONG)
        target = bytearray(1 << 20)
        store.read_into("k", 7, memoryview(target))
        assert target == pattern(LONG)[7 : 7 + (1 << 20)]
    # The last bytes of an object are too few for it.
    assert sorted(gets(relay)) == [False] * 3 + [True] * 6
    assert not [request for request in relay.seen if request.method == "HEAD"]
    assert len(made) == 1


def busy_and_ends(exchange: Exchange) -> None:
    """A refusal with a body, after which the server ends the connection."""
    handler = exchange.handler
    handler.wfile.write(b"HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbusy")
    exchange.hang_up()


LIES: dict[str, Fault] = {
    "cut": faults.truncated(1000),
    "other-length": faults.wrong_length(-100),
    "no-etag": faults.without("etag"),
    "no-range": faults.without("content-range"),
    "refused": faults.status(403),
    "busy": faults.status(503),
    "busy-and-ends": busy_and_ends,
}


@pytest.mark.parametrize("fault", LIES.values(), ids=LIES.keys())
def test_answer_that_is_not_as_asked_for_is_asked_for_by_obstore(
    store: ObjectStore, relay: Proxy, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[http.client.HTTPResponse] = []
    begin = http.client.HTTPResponse.begin
    monkeypatch.setattr(
        http.client.HTTPResponse, "begin", lambda answer: (answers.append(answer), begin(answer))[1]
    )
    relay.rule = lambda request: fault if request.method == "GET" and not request.header(OURS) else None
    assert store.read("k") == pattern(LONG)
    assert True in gets(relay)
    assert False in gets(relay)
    assert all(answer.isclosed() for answer in answers)


def test_server_that_refuses_signed_urls_is_asked_for_no_more(store: ObjectStore, relay: Proxy) -> None:
    relay.rule = lambda request: faults.status(403) if not request.header(OURS) else None
    store.read("k")
    before = len(gets(relay))
    store.read("k")
    assert not any(gets(relay)[before:])


@pytest.mark.parametrize("scheme", ["http", "all"])
def test_proxy_of_the_environment_is_left_to_obstore(
    store: ObjectStore, relay: Proxy, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setattr("urllib.request.getproxies", lambda: {scheme: "http://127.0.0.1:9"})
    monkeypatch.setattr("urllib.request.proxy_bypass", lambda _host: False)
    assert store.read("k") == pattern(LONG)
    assert not any(gets(relay))


@pytest.mark.parametrize("server", ["moto", pytest.param("ceph", marks=pytest.mark.ceph)])
def test_keys_that_need_quoting_name_the_same_objects(request: pytest.FixtureRequest, server: str) -> None:
    endpoint: Endpoint = request.getfixturevalue(f"{server}_endpoint")
    keys = [*TRICKY_KEYS, "a/50%25 off+=&;:@!$'()~", "a/..b c", "\u1e9e/\u2028"]
    with proxy(endpoint) as relay:
        url = f"s3://{BUCKET}/{uuid.uuid4().hex}/with a+blank"
        with ObjectStore("lake", url, relay.endpoint.options()) as store:
            for number, key in enumerate(keys):
                store.write(key, [pattern(LEAST_BYTES, number)])
            for number, key in enumerate(keys):
                target = bytearray(LEAST_BYTES)
                store.read_into(key, 0, memoryview(target))
                assert target == pattern(LEAST_BYTES, number)
    assert gets(relay) == [True] * len(keys)


def test_server_at_an_ipv6_address_is_reached(moto_endpoint: Endpoint) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on loopback")
    with (
        proxy(moto_endpoint, host="::1") as relay,
        ObjectStore("lake", f"s3://{BUCKET}/{uuid.uuid4().hex}", relay.endpoint.options()) as store,
    ):
        store.write("k", [pattern(LONG)])
        assert store.read("k") == pattern(LONG)
    assert True in gets(relay)


class TestTls:
    """A server whose certificate no authority has signed."""

    def read_by_sockets(self, endpoint: Endpoint, **options: bool) -> bytes | None:
        """What a range of `k` is by connections of ours; None where those do not take the server."""
        parsed = ObjectOptions.parse("lake", f"s3://{BUCKET}/tls", endpoint.options(**options))
        sockets = Sockets(parsed)
        with contextlib.closing(sockets), sockets.get(parsed.open(5, 0), "k", 3, LEAST_BYTES) as answer:
            buffer = bytearray(LEAST_BYTES)
            return bytes(buffer) if answer and answer.receive(memoryview(buffer)) else None

    @pytest.fixture(autouse=True)
    def put(self, moto_endpoint: Endpoint, s3_environment: None) -> None:
        with ObjectStore("lake", f"s3://{BUCKET}/tls", moto_endpoint.options()) as store:
            store.write("k", [pattern(LONG)])

    def test_certificate_of_nobody_is_refused_before_anything_is_sent(
        self, moto_endpoint: Endpoint, tmp_path: Path
    ) -> None:
        with proxy(moto_endpoint, server_side(self_signed(tmp_path / "pem", "127.0.0.1"))) as relay:
            assert self.read_by_sockets(relay.endpoint) is None
            with (
                ObjectStore("lake", f"s3://{BUCKET}/tls", relay.endpoint.options()) as store,
                pytest.raises(ConfigError, match="certificate of 127"),
            ):
                store.read("k")
        assert relay.seen == []

    def test_certificate_of_nobody_is_taken_where_loopback_is_told_so(
        self, moto_endpoint: Endpoint, tmp_path: Path
    ) -> None:
        with proxy(moto_endpoint, server_side(self_signed(tmp_path / "pem", "127.0.0.1"))) as relay:
            assert self.read_by_sockets(relay.endpoint, verify_tls=False) == pattern(LONG)[3:][:LEAST_BYTES]
            options = relay.endpoint.options(verify_tls=False)
            with ObjectStore("lake", f"s3://{BUCKET}/tls", options) as store:
                assert store.read("k") == pattern(LONG)
        assert gets(relay).count(True) == 2

    def test_authority_of_ssl_cert_file_is_trusted_for_its_own_server_alone(
        self, moto_endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        right = self_signed(tmp_path / "right.pem", "127.0.0.1")
        other = self_signed(tmp_path / "other.pem", "127.0.0.2")
        monkeypatch.setenv("SSL_CERT_FILE", str(right))
        with proxy(moto_endpoint, server_side(right)) as relay:
            assert self.read_by_sockets(relay.endpoint) == pattern(LONG)[3:][:LEAST_BYTES]
            with ObjectStore("lake", f"s3://{BUCKET}/tls", relay.endpoint.options()) as store:
                assert store.read("k") == pattern(LONG)
        assert {True, False} == set(gets(relay))  # obstore trusts it as well
        monkeypatch.setenv("SSL_CERT_FILE", str(other))
        with proxy(moto_endpoint, server_side(other)) as relay:  # of a trusted authority, for another host
            assert self.read_by_sockets(relay.endpoint) is None
        assert relay.seen == []

    def test_authority_of_aws_ca_bundle_is_trusted_for_its_own_server_alone(
        self, moto_endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        right = self_signed(tmp_path / "right.pem", "127.0.0.1")
        other = self_signed(tmp_path / "other.pem", "127.0.0.2")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(right))
        with proxy(moto_endpoint, server_side(right)) as relay:
            assert self.read_by_sockets(relay.endpoint) == pattern(LONG)[3:][:LEAST_BYTES]
            url = f"s3://{BUCKET}/tls"
            for kind in (ObjectStore, FsspecStore):
                with kind("lake", url, relay.endpoint.options()) as store:
                    assert store.read("k") == pattern(LONG)
            parsed = ObjectOptions.parse("lake", url, relay.endpoint.options())
            assert abort_abandoned(parsed) == 0
        assert any("uploads" in request.path for request in relay.seen)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(other))
        with proxy(moto_endpoint, server_side(other)) as relay:  # of a trusted authority, for another host
            assert self.read_by_sockets(relay.endpoint) is None
        assert relay.seen == []

    @pytest.mark.parametrize(
        "content", [None, "", "-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----"]
    )
    def test_bundle_of_no_certificates_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
    ) -> None:
        if content is not None:
            (tmp_path / "pem").write_text(content)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "pem"))
        reason = "cannot be read: No such file" if content is None else "has no certificates"
        with (
            ObjectStore("lake", f"s3://{BUCKET}/tls", {"endpoint_url": "https://127.0.0.1:9"}) as store,
            pytest.raises(ConfigError, match=f"AWS_CA_BUNDLE names .*pem', which {reason}") as caught,
        ):
            store.stat("k")
        assert caught.value.tier == "lake"


def test_redirect_is_not_followed_with_the_signature(
    relay: Proxy, moto_endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIERING_TEST_TOKEN", "canary-token")
    options = relay.endpoint.options(session_token="env:TIERING_TEST_TOKEN")
    with proxy(moto_endpoint) as other, ObjectStore("lake", f"s3://{BUCKET}/away", options) as store:
        store.write("k", [pattern(LONG)])
        for code in (301, 302, 307, 308):
            relay.rule = faults.every("GET", faults.status(code, Location=f"{other.endpoint.url}/stolen"))
            with contextlib.suppress(ConfigError, NotFound):
                store.read("k")
    assert True in gets(relay)
    assert any("canary-token" in str(request) for request in relay.seen)
    for request in other.seen:  # obstore follows, and takes the signature off
        assert request.header(OURS)
        assert not request.header("authorization")
        assert not urlsplit(request.path).query
        # It leaves the token on, in its one header: see docs/objects.md for why that is no key.
        assert str(request).count("canary-token") == (
            request.header("x-amz-security-token") == "canary-token"
        )


@pytest.fixture
def named(relay: Proxy, monkeypatch: pytest.MonkeyPatch) -> dict[str, str | float | bool]:
    """Options of a tier on a server that has a name, as has each bucket below it."""
    look_up = socket.getaddrinfo

    def on_loopback(host: str, *given: Any, **more: Any) -> Any:  # not every machine has these names
        return look_up("127.0.0.1" if str(host).endswith(".localhost") else host, *given, **more)

    monkeypatch.setattr(socket, "getaddrinfo", on_loopback)
    url = f"http://s3.localhost:{urlsplit(relay.endpoint.url).port}"
    return relay.endpoint.options(endpoint_url=url, virtual_hosted_style=True)


def hosts(relay: Proxy) -> set[str]:
    """The servers that were asked."""
    return {request.header("host").partition(":")[0] for request in relay.seen}


def test_bucket_before_the_host_is_asked_for_by_our_own_connections(
    store: ObjectStore, relay: Proxy, named: dict[str, Any]
) -> None:
    store.write("k", [pattern(LEAST_BYTES)])
    relay.seen.clear()
    target = bytearray(LEAST_BYTES)
    parsed = ObjectOptions.parse("lake", f"s3://{BUCKET}/{store._options.prefix}", named)
    client, sockets = parsed.open(5, 0), Sockets(parsed)
    with contextlib.closing(sockets), sockets.get(client, "k", 0, LEAST_BYTES) as answer:
        assert answer
        assert answer.receive(memoryview(target))
    assert target == pattern(LEAST_BYTES)
    (request,) = relay.seen
    assert urlsplit(request.path).path == f"/{parsed.prefix}/k"
    assert hosts(relay) == {f"{BUCKET}.s3.localhost"}


def test_bucket_before_the_host_is_asked_for_by_every_client(
    relay: Proxy, named: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", relay.endpoint.url)  # obstore cannot look such a name up everywhere
    monkeypatch.delenv("no_proxy", raising=False)
    url = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    with ObjectStore("lake", url, named) as store:
        store.write("a/k", [pattern(LONG)])
        assert store.read("a/k") == pattern(LONG)
        assert [info.key for info in store.list()] == ["a/k"]
    monkeypatch.delenv("http_proxy")
    with FsspecStore("lake", url, named) as store:
        assert store.read("a/k") == pattern(LONG)
    assert abort_abandoned(ObjectOptions.parse("lake", url, named)) == 0
    assert {urlsplit(request.path).path.startswith(f"/{BUCKET}") for request in relay.seen} == {False}
    assert hosts(relay) == {f"{BUCKET}.s3.localhost"}


def test_idle_connections_are_few_and_closed_when_old(
    relay: Proxy, made: list[http.client.HTTPConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ObjectOptions.parse("lake", f"s3://{BUCKET}/idle", relay.endpoint.options())
    with ObjectStore("lake", f"s3://{BUCKET}/idle", relay.endpoint.options()) as store:
        store.write("k", [pattern(LEAST_BYTES)])
    client, sockets = options.open(5, 0), Sockets(options)
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            answer = stack.enter_context(sockets.get(client, "k", 0, LEAST_BYTES))
            assert answer
            assert answer.receive(memoryview(bytearray(LEAST_BYTES)))
    assert len(made) == 20
    assert sum(one.sock is not None for one in made) == 16
    monkeypatch.setattr(object_sockets, "time", SimpleNamespace(monotonic=lambda: math.inf))
    with sockets.get(client, "k", 0, LEAST_BYTES):
        assert [one.sock is not None for one in made] == [False] * 20 + [True]


def shown(error: BaseException) -> str:
    """All that a debugger, or a service that gathers errors, shows of one."""
    seen: list[str] = []
    while error:
        one = traceback.TracebackException.from_exception(error, capture_locals=True)
        seen += [repr(error), *(str((at.name, at.locals)) for at in one.stack if at.filename != __file__)]
        error = error.__context__  # type: ignore[assignment]
    return "".join(seen)


def test_error_shows_no_url_that_is_signed(
    store: ObjectStore,
    relay: Proxy,
    made: list[http.client.HTTPConnection],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http.client.HTTPConnection, "debuglevel", 1)
    target = memoryview(bytearray(LEAST_BYTES))
    with pytest.raises(Corrupt) as short:
        store.read_into("k", LONG - LEAST_BYTES + 1, target)
    with pytest.raises(NotFound) as missing:
        store.read("none")
    options = relay.endpoint.options(deadline_seconds=1)
    with ObjectStore("lake", f"s3://{BUCKET}/silent", options) as silent:
        relay.rule = faults.every("GET", faults.silent())
        with pytest.raises(DeadlineExceeded) as late:
            silent.read_into("k", 0, target)
    assert all(gets(relay)[-3:])
    for caught in (short, missing, late):
        assert "X-Amz-Sig" not in shown(caught.value)
    assert "_Signed(" in shown(late.value)  # the search looks where the URL would be
    assert made
    assert not any(one.debuglevel for one in made)  # it would print each request
