"""Counts the bytes that come from a server, by whatever client: a TCP relay on loopback.

Invariant: it passes on every byte unchanged and looks at none, so it works for any protocol.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

_BUFFER_BYTES: Final = 1 << 18


@dataclass
class Relay:
    """A way to `target` (host, port) by `url`."""

    target: tuple[str, int]
    url: str
    _received: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _sockets: list[socket.socket] = field(default_factory=list)

    @property
    def received_bytes(self) -> int:
        """What came from the server so far, headers included."""
        with self._lock:
            return self._received

    def count(self, nbytes: int) -> None:
        """Add to what came from the server."""
        with self._lock:
            self._received += nbytes

    def connect(self, client: socket.socket) -> list[threading.Thread]:
        """Relay a connection, in two threads that are running."""
        server = socket.create_connection(self.target)
        with self._lock:
            self._sockets += [client, server]
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threads = [
            threading.Thread(target=self._pass_on, args=(client, server, False)),
            threading.Thread(target=self._pass_on, args=(server, client, True)),
        ]
        for thread in threads:
            thread.start()
        return threads

    def close(self) -> None:
        """End all connections."""
        with self._lock:
            ended, self._sockets = self._sockets, []
        for end in ended:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _pass_on(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        with suppress(OSError):  # either end hung up
            while got := source.recv_into(buffer):
                if counted:
                    self.count(got)
                target.sendall(buffer[:got])
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextmanager
def relay(url: str) -> Iterator[Relay]:
    """A relay to the server of `url`; when the context is left, its connections and threads have ended."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        found = Relay((parts.hostname, parts.port), f"http://127.0.0.1:{listener.getsockname()[1]}")
        threads: list[threading.Thread] = []

        def accept() -> None:
            with suppress(OSError):  # the listener was shut down
                while True:
                    threads.extend(found.connect(listener.accept()[0]))

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield found
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            found.close()
            for thread in threads:
                thread.join()
