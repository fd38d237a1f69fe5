"""What all wrappers share.

Invariant: `Wrapper` passes every method of `Store` on to the wrapped store, `Guard` passes every one of them
through one function.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from tiering.digest import Buffer
from tiering.stores.base import Extent, ObjectInfo, Store, Strays

T = TypeVar("T")


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

    def read(self, key: str) -> Buffer:
        return self.inner.read(key)

    def write(
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        return self.inner.write(key, buffers, if_absent=if_absent, digest=digest)

    def delete(self, key: str) -> None:
        self.inner.delete(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self.inner.list(prefix)

    def children(self, prefix: str = "") -> Sequence[str]:
        return self.inner.children(prefix)

    def stat(self, key: str) -> ObjectInfo:
        return self.inner.stat(key)

    def exists(self, key: str) -> bool:
        return self.inner.exists(key)

    def locate(self, key: str) -> Extent | None:
        return self.inner.locate(key)

    def set_aside(self, key: str, aside: str) -> bool:
        return self.inner.set_aside(key, aside)

    def sweep(self, prefix: str = "") -> int:
        return self.inner.sweep(prefix)

    def strays(self) -> Strays:
        return self.inner.strays()

    def is_volatile(self) -> bool:
        return self.inner.is_volatile()

    def free_bytes(self) -> int | None:
        return self.inner.free_bytes()

    def when_settled(self, then: Callable[[], None]) -> bool:
        return self.inner.when_settled(then)

    def close(self) -> None:
        self.inner.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join((repr(self.inner), *self._numbers()))})"

    def _numbers(self) -> Sequence[str]:
        """What `repr` tells besides the wrapped store, such as ``attempts=4``."""
        return ()


class Guard(Wrapper):
    """Passes every call through `_call`; listings and `close` are a subclass's own business."""

    @abstractmethod
    def _call(self, key: str, call: Callable[[], T]) -> T:
        """The result of `call`, which is about `key`."""

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        self._call(key, lambda: self.inner.read_into(key, offset, buffer))

    def read(self, key: str) -> Buffer:
        return self._call(key, lambda: self.inner.read(key))

    def write(
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        return self._call(key, lambda: self.inner.write(key, buffers, if_absent=if_absent, digest=digest))

    def delete(self, key: str) -> None:
        self._call(key, lambda: self.inner.delete(key))

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]: ...

    def children(self, prefix: str = "") -> Sequence[str]:
        return self._call(prefix, lambda: self.inner.children(prefix))

    def stat(self, key: str) -> ObjectInfo:
        return self._call(key, lambda: self.inner.stat(key))

    def exists(self, key: str) -> bool:
        return self._call(key, lambda: self.inner.exists(key))

    def locate(self, key: str) -> Extent | None:
        return self._call(key, lambda: self.inner.locate(key))

    def set_aside(self, key: str, aside: str) -> bool:
        return self._call(key, lambda: self.inner.set_aside(key, aside))

    def sweep(self, prefix: str = "") -> int:
        return self._call(prefix, lambda: self.inner.sweep(prefix))

    def strays(self) -> Strays:
        return self._call("", self.inner.strays)

    def is_volatile(self) -> bool:
        return self._call("", self.inner.is_volatile)

    def free_bytes(self) -> int | None:
        return self._call("", self.inner.free_bytes)
