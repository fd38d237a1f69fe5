"""The contract every store keeps. One conformance suite (tests/conformance) holds all of them to it.

A store maps keys (see `tiering.keys`) to immutable runs of bytes.

Atomicity: a key holds either the old bytes or the new ones, whole. A write that fails, or whose process is
killed at any instant, leaves the key as it was. Readers that opened the old bytes may finish reading them.

Durability: when `write` returns, the bytes survive the end of the process, and of the machine where the
medium can. When `delete` returns, the key is gone for every later call.

Visibility: a completed `write` or `delete` is seen at once by every later `stat`, `read` and `list`,
from any thread or process.

Ranges are half-open: ``[offset, offset + len(buffer))``. A range that reaches past the end of the object is
`Corrupt`, never a short read: offsets come from manifests, so a shorter object is a damaged one. A read gives
bytes of one version of the object. After an error the buffer holds anything; nobody writes into it later.

Listing: ascending by the UTF-8 bytes of the key, each key once. Objects that are there from the beginning of
a listing to its end are in it, those that never are there are not; of the rest, any may be.

Limits: keys of `tiering.keys`, at most 1,024 bytes. Objects from 0 bytes to what the medium takes; a
conditional write of an object tier is one request, so at most 5 GiB.

Errors: `NotFound` (no such key), `Conflict` (``if_absent`` and the key exists), `CapacityExceeded` (no room),
`Corrupt` (truncated), `UsageError` (bad key or range, or read-only). `Unavailable` and `DeadlineExceeded` are
the retryable ones: the same call may succeed later. A write or delete that ended so may have been done, now
or later (`when_settled`); repeating it is safe, for keys hold immutable bytes. Only a repeated ``if_absent``
may meet itself: whoever repeats one compares the bytes on `Conflict`.

Keys: no key is a folder of another (``a`` beside ``a/b``): a file system cannot hold both, and a store may
refuse or allow it.

Concurrency: a store may be used from many threads. It is not pickled or shared across fork: a process
opens its own from its `Tier`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from tiering.closing import Closing
from tiering.digest import Buffer
from tiering.errors import Corrupt, UsageError
from tiering.stores.pages import new_buffer
from tiering.stores.scatter import Scatter

Reader = Callable[[int, memoryview | Scatter], Hashable | None]
"""Fills a buffer, or the places of rows, from an offset on, as `Store.read_into` does. Returns what tells the
object read from any other bytes the key ever held, so that what was verified once need not be again; None
where nothing does."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store knows of one object."""

    key: str
    nbytes: int
    etag: str | None = None
    """Changes whenever the bytes change, where the store has such a thing."""
    modified_seconds: float | None = field(default=None, compare=False)
    """When it was written, in seconds since 1970 by the medium's clock; None where nobody knows."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes ``[offset, offset + nbytes)`` of a file or device that hold one whole object."""

    path: Path
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Strays:
    """Unfinished writes that nothing removes, as nothing here can tell whether their writers live."""

    count: int = 0
    nbytes: int = 0
    command: str = ""
    """Removes those of more than a day, once it is known that nobody writes."""
    unlisted: str = ""
    """What can leave unfinished writes here that nothing can list, and what ends them; mostly empty."""


class Store(Closing):
    """Keys to bytes; see the module for the promises."""

    kind: ClassVar[str]
    """``memory``, ``file``, ``block`` or ``object``."""

    name: str
    """The tier's name, for error messages."""

    @abstractmethod
    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        """Fill the whole of `buffer` (writable, contiguous, format ``B``) with bytes from `offset` on."""

    @abstractmethod
    def write(
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        """Make `key` hold the concatenation of `buffers`, which nobody changes until the call returns.

        With `if_absent`, exactly one of any number of racing writers succeeds; the others get `Conflict`.

        `digest` is the BLAKE3 of these bytes, from a caller who has just computed or checked it: a store
        that records one then need not hash them. Nobody believes it any longer than until the bytes are read
        back, so whoever gives one reads them back (`tiering.transfer`).
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove `key`; a key that is not there is not an error."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects below the folder `prefix` (all, for ``""``), in ascending order of their UTF-8 bytes.

        Unfinished writes are never listed.
        """

    @abstractmethod
    def children(self, prefix: str = "") -> Sequence[str]:
        """Names one level below the folder `prefix`, of objects and folders alike, sorted."""

    @abstractmethod
    def stat(self, key: str) -> ObjectInfo:
        """Size and etag of `key`."""

    def reader(self, key: str) -> Reader:
        """What reads as `read_into` of `key` does, for many small reads; drop it when these are done."""

        def read(offset: int, into: memoryview | Scatter) -> None:
            if isinstance(into, memoryview):
                self.read_into(key, offset, into)
                return
            rows = np.empty(into.nbytes, np.uint8)
            self.read_into(key, offset, memoryview(rows))
            into.copy(rows)

        return read

    def read(self, key: str) -> Buffer:
        """All bytes of `key`, in memory that is the caller's alone for as long as anything refers to it."""
        buffer = new_buffer(self.stat(key).nbytes)
        if buffer:
            self.read_into(key, 0, memoryview(buffer))
        return buffer

    def exists(self, key: str) -> bool:
        """Whether `key` holds an object."""
        try:
            self.stat(key)
        except FileNotFoundError:
            return False
        return True

    def locate(self, key: str) -> Extent | None:
        """Where the bytes of `key` lie in a file or device here; None where they have no address."""
        self.stat(key)
        return None

    def set_aside(self, key: str, aside: str) -> bool:
        """Rename what lies in the place of `key` and is no object, such as a link or a folder, to `aside`.

        Nothing is followed, and nothing that is an object is touched. Returns whether there was such a thing,
        which only file systems have.
        """
        return False

    def sweep(self, prefix: str = "") -> int:
        """Give back the room of writes below the folder `prefix` whose writer was killed; returns how many.

        Safe while others write.
        """
        return 0

    def strays(self) -> Strays:
        """What `sweep` leaves because its writer may live on another machine."""
        return Strays()

    def is_volatile(self) -> bool:
        """Whether what is stored is gone when this machine stops, or before."""
        return False

    def free_bytes(self) -> int | None:
        """Room left on the medium, or None where nobody knows."""
        return None

    def when_settled(self, then: Callable[[], None]) -> bool:
        """Call `then` once no write or delete that this process gave up can take effect any more.

        Whoever holds a name until then is sure that nothing of its work comes after others have begun theirs.

        Returns:
            Whether that was before this returned; else it is in another thread, or never.
        """
        then()
        return True

    def close(self) -> None:
        """Give back what the store holds open; later calls may fail. Idempotent."""
        return

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


def total_bytes(buffers: Sequence[Buffer]) -> int:
    """Length of the concatenation of `buffers`."""
    return sum(memoryview(buffer).nbytes for buffer in buffers)


def check_range(tier: str, key: str, offset: int, nbytes: int, object_bytes: int) -> None:
    """Raise unless ``[offset, offset + nbytes)`` lies within an object of `object_bytes`.

    Raises:
        UsageError: negative offset.
        Corrupt: the range reaches past the end.
    """
    if offset < 0:
        raise UsageError(f"offset {offset} is negative", tier=tier, key=key)
    if offset + nbytes > object_bytes:
        raise Corrupt(
            f"bytes [{offset}, {offset + nbytes}) asked of an object of {object_bytes} bytes",
            tier=tier,
            key=key,
            hint="The object is truncated; 'tiering verify' finds it and the other tiers can replace it",
        )
