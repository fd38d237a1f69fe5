"""Counts what moves, for `tiering.monitor`.

Invariant: only bytes that arrived are counted, once, however often they were tried.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from tiering.digest import Buffer
from tiering.monitor.stats import COUNTERS
from tiering.stores.base import ObjectInfo, Reader, total_bytes
from tiering.stores.scatter import Scatter
from tiering.stores.wrappers.base import Wrapper


class Counted(Wrapper):
    """Counts bytes read and written by tier."""

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        self.inner.read_into(key, offset, buffer)
        COUNTERS.add_moved(self.name, "read", buffer.nbytes)

    def reader(self, key: str) -> Reader:
        inner = self.inner.reader(key)

        def read(offset: int, buffer: memoryview | Scatter) -> Hashable | None:
            identity = inner(offset, buffer)
            COUNTERS.add_moved(self.name, "read", buffer.nbytes)
            return identity

        return read

    def read(self, key: str) -> Buffer:
        data = self.inner.read(key)
        COUNTERS.add_moved(self.name, "read", len(data))
        return data

    def write(
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        info = self.inner.write(key, buffers, if_absent=if_absent, digest=digest)
        COUNTERS.add_moved(self.name, "write", total_bytes(buffers))
        return info
