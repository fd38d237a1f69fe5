"""What a process makes for itself when it first needs it: connections, open files, locks.

Invariant: nobody gets what another process made: a pickled copy and a forked child make their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Own(Generic[T]):
    """Holds one such thing.

    It has no lock, which a child could inherit locked: two threads may both make it, and one is kept.
    """

    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made: tuple[int, T] | None = None

    def get(self, make: Callable[[], T]) -> T:
        """What this process made, or what `make` gives now."""
        made = self._made
        if made is None or made[0] != os.getpid():
            made = self._made = (os.getpid(), make())
        return made[1]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()
