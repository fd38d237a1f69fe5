"""The process that holds the objects of one shared memory tier, from its first user to its last.

Invariant: it keeps everything in its own descriptors (sealed memfds, an abstract socket), so when it ends, in
whatever way, nothing is left; and it ends with the last connection, which the kernel closes when a user is
killed. One thread answers one request after the other, so every request is atomic, and what is stored
together with what is reserved for writes never exceeds the capacity.

Run as a file of its own, ``python -I -S shared_memory_holder.py FD``, where FD is the listening socket: it
needs the standard library alone, and starts in some 20 ms. Requests and answers are JSON in one packet each,
with the descriptor of an object beside it where there is one. The other side is
`tiering.stores.shared_memory`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import selectors
import socket
import struct
import sys
from dataclasses import dataclass, field
from typing import Any

PACKET_BYTES = 1 << 16
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

Request = dict[str, Any]
Answer = dict[str, Any]


@dataclass(slots=True)
class Held:
    """One object."""

    fd: int
    nbytes: int
    etag: str


@dataclass(slots=True)
class User:
    """One connection; it has at most one write under way."""

    socket: socket.socket
    reserved_bytes: int = 0


class Refused(Exception):
    """The answer is an error: its word, and what else is told."""

    def __init__(self, word: str, **told: object) -> None:
        super().__init__(word)
        self.answer: Answer = {"error": word, **told}


@dataclass(slots=True)
class Holder:
    """The objects, and who uses them."""

    max_objects: int
    capacity_bytes: int | None = None
    greeted: bool = False
    used_bytes: int = 0
    reserved_bytes: int = 0
    writes: int = 0
    objects: dict[str, Held] = field(default_factory=dict)

    def answer(self, user: User, request: Request, fd: int | None) -> tuple[Answer, int | None]:
        """The answer, and the descriptor that goes with it."""
        match request["do"]:
            case "hello":
                return self._greet(request["capacity"]), None
            case "reserve":
                return self._reserve(user, request["key"], request["nbytes"], request["if_absent"]), None
            case "publish":
                return self._publish(user, request["key"], fd, request["if_absent"]), None
            case "get":
                held = self._held(request["key"])
                return {"nbytes": held.nbytes, "etag": held.etag}, held.fd
            case "stat":
                held = self._held(request["key"])
                return {"nbytes": held.nbytes, "etag": held.etag}, None
            case "delete":
                self._drop(request["key"])
                return {}, None
            case "list":
                return {}, self._listing(request["folder"])
            case _:
                return {"free": self._free_bytes()}, None

    def leave(self, user: User) -> None:
        """Forget a user, and what it had reserved."""
        self.reserved_bytes -= user.reserved_bytes
        user.reserved_bytes = 0

    def _greet(self, capacity_bytes: int | None) -> Answer:
        if not self.greeted:
            self.capacity_bytes, self.greeted = capacity_bytes, True
        if capacity_bytes not in (None, self.capacity_bytes):
            raise Refused("capacity", capacity=self.capacity_bytes)
        return {"pid": os.getpid()}

    def _reserve(self, user: User, key: str, nbytes: int, if_absent: bool) -> Answer:
        if if_absent and key in self.objects:
            raise Refused("exists")
        free = self._free_bytes()
        if free is not None and nbytes > free:
            raise Refused("full", why=f"{nbytes} bytes do not fit: {free} of {self.capacity_bytes} are free")
        if key not in self.objects and len(self.objects) >= self.max_objects:
            raise Refused("full", why=f"{self.max_objects} objects are as many as files may be open")
        self.leave(user)
        user.reserved_bytes = nbytes
        self.reserved_bytes += nbytes
        return {}

    def _publish(self, user: User, key: str, fd: int | None, if_absent: bool) -> Answer:
        nbytes = user.reserved_bytes
        self.leave(user)
        if fd is None:
            raise Refused("full", why="no file more can be opened")
        sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == SEALS
        if not sealed or os.fstat(fd).st_size != nbytes:
            raise Refused("full", why="what came is not what room was reserved for")
        if if_absent and key in self.objects:
            raise Refused("exists")
        kept = os.dup(fd)  # may fail; nothing is changed before
        self._drop(key)
        self.writes += 1
        self.objects[key] = Held(kept, nbytes, str(self.writes))
        self.used_bytes += nbytes
        return {"etag": str(self.writes)}

    def _held(self, key: str) -> Held:
        if key not in self.objects:
            raise Refused("absent")
        return self.objects[key]

    def _drop(self, key: str) -> None:
        held = self.objects.pop(key, None)
        if held:
            self.used_bytes -= held.nbytes
            os.close(held.fd)

    def _free_bytes(self) -> int | None:
        if self.capacity_bytes is None:
            return None
        return self.capacity_bytes - self.used_bytes - self.reserved_bytes

    def _listing(self, folder: str) -> int:
        """A file of lines; of any length, which a packet is not."""
        found = sorted((key for key in self.objects if key.startswith(folder)), key=str.encode)
        lines = (json.dumps([k, self.objects[k].nbytes, self.objects[k].etag]) for k in found)
        fd = os.memfd_create("listing", os.MFD_CLOEXEC)
        with open(fd, "w", closefd=False) as file:
            file.writelines(f"{line}\n" for line in lines)
        return fd


def serve(listener: socket.socket) -> None:
    """Serve until the last user is gone."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    holder = Holder(max_objects=hard * 3 // 4)
    listener.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for ready, _ in selector.select():
                if ready.data is None:
                    _accept(listener, selector)
                elif not _serve_one(holder, ready.data):
                    selector.unregister(ready.data.socket)
                    ready.data.socket.close()
                    holder.leave(ready.data)
            if len(selector.get_map()) == 1:  # the listener alone
                _accept(listener, selector)
                if len(selector.get_map()) == 1:
                    return


def _accept(listener: socket.socket, selector: selectors.BaseSelector) -> None:
    """Take a user in, if there is one and it is ours."""
    with contextlib.suppress(OSError):  # gone again, or no descriptor is free just now
        client, _ = listener.accept()
        creds = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", creds)[1] == os.getuid():
            client.setblocking(False)
            selector.register(client, selectors.EVENT_READ, User(client))
        else:
            client.close()


def _serve_one(holder: Holder, user: User) -> bool:
    """Answer one request; False when the user is gone or does not keep to the protocol."""
    try:
        packet, fds, _flags, _ = socket.recv_fds(user.socket, PACKET_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
    except OSError:
        return False
    if not packet:
        return False
    made = None
    try:
        request = json.loads(packet)
        try:
            answer, fd = holder.answer(user, request, fds[0] if fds else None)
            made = fd if request["do"] == "list" else None
        except Refused as refusal:
            answer, fd = refusal.answer, None
        socket.send_fds(user.socket, [json.dumps(answer).encode()], [] if fd is None else [fd])
    except (OSError, ValueError, KeyError, TypeError):  # one user's nonsense is not the end of all
        return False
    finally:
        for fd in (*fds, *(() if made is None else (made,))):
            os.close(fd)
    return True


if __name__ == "__main__":
    if os.fork():
        os._exit(0)  # whoever started us waits for this one; the holder is nobody's child
    with socket.socket(fileno=int(sys.argv[1])) as inherited:
        serve(inherited)
