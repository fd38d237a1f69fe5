"""Which corpus a lane draws at which step, for weights that stay as they are: both ways without walking.

Invariant: the draws of all lanes are one sequence, `schedule.chairman` repeated without end, of which step p
is the draws [p*L, (p+1)*L). Frozen for ever: let T = W / gcd(W, L), the steps after which the draws of a step
are the same again, and write p = b*T + t with 0 <= t < T. Lane l takes the draw at place (l + b + r_t) mod L
of the step, with r_t = (t * 0x9E3779B9 mod 2**32) * L >> 32. So after W*L / gcd(W, L) steps each lane has
taken each draw equally often; until then its own shares drift by some rows.
"""

from collections.abc import Sequence
from math import gcd

import numpy as np
import numpy.typing as npt

from policies.order.schedule import chairman

__all__ = ["MOST_ENTRIES", "Turns", "entries"]

Int64s = npt.NDArray[np.int64]

MOST_ENTRIES = 1 << 24  # of the table, 10 bytes each
_GOLDEN = 0x9E3779B9  # 2**32 over the golden ratio: turns that no short rhythm of the draws falls in with


def entries(weights: Sequence[int], lanes: int) -> int:
    """Return how many entries the table for these weights has."""
    total = sum(weights)
    return total // gcd(total, lanes) * lanes


class Turns:
    """The turns of corpora in lanes: immutable, safe to share by threads. Memory 10 * lcm(W, lanes) bytes.

    weights: whole numbers of sum W, at least 0; a corpus of weight 0 has no turn. lanes: at least 1. All
    arrays given are int64 and of one shape, but for one number in place of an array.
    """

    __slots__ = ("_before", "_corpora", "_earlier", "_firsts", "_lanes", "_order", "_steps")

    def __init__(self, weights: Sequence[int], lanes: int) -> None:
        total, count = sum(weights), len(weights)
        self._lanes = lanes
        self._steps = total // gcd(total, lanes)
        steps = np.arange(self._steps)
        turns = (steps * _GOLDEN % (1 << 32)) * lanes >> 32
        places = (np.arange(lanes)[:, None] + turns) % lanes + steps * lanes
        drawing = np.flatnonzero(weights)
        draws = drawing[chairman([weight for weight in weights if weight])].astype(np.uint16)
        # By place of the first step's lane and by step: the corpus, and how often the row held it before.
        self._corpora = draws[places % total]
        self._earlier = np.empty(self._corpora.shape, dtype=np.int32)
        # The steps of each row, corpus after corpus, and where those of a corpus begin.
        self._order = np.empty(self._corpora.shape, dtype=np.int32)
        self._firsts = np.zeros((lanes, count), dtype=np.int64)
        taken = np.zeros((2 * lanes + 1, count), dtype=np.int64)
        for lane, corpora in enumerate(self._corpora):
            sizes = np.bincount(corpora, minlength=count)
            order = np.argsort(corpora, kind="stable")
            firsts = np.cumsum(sizes) - sizes
            self._earlier[lane, order] = steps - np.repeat(firsts, sizes)
            self._order[lane], self._firsts[lane] = order, firsts
            taken[lane + 1] = taken[lane + lanes + 1] = sizes
        self._before = np.cumsum(taken, axis=0)

    def corpora(self, lanes: Int64s, steps: Int64s) -> npt.NDArray[np.uint16]:
        """Return the corpus each lane draws at its step: uint16; the arrays are broadcast."""
        block, step = np.divmod(steps, self._steps)
        corpora: npt.NDArray[np.uint16] = self._corpora[(lanes + block) % self._lanes, step]
        return corpora

    def draws(self, lane: int, steps: Int64s) -> tuple[Int64s, Int64s]:
        """Return the corpus the lane draws at each step, and how many of that it drew before."""
        block, step = np.divmod(steps, self._steps)
        held = (lane + block) % self._lanes
        corpora = self._corpora[held, step].astype(np.int64)
        return corpora, self._drawn(lane, block, corpora) + self._earlier[held, step]

    def drawn(self, lane: int, steps: int) -> Int64s:
        """Return how many of each corpus the lane draws in its first steps: int64, shape (corpora,)."""
        block, step = divmod(steps, self._steps)
        count = self._before.shape[1]
        counts = self._drawn(lane, np.array(block), np.arange(count))
        counts += np.bincount(self._corpora[(lane + block) % self._lanes, :step], minlength=count)
        return counts

    def steps(self, corpus: int, lanes: Int64s, numbers: Int64s) -> Int64s:
        """Return at which step each lane draws the row of this number of the corpus, which has turns."""
        before = self._before[:, corpus]
        rounds, left = np.divmod(numbers, before[self._lanes])
        left += before[lanes]
        block = np.searchsorted(before, left, side="right") - 1  # counted from where lane 0 would be
        left -= before[block]
        held = block % self._lanes
        step = self._order[held, self._firsts[held, corpus] + left]
        steps: Int64s = (rounds * self._lanes + block - lanes) * self._steps + step
        return steps

    def _drawn(self, lane: int, block: Int64s, corpora: Int64s) -> Int64s:
        """Return how many rows of `corpora` the lane took in the first `block` times `_steps` steps."""
        rounds, rest = np.divmod(block, self._lanes)
        drawn: Int64s = self._before[lane + rest, corpora] - self._before[lane, corpora]
        drawn += rounds * self._before[self._lanes, corpora]
        return drawn
