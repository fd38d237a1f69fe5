"""Shared memory tier: objects in RAM that all processes of one user on one node see.

Invariant: nothing outlives the users, however they end, and nothing has to be swept. Each object is a sealed
memfd, which no file system shows; a small process (`tiering.stores.shared_memory_holder`) keeps them, counts
their bytes against the capacity, and hands their descriptors out over an abstract socket, which exists in no
file system either. Its connections tell it who is there: with the last one it ends, and the kernel frees
all. Files below ``/dev/shm`` would stay when the last user is killed, until somebody thought of them.

The first user starts the holder: who binds the socket's name is the first. A write reserves its bytes, fills
a memfd of its own, and hands it over; a reader gets the descriptor and so keeps the old bytes while it reads;
what reads many times (`Store.reader`) keeps it in between, because nobody can change a sealed object.

Limits: when the holder itself is killed (by the kernel, short of memory) the objects are gone, and the next
call says so once. An object costs a descriptor, so there are at most three quarters of the hard limit of open
files. The name is of the user and the network namespace: containers have their own.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, NoReturn, Self

from tiering.digest import Buffer
from tiering.errors import (
    CapacityExceeded,
    ConfigError,
    Conflict,
    DeadlineExceeded,
    NotFound,
    TieringError,
    Unavailable,
)
from tiering.keys import validate, validate_prefix
from tiering.stores import shared_memory_holder
from tiering.stores.base import ObjectInfo, Reader, Store, check_range, total_bytes
from tiering.stores.file_kept import KeptFile, KeptFiles
from tiering.stores.pages import new_buffer
from tiering.stores.scatter import Scatter
from tiering.stores.shared_memory_holder import PACKET_BYTES, SEALS

ANSWER_SECONDS: Final = 30.0
"""How long the holder may take for one answer; none of them takes long."""
_IDLE_CONNECTIONS: Final = 16
_BACKLOG: Final = 128


class SharedMemoryStore(Store):
    """Objects in the shared memory called `place`, at most `capacity_bytes` of them.

    Raises:
        ConfigError: at the first call, when others use it with another capacity.
    """

    kind: ClassVar[str] = "memory"

    def __init__(self, name: str, place: str, capacity_bytes: int | None = None) -> None:
        self.name = name
        self.place = place
        self._capacity_bytes = capacity_bytes
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._idle: list[_Connection] = []
        self._kept = KeptFiles()

    def hold(self) -> Self:
        """Another store of the same memory that is connected, and so keeps it until it is closed."""
        holding = type(self)(self.name, self.place, self._capacity_bytes)
        holding.free_bytes()
        return holding

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        with self._object(key) as (fd, nbytes):
            check_range(self.name, key, offset, buffer.nbytes, nbytes)
            _read(fd, offset, buffer)

    def reader(self, key: str) -> Reader:
        kept = KeptFile(lambda: self._open(key)[0], self._kept, for_ever=True)

        def read(offset: int, buffer: memoryview | Scatter) -> Hashable:
            done, stats = kept.read_into(offset, buffer)
            if done < buffer.nbytes:
                check_range(self.name, key, offset, buffer.nbytes, stats.st_size)
            return stats.st_dev, stats.st_ino, stats.st_size, stats.st_mtime_ns

        return read

    def read(self, key: str) -> Buffer:
        with self._object(key) as (fd, nbytes):
            data = new_buffer(nbytes)
            _read(fd, 0, memoryview(data))
            return data

    def write(
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        validate(key)
        nbytes = total_bytes(buffers)
        with self._connection() as connection:
            connection.ask(key, do="reserve", key=key, nbytes=nbytes, if_absent=if_absent)
            connection.reserved = True
            fd = os.memfd_create("object", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                _fill(fd, buffers, nbytes)
                answer = connection.ask(key, fd, do="publish", key=key, if_absent=if_absent)
            finally:
                os.close(fd)
            connection.reserved = False
            return ObjectInfo(key, nbytes, answer["etag"])

    def delete(self, key: str) -> None:
        validate(key)
        with self._connection() as connection:
            connection.ask(key, do="delete", key=key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        validate_prefix(prefix)
        with self._connection() as connection:
            connection.ask(None, do="list", folder=f"{prefix}/" if prefix else "")
            fd = connection.take_fd()
        with open(fd, "rb") as file:  # noqa: PTH123  # a descriptor; its offset is where the holder left it
            file.seek(0)
            lines = file.readlines()
        for line in lines:
            yield ObjectInfo(*json.loads(line))

    def children(self, prefix: str = "") -> Sequence[str]:
        depth = prefix.count("/") + 1 if prefix else 0
        return sorted({info.key.split("/")[depth] for info in self.list(prefix)})

    def stat(self, key: str) -> ObjectInfo:
        validate(key)
        with self._connection() as connection:
            answer = connection.ask(key, do="stat", key=key)
            return ObjectInfo(key, answer["nbytes"], answer["etag"])

    def is_volatile(self) -> bool:
        return True

    def free_bytes(self) -> int | None:
        with self._connection() as connection:
            free: int | None = connection.ask(None, do="free")["free"]
            return free

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        self._kept.rest()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"store {self.name!r} is not pickled: each process opens its own from the Tier")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} at 'shm://{self.place}'>"

    @contextlib.contextmanager
    def _object(self, key: str) -> Iterator[tuple[int, int]]:
        """As `_open`, closed at the end."""
        fd, nbytes = self._open(key)
        try:
            yield fd, nbytes
        finally:
            os.close(fd)

    def _open(self, key: str) -> tuple[int, int]:
        """A descriptor of the object's bytes, and how many they are."""
        validate(key)
        with self._connection() as connection:
            nbytes: int = connection.ask(key, do="get", key=key)["nbytes"]
            return connection.take_fd(), nbytes

    @contextlib.contextmanager
    def _connection(self) -> Iterator[_Connection]:
        """A connection for one call; errors of the operating system become typed ones."""
        if self._process != os.getpid():  # forked: the connections are the parent's
            self.close()
            self._process = os.getpid()
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        try:
            connection = connection or _connect(self.name, self.place, self._capacity_bytes)
            yield connection
        except TieringError:
            raise
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the holder of the shared memory gave no answer in {ANSWER_SECONDS:g} s",
                tier=self.name,
                hint="Is the machine short of memory, or the process stopped?",
            ) from error
        except ConnectionError as error:
            self.close()  # the others have lost it, too
            raise Unavailable(
                "the process that held the shared memory has ended, and its objects with it",
                tier=self.name,
                hint="The next call finds the tier empty: bring its copies back from another tier",
            ) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                hint = "Release something from this tier, or give the machine more memory"
                raise CapacityExceeded("no memory is left", tier=self.name, hint=hint) from error
            hint = "Let this process open more files: ulimit -n" if error.errno == errno.EMFILE else ""
            raise Unavailable(
                f"shared memory: {error.strerror or error}", tier=self.name, hint=hint
            ) from error
        finally:
            if connection is not None:
                self._give_back(connection)

    def _give_back(self, connection: _Connection) -> None:
        with self._lock:
            if connection.in_step and not connection.reserved and len(self._idle) < _IDLE_CONNECTIONS:
                self._idle.append(connection)
                return
        connection.close()  # which also frees what it had reserved


class _Connection:
    """One conversation with the holder: a request, then its answer."""

    def __init__(self, tier: str, connected: socket.socket) -> None:
        self.tier = tier
        self.in_step = True
        """Whether every request got its answer."""
        self.reserved = False
        self._socket = connected
        self._fds: list[int] = []

    def ask(self, about: str | None, fd: int | None = None, /, **request: Any) -> dict[str, Any]:
        """The answer to a request on the key `about`, as the holder's `answer` has it."""
        self.in_step = False
        socket.send_fds(self._socket, [json.dumps(request).encode()], [] if fd is None else [fd])
        packet, fds, _, _ = socket.recv_fds(self._socket, PACKET_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        self._fds += fds
        if not packet:
            raise ConnectionResetError(errno.ECONNRESET, "closed by the holder")
        self.in_step = True
        answer: dict[str, Any] = json.loads(packet)
        if "error" in answer:
            self.reserved = False  # a write that is refused gives its room back
            raise self._typed(answer, about)
        return answer

    def take_fd(self) -> int:
        """The descriptor that came with the last answer; the caller closes it."""
        if not self._fds:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self._fds.pop()

    def close(self) -> None:
        """End the conversation."""
        for fd in self._fds:
            os.close(fd)
        self._socket.close()

    def _typed(self, answer: dict[str, Any], key: str | None) -> TieringError:
        match answer["error"]:
            case "absent":
                return NotFound("no such object", tier=self.tier, key=key)
            case "exists":
                return Conflict("object exists already", tier=self.tier, key=key)
            case "full":
                hint = "Release something from this tier or give it a larger capacity"
                return CapacityExceeded(answer["why"], tier=self.tier, key=key, hint=hint)
            case _:
                hint = "Open it with that capacity, or with none to take it as it is"
                problem = f"others use this shared memory with a capacity of {answer['capacity']} bytes"
                return ConfigError(problem, tier=self.tier, hint=hint)


def _connect(tier: str, place: str, capacity_bytes: int | None) -> _Connection:
    """A connection to the holder of `place`, which is started when there is none."""
    address = f"\0tiering-shm-{os.getuid()}-{place}"
    end = time.monotonic() + ANSWER_SECONDS
    while True:
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connected.settimeout(ANSWER_SECONDS)
            try:
                connected.connect(address)
            except ConnectionRefusedError:
                if not _start_holder(address, connected):
                    raise
            _check_owner(connected, tier, place)
            connection = _Connection(tier, connected)
            connection.ask(None, do="hello", capacity=capacity_bytes)
        except ConnectionError:  # the last holder is just ending, or the next one just starting
            connected.close()
            if time.monotonic() > end:
                raise
            time.sleep(0.001)
        except BaseException:
            connected.close()
            raise
        else:
            return connection


def _start_holder(address: str, connected: socket.socket) -> bool:
    """Start the holder and connect to it; False when somebody else is about to."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        try:
            listener.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
        listener.listen(_BACKLOG)
        connected.connect(address)  # it finds a user when it starts, or none when this process is killed
        program = [
            sys.executable,
            "-I",
            "-S",
            str(Path(shared_memory_holder.__file__)),
            str(listener.fileno()),
        ]
        libraries = os.environ.get("LD_LIBRARY_PATH")
        subprocess.run(
            program,
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"LD_LIBRARY_PATH": libraries} if libraries else {},
            start_new_session=True,  # Ctrl-C in a terminal is for the users
            check=False,
        )
    return True


def _check_owner(connected: socket.socket, tier: str, place: str) -> None:
    """Raise unless the holder is this user's: anyone may bind an abstract name."""
    peer = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    owner = struct.unpack("3i", peer)[1]
    if owner != os.getuid():
        hint = "Choose another name"
        raise ConfigError(f"user {owner} holds the name of 'shm://{place}'", tier=tier, hint=hint)


def _fill(fd: int, buffers: Sequence[Buffer], nbytes: int) -> None:
    if nbytes:
        os.posix_fallocate(fd, 0, nbytes)  # no memory is an error here, not a signal later
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        while view.nbytes:
            view = view[os.write(fd, view) :]
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)


def _read(fd: int, offset: int, buffer: memoryview) -> None:
    done = 0
    while done < buffer.nbytes:  # sealed: it cannot become shorter
        done += os.preadv(fd, [buffer[done:]], offset + done)
