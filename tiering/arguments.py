"""First mistakes with the Python API: an argument of another type is told as one, before anything is done."""

from __future__ import annotations

import contextlib
import difflib
import operator
from collections.abc import Iterable
from types import UnionType

from tiering.errors import UsageError


def need(value: object, kind: type | UnionType, what: str, example: str) -> None:
    """Raise unless `value` is a `kind`.

    Raises:
        UsageError: it is not; names `what`, the value and a right example.
    """
    if not isinstance(value, kind):
        raise _wrong(value, getattr(kind, "__name__", str(kind)), what, example)


def whole(value: object, what: str, example: str) -> int:
    """The value as an int: Python's and numpy's pass.

    Raises:
        UsageError: as of `need`.
    """
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            return operator.index(value)  # type: ignore[arg-type]
    raise _wrong(value, "whole number", what, example)


def known(name: str, names: Iterable[str]) -> str:
    """What to say of a name that is none of `names`: the one that was meant, or all of them."""
    names = list(names)
    close = difflib.get_close_matches(name, names, 1)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Known: {', '.join(names)}." if names else "None is known."


def _wrong(value: object, kind: str, what: str, example: str) -> UsageError:
    seen = repr(value)
    seen = seen if len(seen) <= 80 else f"a {type(value).__name__}"
    return UsageError(f"{what} = {seen} is no {kind}", hint=f"Example: {example}")
