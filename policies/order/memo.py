"""A small bounded memory of results that can be computed again: it saves time and never changes an answer."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

__all__ = ["Memo"]

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Memo(Generic[Key, Value]):
    """The results of the `capacity` keys used last. Any thread may call it; values must not be changed."""

    __slots__ = ("_capacity", "_known", "_lock")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._known: OrderedDict[Key, Value] = OrderedDict()
        self._lock = Lock()

    def __contains__(self, key: Key) -> bool:
        return key in self._known

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """Return the value of `key`, calling `make` where it is not known.

        Two threads that miss together both call `make`: computing twice costs less than waiting under a lock.
        """
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        value = make()
        self.put(key, value)
        return value

    def put(self, key: Key, value: Value) -> None:
        """Remember the value of `key`."""
        with self._lock:
            self._known[key] = value
            self._known.move_to_end(key)
            if len(self._known) > self._capacity:
                self._known.popitem(last=False)
