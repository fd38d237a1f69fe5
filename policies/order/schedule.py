"""Which corpus comes next, so that every prefix holds the corpora in exact proportion.

With k corpora and weights w_i that add up to 1, the first n draws hold n * w_i of corpus i to within
1 - 1 / (2k - 2), for every n and i at once; no rule does better for all weights (Tijdeman: The chairman
assignment problem, Discrete Mathematics 32, 1980). Equivalently, draw j of corpus i has a first and a last
place where it may stand, and taking the draw whose last place comes first meets all of them (Steiner,
Yeomans: Level schedules for mixed-model, just-in-time processes, Management Science 39, 1993). The weights
are whole numbers of sum W, so the sequence repeats after W draws.
"""

import heapq
from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm

import numpy as np
import numpy.typing as npt

__all__ = ["MOST_DRAWS", "chairman", "whole_weights"]

MOST_DRAWS = 1 << 16


def whole_weights(weights: Sequence[float | Fraction]) -> list[int]:
    """Return the smallest whole numbers in the proportion of these weights.

    A float means the decimal that it prints as: 0.1 is a tenth. Raises ValueError for weights that are not
    above 0 and finite, and where the numbers add up to more than 65,536.
    """
    example = "for example weights=[0.7, 0.2, 0.1]"
    try:
        exact = [Fraction(str(weight)) for weight in weights]
    except ValueError:
        raise ValueError(f"weights must be finite numbers, not {list(weights)!r}; {example}") from None
    if not exact or min(exact) <= 0:
        raise ValueError(f"weights must be above 0, one or more, not {list(weights)!r}; {example}")
    unit = lcm(*(weight.denominator for weight in exact))
    numbers = [int(weight * unit) for weight in exact]
    common = gcd(*numbers)
    numbers = [number // common for number in numbers]
    if sum(numbers) > MOST_DRAWS:
        rounded = [max(1, round(weight / sum(exact) * 1000)) for weight in exact]
        raise ValueError(
            f"weights must be in the proportion of whole numbers that add up to {MOST_DRAWS} at most, not to "
            f"{sum(numbers)}; round them, for example weights={rounded}"
        )
    return numbers


def chairman(weights: Sequence[int]) -> npt.NDArray[np.int64]:
    """Return the corpus of each of the W = sum(weights) draws of a period: int64, shape (W,), O(W log W).

    Draw n, counted from 1, may be number j of corpus i from n >= (j - d) * W / w_i on, and number j has come
    by n <= (j - 1 + d) * W / w_i + 1 rounded down, with d = 1 - 1 / (2k - 2). Equal deadlines go by corpus.
    """
    whole, count = sum(weights), len(weights)
    spare = max(2 * count - 2, 2)  # d = (spare - 1) / spare
    opens: list[list[tuple[int, int]]] = [[] for _ in range(whole + 1)]
    for corpus, weight in enumerate(weights):
        for draw in range(1, weight + 1):
            first = -(-((draw - 1) * spare + 1) * whole // (weight * spare))
            last = (draw * spare - 1) * whole // (weight * spare) + 1
            opens[max(first, 1)].append((last, corpus))
    ready: list[tuple[int, int]] = []
    draws = np.empty(whole, dtype=np.int64)
    for place in range(1, whole + 1):
        for job in opens[place]:
            heapq.heappush(ready, job)
        draws[place - 1] = heapq.heappop(ready)[1]
    return draws
