"""Wrappers add one behaviour to any store, so that no store carries flags.

Invariant: a wrapper is itself a `Store` and changes nothing but what its name says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NoReturn

from tiering.digest import Buffer
from tiering.errors import UsageError
from tiering.monitor.stats import COUNTERS
from tiering.stores.base import Extent, ObjectInfo, Store, total_bytes


class Wrapper(Store):
    """Passes every call on to `inner`."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.name = inner.name

    @property
    def kind(self) -> str:  # type: ignore[override]  # a wrapper has the kind of what it wraps
        """Kind of the wrapped store."""
        return self.inner.kind

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        self.inner.read_into(key, offset, buffer)

    def read(self, key: str) -> bytearray:
        return self.inner.read(key)

    def write(self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False) -> ObjectInfo:
        return self.inner.write(key, buffers, if_absent=if_absent)

    def delete(self, key: str) -> None:
        self.inner.delete(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self.inner.list(prefix)

    def children(self, prefix: str = "") -> Sequence[str]:
        return self.inner.children(prefix)

    def stat(self, key: str) -> ObjectInfo:
        return self.inner.stat(key)

    def locate(self, key: str) -> Extent | None:
        return self.inner.locate(key)

    def sweep(self, prefix: str = "") -> int:
        return self.inner.sweep(prefix)

    def free_bytes(self) -> int | None:
        return self.inner.free_bytes()

    def close(self) -> None:
        self.inner.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner!r})"


class Counted(Wrapper):
    """Counts bytes read and written by tier, for `tiering.monitor`."""

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        self.inner.read_into(key, offset, buffer)
        COUNTERS.add_moved(self.name, "read", buffer.nbytes)

    def read(self, key: str) -> bytearray:
        data = self.inner.read(key)
        COUNTERS.add_moved(self.name, "read", len(data))
        return data

    def write(self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False) -> ObjectInfo:
        info = self.inner.write(key, buffers, if_absent=if_absent)
        COUNTERS.add_moved(self.name, "write", total_bytes(buffers))
        return info


class ReadOnly(Wrapper):
    """Refuses every change."""

    def write(self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False) -> ObjectInfo:
        self._refuse(key)

    def delete(self, key: str) -> None:
        self._refuse(key)

    def sweep(self, prefix: str = "") -> int:
        self._refuse(prefix)

    def _refuse(self, key: str) -> NoReturn:
        raise UsageError("the tier is read-only", tier=self.name, key=key, hint="Open it without read_only")
