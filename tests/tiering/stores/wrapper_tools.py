"""A clock that only tests move, and a store that fails as told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tiering.digest import Buffer
from tiering.stores.base import Extent, ObjectInfo, Strays
from tiering.stores.memory import MemoryStore
from tiering.stores.wrappers.base import Guard


class Clock:
    """Seconds; sleeping moves them on."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self.slept: list[float] = []
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.slept.append(seconds)
            self.now += seconds


class Scripted(Guard):
    """A store whose calls meet the errors of `script`: each before its call or, `after`, once it is done.

    None in the script is a call that succeeds; so are all calls when the script is at its end.
    """

    def __init__(self, script: Sequence[Exception | None] = (), *, after: bool = False) -> None:
        super().__init__(MemoryStore("lake"))
        self.script = list(script)
        self.after = after
        self.calls = 0

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self._call(prefix, lambda: None)
        yield from self.inner.list(prefix)

    def _call(self, key: str, call: Callable[[], Any]) -> Any:
        self.calls += 1
        error = self.script.pop(0) if self.script else None
        if error is None:
            return call()
        if self.after:
            call()
        raise error


class Blocked(MemoryStore):
    """A store whose every call waits until `go` is set, as on a dead mount."""

    def __init__(self) -> None:
        super().__init__("lake")
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Semaphore(0)
        self.left = threading.Semaphore(0)

    def _pass(self) -> None:
        self.entered.release()
        self.go.wait()

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        self._pass()
        super().read_into(key, offset, buffer)
        self.left.release()

    def read(self, key: str) -> bytearray:
        self._pass()
        return super().read(key)

    def write(
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        self._pass()
        info = super().write(key, buffers, if_absent=if_absent, digest=digest)
        self.left.release()
        return info

    def delete(self, key: str) -> None:
        self._pass()
        super().delete(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self._pass()
        yield from super().list(prefix)

    def children(self, prefix: str = "") -> Sequence[str]:
        self._pass()
        return super().children(prefix)

    def stat(self, key: str) -> ObjectInfo:
        self._pass()
        return super().stat(key)

    def locate(self, key: str) -> Extent | None:
        self._pass()
        return super().locate(key)

    def set_aside(self, key: str, aside: str) -> bool:
        self._pass()
        return super().set_aside(key, aside)

    def sweep(self, prefix: str = "") -> int:
        self._pass()
        return super().sweep(prefix)

    def strays(self) -> Strays:
        self._pass()
        return super().strays()

    def is_volatile(self) -> bool:
        self._pass()
        return super().is_volatile()

    def free_bytes(self) -> int | None:
        self._pass()
        return super().free_bytes()


def calls(key: str = "k") -> dict[str, Callable[[Any], Any]]:
    """Every call of a store that a wrapper may guard."""
    return {
        "read_into": lambda store: store.read_into(key, 0, memoryview(bytearray(1))),
        "read": lambda store: store.read(key),
        "write": lambda store: store.write(key, [b"v"]),
        "write_if_absent": lambda store: store.write(f"{key}-new", [b"v"], if_absent=True),
        "delete": lambda store: store.delete("other"),
        "list": lambda store: list(store.list()),
        "children": lambda store: store.children(),
        "stat": lambda store: store.stat(key),
        "exists": lambda store: store.exists(key),
        "locate": lambda store: store.locate(key),
        "set_aside": lambda store: store.set_aside("k", "aside"),
        "sweep": lambda store: store.sweep(),
        "strays": lambda store: store.strays(),
        "is_volatile": lambda store: store.is_volatile(),
        "free_bytes": lambda store: store.free_bytes(),
    }
