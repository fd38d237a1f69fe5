"""Ranges of S3 objects received straight into the caller's memory, over connections of this module.

obstore gives the body of an answer in fresh memory of its own, from where it is copied a second time: that
takes two to three times the processor time of one copy from the socket into warm memory.

Invariant: only an answer that is exactly what was asked for is taken. Of anything else nothing is made here:
the caller asks again through obstore, which knows how often to try and how each error is called. Silence
alone is final, so that nobody waits for it twice. A URL that is signed never leaves this module: no error,
local variable or debugging output that another could show holds one.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import ssl
import threading
import time
import urllib.request
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError

from tiering.errors import DeadlineExceeded
from tiering.stores.object_options import CONNECT_SECONDS, ObjectOptions

LEAST_BYTES: Final = 512 << 10
"""A shorter range costs as much either way, and takes longer here: Python reads the head of each answer."""

_SIGNED_FOR: Final = timedelta(minutes=15)
"""How far the clocks may differ, as with a signature in a header."""
_IDLE_SECONDS: Final = 30.0
_IDLE_CONNECTIONS: Final = 16
_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_PASSING: Final = (408, 412, 416, 429)
"""Refusals that say nothing of the next request; after others no more are made."""


class MissingError(Exception):
    """The server has no such object."""


@dataclass(frozen=True, slots=True)
class _Signed:
    """Where to send a request; what signs it is in no repr, as tools show those of a frame's variables."""

    scheme: str
    netloc: str
    target: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer, whose body waits in the socket."""

    etag: str
    object_bytes: int
    nbytes: int
    """Length of the range; shorter than asked for where the object ends before."""
    _response: http.client.HTTPResponse = field(repr=False)

    def receive(self, buffer: memoryview) -> bool:
        """Fill `buffer`, of `nbytes`; False where the body was cut off or is of another length.

        Raises:
            TimeoutError: the server fell silent.
        """
        if buffer.nbytes != self.nbytes:
            return False
        try:
            return self._response.readinto(buffer) == self.nbytes
        except TimeoutError:
            raise
        except (OSError, http.client.HTTPException):
            return False


class Sockets:
    """Connections to the server of one object tier, used again and again, from any thread."""

    def __init__(self, options: ObjectOptions) -> None:
        self._options = options
        self._works = options.scheme == "s3" and not options.options.get("anonymous")
        self._lock = threading.Lock()
        self._idle: list[tuple[float, http.client.HTTPConnection]] = []
        self._tls: ssl.SSLContext | None = None
        weakref.finalize(self, _close, self._idle)

    @contextlib.contextmanager
    def get(
        self, client: Any, key: str, offset: int, nbytes: int, etag: str | None = None
    ) -> Iterator[Answer | None]:
        """The answer to a request for ``[offset, offset + nbytes)``, good during the block.

        Args:
            client: obstore's, which signs the request.
            key: of the object.
            offset: where the range begins.
            nbytes: its length.
            etag: of the version that is wanted; any by default.

        Returns:
            None where there is no such answer and obstore is to be asked.

        Raises:
            MissingError: there is no such object. DeadlineExceeded: the server is silent.
        """
        if not self._works or nbytes < LEAST_BYTES or (signed := _signed(client, key)) is None:
            yield None
            return
        headers = {"Range": f"bytes={offset}-{offset + nbytes - 1}"}
        if etag:
            headers["If-Match"] = etag
        connection, response, silent = None, None, False
        try:
            connection, response = self._ask(signed, headers)
            yield self._checked(response, offset, nbytes, etag) if response else None
            if connection and response and response.isclosed() and not response.will_close:
                self._keep(connection)
                connection = None
        except DeadlineExceeded:
            raise
        except TimeoutError:
            silent = True
        finally:
            if connection:
                connection.close()
                if response:
                    response.close()  # it alone has the socket where the server ends the connection
        if silent:  # raised out here, as the frames of the other error have seen the URL
            hint = "Look at the network, or give the tier a larger deadline_seconds"
            problem = f"no answer in time from {self._options.host}"
            raise DeadlineExceeded(problem, tier=self._options.tier, key=key, hint=hint)

    def close(self) -> None:
        """Close the connections that nobody uses."""
        with self._lock:
            _close(self._idle)

    def _ask(
        self, signed: _Signed, headers: dict[str, str]
    ) -> tuple[http.client.HTTPConnection | None, http.client.HTTPResponse | None]:
        """Send a request; a connection that the server closed while it was idle is replaced."""
        for connection in (self._take(), None):
            try:
                connection = connection or self._connect(signed.scheme, signed.netloc)
                if connection is None:
                    break
                connection.request("GET", signed.target, headers=headers)
                return connection, connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                connected = connection is not None and connection.sock is not None
                if connection:
                    connection.close()
                if isinstance(error, TimeoutError) and connected:
                    raise
        return None, None

    def _checked(
        self, response: http.client.HTTPResponse, offset: int, nbytes: int, etag: str | None
    ) -> Answer | None:
        """The answer, if it is one to what was asked."""
        if response.status == 404:
            raise MissingError
        found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status != 206 or not found:
            if response.status < 500 and response.status not in _PASSING:
                self._works = False  # no ranges, no URLs that are signed, or no rights
            return None
        start, stop, object_bytes = int(found[1]), int(found[2]) + 1, int(found[3])
        version = response.headers.get("ETag")
        if (
            (start, stop) != (offset, min(offset + nbytes, object_bytes))
            or response.length != stop - start
            or "Content-Encoding" in response.headers
            or not version
            or version != (etag or version)
        ):
            return None
        return Answer(version, object_bytes, stop - start, response)

    def _connect(self, scheme: str, netloc: str) -> http.client.HTTPConnection | None:
        """A new connection; None where a proxy stands between."""
        if {scheme, "all"} & urllib.request.getproxies().keys() and not urllib.request.proxy_bypass(netloc):
            self._works = False
            return None
        seconds = min(CONNECT_SECONDS, self._options.deadline_seconds)
        connection = http.client.HTTPConnection(netloc, timeout=seconds)
        if scheme == "https":
            connection = http.client.HTTPSConnection(netloc, timeout=seconds, context=self._context())
        connection.set_debuglevel(0)  # else it prints each request where others debug theirs
        connection.connect()
        connection.sock.settimeout(self._options.deadline_seconds)
        return connection

    def _context(self) -> ssl.SSLContext:
        with self._lock:
            if self._tls is None:
                self._tls = ssl.create_default_context()
                if authorities := self._options.authorities:
                    self._tls.load_verify_locations(cadata=authorities)
                if self._options.skips_tls_check:
                    self._tls.check_hostname = False
                    self._tls.verify_mode = ssl.CERT_NONE
            return self._tls

    def _take(self) -> http.client.HTTPConnection | None:
        with self._lock:
            while self._idle:
                since, connection = self._idle.pop()
                if time.monotonic() - since < _IDLE_SECONDS:
                    return connection
                connection.close()
        return None

    def _keep(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._idle.append((time.monotonic(), connection))
            _close(self._idle, _IDLE_CONNECTIONS)


def _signed(client: Any, key: str) -> _Signed | None:
    """Where to send a GET, with a signature; None where there is nothing to sign with."""
    try:
        parts = urlsplit(str(obstore.sign(client, "GET", key, _SIGNED_FOR)))
    except (BaseError, OSError):
        return None
    return _Signed(parts.scheme, parts.netloc, f"{parts.path}?{parts.query}")


def _close(idle: list[tuple[float, http.client.HTTPConnection]], keep: int = 0) -> None:
    """Close all but the `keep` that were used last."""
    while len(idle) > keep:
        idle.pop(0)[1].close()
