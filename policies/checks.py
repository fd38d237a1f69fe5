"""Checks of arguments: every message names the argument, the value seen and a right example."""

import operator
from collections.abc import Iterable, Sequence
from math import inf
from typing import SupportsIndex

import numpy as np
import numpy.typing as npt

__all__ = ["number", "one_of", "whole", "whole_array", "whole_ids", "whole_list"]

_MOST = 1 << 60


def one_of(name: str, value: str, names: Iterable[str], *, example: str) -> None:
    """Raise ValueError where `value` is none of `names`."""
    if value not in names:
        listed = ", ".join(map(repr, names))
        raise ValueError(f"{name} must be one of {listed}, not {value!r}; for example {name}={example!r}")


def number(
    name: str, value: float, *, above: float | None = None, below: float = inf, example: float
) -> float:
    """Return `value`, below `below` and at least 0 or, where `above` is given, more than that.

    Raises ValueError for anything else, NaN and what is no number included.
    """
    right = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not right or not 0 <= value < below or (above is not None and value <= above):
        least = "at least 0" if above is None else f"above {above}"
        most = "finite" if below == inf else f"below {below:g}"
        raise ValueError(f"{name} must be {least} and {most}, not {value!r}; e.g. {name}={example}")
    return value


def whole(name: str, value: SupportsIndex, *, least: int, below: int = _MOST, example: int) -> int:
    """Return `value` as an int in [least, below).

    Python and numpy integers pass; the default `below` leaves room for sums of such numbers in int64.
    Raises ValueError for anything else, floats with a whole value included.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, not {value!r}; e.g. {name}={example}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}; e.g. {name}={example}")
    if number >= below:
        raise ValueError(f"{name} must be below {below}, not {number}; e.g. {name}={example}")
    return number


def whole_array(name: str, values: npt.ArrayLike, count: int) -> npt.NDArray[np.int64]:
    """Return `count` ints, int64: those of a flat sequence of that length, or one number repeated.

    Raises ValueError for any other shape or type, a number below 0 and a sum of 2**60 or more.
    """
    array = np.asarray(values)
    if array.shape not in ((), (count,)):
        raise ValueError(
            f"{name} must be one number or {count}, not of shape {array.shape}; e.g. {name}=4096"
        )
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be whole numbers, not {array.dtype}; e.g. {name}=4096")
    if array.size and array.min() < 0:
        raise ValueError(f"{name} must be at least 0, not {array.min()}; e.g. {name}=4096")
    numbers = np.broadcast_to(array, (count,))
    if numbers.sum(dtype=np.float64) >= _MOST:
        raise ValueError(f"{name} must be below 2**60 in all, not up to {array.max()}; e.g. {name}=4096")
    return numbers.astype(np.int64)


def whole_list(name: str, values: int | Sequence[int] | npt.NDArray[np.integer], count: int) -> list[int]:
    """Return what `whole_array` does, as Python ints."""
    numbers: list[int] = whole_array(name, values, count).tolist()
    return numbers


def whole_ids(name: str, values: npt.ArrayLike) -> npt.NDArray[np.integer]:
    """Return the flat array of any ints, shape (n,); ValueError for another shape or type."""
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(
            f"{name} must be a flat sequence of ints, not {array.dtype} of shape {array.shape}; "
            f"e.g. {name}=[1, 2, 1]"
        )
    return array if array.size else array.astype(np.int64)
