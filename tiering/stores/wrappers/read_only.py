"""Refuses changes.

Invariant: no write, delete, rename or sweep reaches the wrapped store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from tiering.digest import Buffer
from tiering.errors import UsageError
from tiering.stores.base import ObjectInfo, Reader
from tiering.stores.wrappers.base import Wrapper


class ReadOnly(Wrapper):
    """Refuses every change."""

    def reader(self, key: str) -> Reader:
        return self.inner.reader(key)

    def write(
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        self._refuse(key)

    def delete(self, key: str) -> None:
        self._refuse(key)

    def set_aside(self, key: str, aside: str) -> bool:
        self._refuse(key)

    def sweep(self, prefix: str = "") -> int:
        self._refuse(prefix)

    def _refuse(self, key: str) -> NoReturn:
        raise UsageError("the tier is read-only", tier=self.name, key=key, hint="Open it without read_only")
