"""Memory tier: a dict. It is also the reference model that the conformance suite compares others with.

Invariant: stored values are private copies, so a caller who reuses its buffer changes nothing here. What is
stored and what is being written never exceed the capacity together: replacing an object needs room for both.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from tiering.digest import Buffer
from tiering.errors import CapacityExceeded, ConfigError, Conflict, NotFound
from tiering.keys import CONTROL_BYTES, is_control, validate, validate_prefix
from tiering.stores.base import ObjectInfo, Reader, Store, check_range, total_bytes
from tiering.stores.scatter import Scatter


@dataclass
class _Kept:
    """What all stores of one memory share."""

    capacity_bytes: int | None
    objects: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    data_bytes: int = 0
    control_bytes: int = 0
    reserved_bytes: int = 0
    writes: int = 0
    itself: object = field(default_factory=object)
    """Tells its objects from those of another memory."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class MemoryStore(Store):
    """Objects in this process's memory, at most `capacity_bytes` of them and a little for control objects."""

    kind: ClassVar[str] = "memory"

    def __init__(self, name: str, capacity_bytes: int | None = None) -> None:
        self.name = name
        self._kept = _Kept(capacity_bytes)

    def called(self, name: str, capacity_bytes: int | None = None) -> MemoryStore:
        """The same objects under another name.

        Raises:
            ConfigError: it was opened with another capacity.
        """
        before = self._kept.capacity_bytes
        if capacity_bytes not in (None, before):
            limit = "no capacity" if before is None else f"a capacity of {before} bytes"
            raise ConfigError(
                f"tier {name!r} is memory in use that has {limit}",
                hint="Open it with that capacity, or with none to take it as it is",
            )
        found = type(self)(name)
        found._kept = self._kept
        return found

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        self.reader(key)(offset, buffer)

    def reader(self, key: str) -> Reader:
        def read(offset: int, buffer: memoryview | Scatter) -> Hashable:
            data, etag = self._get(key)
            check_range(self.name, key, offset, buffer.nbytes, len(data))
            if isinstance(buffer, Scatter):
                buffer.copy(np.frombuffer(data, np.uint8, buffer.nbytes, offset))
            else:
                buffer[:] = memoryview(data)[offset : offset + buffer.nbytes]
            return self._kept.itself, etag

        return read

    def read(self, key: str) -> bytearray:
        return bytearray(self._get(key)[0])

    def write(
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        validate(key)
        nbytes = total_bytes(buffers)
        reserved_bytes = self._reserve(key, nbytes, if_absent=if_absent)
        try:
            data = b"".join(buffers)
            with self._kept.lock:
                if if_absent:
                    self._check_absent(key)
                old = self._kept.objects.get(key)
                self._kept.writes += 1
                self._kept.objects[key] = (data, str(self._kept.writes))  # at once: readers take no lock
                self._count(key, nbytes - (len(old[0]) if old else 0))
                return ObjectInfo(key, nbytes, str(self._kept.writes))
        finally:
            with self._kept.lock:
                self._kept.reserved_bytes -= reserved_bytes

    def delete(self, key: str) -> None:
        validate(key)
        with self._kept.lock:
            self._drop(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        validate_prefix(prefix)
        folder = f"{prefix}/" if prefix else ""
        with self._kept.lock:
            found = [
                ObjectInfo(key, len(data), etag)
                for key, (data, etag) in self._kept.objects.items()
                if key.startswith(folder)
            ]
        yield from sorted(found, key=lambda info: info.key.encode())

    def children(self, prefix: str = "") -> Sequence[str]:
        depth = prefix.count("/") + 1 if prefix else 0
        return sorted({info.key.split("/")[depth] for info in self.list(prefix)})

    def stat(self, key: str) -> ObjectInfo:
        data, etag = self._get(key)
        return ObjectInfo(key, len(data), etag)

    def is_volatile(self) -> bool:
        return True

    def free_bytes(self) -> int | None:
        if self._kept.capacity_bytes is None:
            return None
        return max(0, self._kept.capacity_bytes - self._used_bytes - self._kept.reserved_bytes)

    @property
    def _used_bytes(self) -> int:
        return self._kept.data_bytes + max(0, self._kept.control_bytes - CONTROL_BYTES)

    def _reserve(self, key: str, nbytes: int, *, if_absent: bool) -> int:
        """Take room for a write before its bytes are copied; how much that was."""
        with self._kept.lock:
            if if_absent:
                self._check_absent(key)
            if is_control(key) and self._kept.control_bytes + nbytes <= CONTROL_BYTES:
                return 0
            free = self.free_bytes()
            if free is not None and nbytes > free:
                raise CapacityExceeded(
                    f"{nbytes} bytes do not fit: {free} of {self._kept.capacity_bytes} are free",
                    tier=self.name,
                    key=key,
                    hint="Release something from this tier or give it a larger capacity",
                )
            self._kept.reserved_bytes += nbytes
            return nbytes

    def _check_absent(self, key: str) -> None:
        if key in self._kept.objects:
            raise Conflict("object exists already", tier=self.name, key=key)

    def _drop(self, key: str) -> None:
        old = self._kept.objects.pop(key, None)
        self._count(key, -len(old[0]) if old else 0)

    def _count(self, key: str, more_bytes: int) -> None:
        if is_control(key):
            self._kept.control_bytes += more_bytes
        else:
            self._kept.data_bytes += more_bytes

    def _get(self, key: str) -> tuple[bytes, str]:
        validate(key)
        try:
            return self._kept.objects[key]
        except KeyError:
            raise NotFound("no such object", tier=self.name, key=key) from None
