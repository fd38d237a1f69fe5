"""A small bounded memory of results that can be computed again: it saves time and never changes an answer.

It has no lock: each step is one operation of the dictionary, which is whole whatever threads do. So a child
that is forked while another thread looks something up does not wait for a lock that nobody will give back.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Generic, TypeVar

__all__ = ["Memo"]

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Memo(Generic[Key, Value]):
    """The results of the `capacity` keys used last. Any thread may call it; values must not be changed."""

    __slots__ = ("_capacity", "_known")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._known: OrderedDict[Key, Value] = OrderedDict()

    def __contains__(self, key: Key) -> bool:
        return key in self._known

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """Return the value of `key`, calling `make` where it is not known.

        Two threads that miss together both call `make`: computing twice costs less than waiting for another.
        """
        try:
            value = self._known[key]
            self._known.move_to_end(key)
        except KeyError:  # the second, where another thread has just put something in its place
            value = make()
            self.put(key, value)
        return value

    def put(self, key: Key, value: Value) -> None:
        """Remember the value of `key`."""
        self._known[key] = value
        with suppress(KeyError):
            self._known.move_to_end(key)
            if len(self._known) > self._capacity:
                self._known.popitem(last=False)
