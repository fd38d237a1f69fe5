"""A relay on loopback between a client and a real S3 server, which does to requests what networks do.

Invariant: what goes wrong is chosen by the request alone, never by time or chance; and when the context is
left, every connection is closed and every thread has ended, also those of faults that keep silent.

A fault is a function of an `Exchange`. `Proxy.rule` picks one for each request, or None to relay it as it is:

    with proxy(endpoint) as relay:
        relay.rule = first("GET", truncated(1000))
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from tests.servers import Endpoint

_OWN_HEADERS = ("connection", "content-length", "transfer-encoding")


@dataclass(frozen=True, slots=True)
class Request:
    """What the client sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def header(self, name: str) -> str:
        """A header by its name in lower case; empty where there is none."""
        return next((value for key, value in self.headers.items() if key.lower() == name), "")

    @property
    def is_object(self) -> bool:
        """Whether it is about one object, not a listing or the bucket."""
        return urlsplit(self.path).path.count("/") >= 2 and "list-type" not in self.path


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server sent."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Exchange:
    """One request at a fault's mercy."""

    request: Request
    handler: http.server.BaseHTTPRequestHandler
    relay: Proxy

    def forward(self, request: Request | None = None) -> Answer:
        """What the server says to the request."""
        request = request or self.request
        server = http.client.HTTPConnection(urlsplit(self.relay.target.url).netloc, timeout=20)
        server.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers.items():
            server.putheader(name, value)
        server.endheaders(request.body)
        answer = server.getresponse()
        result = Answer(answer.status, dict(answer.getheaders()), answer.read())
        server.close()
        return result

    def send(self, answer: Answer, body: Iterator[bytes] | None = None, length: int | None = None) -> None:
        """Send an answer; its `body` in other pieces, its `length` a lie if need be."""
        handler = self.handler
        handler.send_response_only(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in _OWN_HEADERS:
                handler.send_header(name, value)
        if self.request.method == "HEAD":
            length = int(answer.headers.get("Content-Length", 0))
        handler.send_header("Content-Length", str(len(answer.body) if length is None else length))
        handler.end_headers()
        if self.request.method != "HEAD":
            for piece in iter([answer.body]) if body is None else body:
                handler.wfile.write(piece)

    def hang_up(self, *, reset: bool = False) -> None:
        """Close the connection; with `reset`, as a machine that crashed would."""
        self.handler.close_connection = True
        if reset:
            linger = struct.pack("ii", 1, 0)
            self.handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.handler.wfile.flush()
            self.handler.connection.close()

    def keep_silent(self) -> None:
        """Say nothing until the client hangs up or the relay ends."""
        self.handler.close_connection = True
        while not self.relay.ended.wait(0.02):
            if select.select([self.handler.connection], [], [], 0)[0]:
                return


Fault = Callable[[Exchange], None]
Rule = Callable[[Request], Fault | None]


@dataclass
class Proxy:
    """The relay; `endpoint` is what clients are given."""

    target: Endpoint
    endpoint: Endpoint
    rule: Rule = field(default=lambda request: None)
    seen: list[Request] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def proxy(target: Endpoint, tls: ssl.SSLContext | None = None, *, host: str = "127.0.0.1") -> Iterator[Proxy]:
    """A relay to `target`, over TLS if a context is given; at ``::1`` if that is the `host`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def relay(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = Request(self.command, self.path, dict(self.headers.items()), body)
            relay.seen.append(request)
            with contextlib.suppress(OSError):  # clients hang up when they have had enough
                (relay.rule(request) or passed_on)(Exchange(request, self, relay))

        def log_message(self, *_: object) -> None:
            return

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = False
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        connections: set[socket.socket] = set()  # noqa: RUF012 - one server a class

        def get_request(self) -> Any:
            connection, address = super().get_request()
            self.connections.add(connection)
            return connection, address

        def shutdown_request(self, request: Any) -> None:
            self.connections.discard(request)
            super().shutdown_request(request)

        def handle_error(self, *_: object) -> None:
            return  # a client that hung up or did not like the certificate

    for method in ("GET", "PUT", "POST", "HEAD", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.relay)
    server = Server((host, 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    scheme = "https" if tls else "http"
    shown = f"[{host}]" if ":" in host else host
    relay = Proxy(target, Endpoint(f"{scheme}://{shown}:{server.server_port}", target.kind))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield relay
    finally:
        relay.ended.set()
        server.shutdown()
        thread.join()
        for connection in list(server.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        server.server_close()  # joins the threads


def every(method: str, fault: Fault) -> Rule:
    """`fault` for each request of `method` about an object."""
    return lambda request: fault if request.method == method and request.is_object else None


def first(method: str, fault: Fault, times: int = 1) -> Rule:
    """`fault` for the first requests of `method` about an object."""
    left = iter(range(times))
    lock = threading.Lock()

    def rule(request: Request) -> Fault | None:
        with lock:
            hit = request.method == method and request.is_object and next(left, None) is not None
        return fault if hit else None

    return rule


def passed_on(exchange: Exchange) -> None:
    """No fault."""
    exchange.send(exchange.forward())


def status(code: int, **headers: str) -> Fault:
    """The request is not passed on, and answered with `code`."""

    def fault(exchange: Exchange) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        exchange.send(Answer(code, named, b""))

    return fault


def truncated(keep: int, *, reset: bool = False) -> Fault:
    """The connection ends after `keep` bytes of the body."""

    def fault(exchange: Exchange) -> None:
        answer = exchange.forward()
        exchange.send(answer, iter([answer.body[:keep]]))
        exchange.hang_up(reset=reset)

    return fault


def silent(keep: int | None = None) -> Fault:
    """After `keep` bytes of the body, or without any answer, nothing more comes."""

    def fault(exchange: Exchange) -> None:
        if keep is not None:
            answer = exchange.forward()
            exchange.send(answer, iter([answer.body[:keep]]))
            exchange.handler.wfile.flush()
        exchange.keep_silent()

    return fault


def slow(step: int, pause_seconds: float) -> Fault:
    """The body comes `step` bytes at a time."""

    def fault(exchange: Exchange) -> None:
        answer = exchange.forward()

        def pieces() -> Iterator[bytes]:
            for start in range(0, len(answer.body), step):
                exchange.relay.ended.wait(pause_seconds)
                yield answer.body[start : start + step]

        exchange.send(answer, pieces())

    return fault


def flipped_answer(at: int) -> Fault:
    """A bit of the body that the client receives is wrong."""

    def fault(exchange: Exchange) -> None:
        answer = exchange.forward()
        exchange.send(replace(answer, body=_flip(answer.body, at)))

    return fault


def flipped_request(at: int) -> Fault:
    """A bit of the body that the server receives is wrong."""

    def fault(exchange: Exchange) -> None:
        request = replace(exchange.request, body=_flip(exchange.request.body, at))
        exchange.send(exchange.forward(request))

    return fault


def lost_answer(exchange: Exchange) -> None:
    """The server does what it is asked; the client never learns it."""
    exchange.forward()
    exchange.hang_up(reset=True)


def wrong_length(extra: int) -> Fault:
    """The header promises `extra` bytes more, or fewer, than the server sent."""

    def fault(exchange: Exchange) -> None:
        answer = exchange.forward()
        length = max(0, len(answer.body) + extra)
        exchange.send(answer, iter([answer.body[:length]]), length)
        exchange.hang_up()

    return fault


def without(*names: str) -> Fault:
    """Headers of the answer are missing."""

    def fault(exchange: Exchange) -> None:
        answer = exchange.forward()
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in names}
        exchange.send(replace(answer, headers=kept))

    return fault


def unheard(*names: str) -> Fault:
    """The server does not know headers of the request, such as ``range`` or ``if-match``."""

    def fault(exchange: Exchange) -> None:
        headers = exchange.request.headers
        kept = {name: value for name, value in headers.items() if name.lower() not in names}
        exchange.send(exchange.forward(replace(exchange.request, headers=kept)))

    return fault


def before(action: Callable[[], object]) -> Fault:
    """Somebody else does something just before the request arrives."""

    def fault(exchange: Exchange) -> None:
        action()
        passed_on(exchange)

    return fault


def _flip(body: bytes, at: int) -> bytes:
    if not body:
        return body
    at %= len(body)
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
