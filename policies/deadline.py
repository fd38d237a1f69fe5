"""Have these items there by then, within so many bytes a second and so much money: a schedule, or why not.

The link is that of `policies.simulation.TierModel`: a fetch takes a slot, waits out the latency, then its
bytes follow those of the fetches before it. When the last byte has come is then a convex, piecewise
linear function of the seconds a byte takes, so Newton's method from the slow side finds the slowest rate
that is in time, and never one that is not: the schedule leaves the rest of the bandwidth to others.

Invariant: a `Schedule` keeps its deadline, its bandwidth and its money; where none can, there is a `Refusal`.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Generic

import numpy as np
import numpy.typing as npt

from policies.checks import whole_list
from policies.eviction.base import Item
from policies.simulation.models import TierModel

__all__ = ["Delivery", "Refusal", "Schedule", "Start"]

_EQUAL: Final = 1 + 1e-9  # a rate that is faster by less is the same one, rounded
_FASTER: Final = 1 - 1e-12  # in each step of the search, so that rounding cannot keep it from its end


@dataclass(frozen=True, slots=True)
class Start(Generic[Item]):
    """A fetch to begin at start_seconds, whose last byte comes at done_seconds."""

    item: Item
    nbytes: int
    start_seconds: float
    done_seconds: float


@dataclass(frozen=True, slots=True)
class Schedule(Generic[Item]):
    """Fetches by their start, at `rate_bytes_per_second` together, the slowest in time, and their cost."""

    starts: tuple[Start[Item], ...]
    rate_bytes_per_second: float
    done_seconds: float
    cost: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why it cannot be done, and what would do.

    short: those of "time", "bandwidth" and "money" that are short; time where no bandwidth would do.
    deadline_needed_seconds: the earliest deadline with the bandwidth given.
    bandwidth_needed_bytes_per_second: the least for the deadline given; infinite where none would do.
    money_needed: the least. fits: so many of the items that are left, from the first on, can be had as
    things are. reason: all this in words.
    """

    short: tuple[str, ...]
    deadline_needed_seconds: float
    bandwidth_needed_bytes_per_second: float
    money_needed: float
    fits: int
    reason: str


class Delivery(Generic[Item]):
    """What is wanted: every one of `items`, in this order, by `deadline_seconds`.

    items: distinct. sizes: bytes of each, or one number for all. tier: where they come from.
    deadline_seconds: on any clock, the one of `now` below. bandwidth_bytes_per_second: the most that may
    be used; None is all the tier has. money: the most that may be spent, in the currency of the tier's
    prices. Raises ValueError for items that come twice and for numbers that cannot be.
    """

    def __init__(
        self,
        items: Sequence[Item],
        sizes: int | Sequence[int] | npt.NDArray[np.integer],
        tier: TierModel,
        *,
        deadline_seconds: float,
        bandwidth_bytes_per_second: float | None = None,
        money: float = math.inf,
    ) -> None:
        self._sizes = dict(zip(items, whole_list("sizes", sizes, len(items)), strict=True))
        if len(self._sizes) != len(items):
            raise ValueError(
                f"items must differ, not hold {len(items) - len(self._sizes)} twice; e.g. ['a', 'b']"
            )
        if not math.isfinite(deadline_seconds):
            raise ValueError(f"deadline_seconds must be finite, not {deadline_seconds}; e.g. now + 3600")
        allowed = math.inf if bandwidth_bytes_per_second is None else bandwidth_bytes_per_second
        if not allowed > 0:
            raise ValueError(f"bandwidth_bytes_per_second must be above 0, not {allowed}; e.g. 100e6")
        if not money >= 0:
            raise ValueError(f"money must be at least 0, not {money}; e.g. money=25.0")
        self._tier = tier
        self._deadline = deadline_seconds
        self._rate = min(allowed, tier.bandwidth_bytes_per_second)
        self._money = money

    def plan(self, now: float) -> Schedule[Item] | Refusal:
        """Return the schedule from `now` on, or why there is none; O(items) a step of the search, 2 to 10."""
        return self.replan(now, ())

    def replan(
        self, now: float, done: Collection[Item], *, spent: float | None = None
    ) -> Schedule[Item] | Refusal:
        """Return the schedule for what is not `done`, or why there is none; what is in flight begins again.

        spent: money gone so far; None means the price of what is done. Raises ValueError where `done` holds
        what was not wanted.
        """
        finished = set(done)
        if strange := [item for item in finished if item not in self._sizes]:
            raise ValueError(f"done must hold items of this delivery, not {strange[0]!r}")
        left = {item: nbytes for item, nbytes in self._sizes.items() if item not in finished}
        sizes = list(left.values())
        if spent is None:
            spent = self._tier.cost(len(finished), sum(self._sizes[item] for item in finished))
        cost = self._tier.cost(len(sizes), sum(sizes))
        seconds = self._deadline - now
        rate = self._slowest_rate(sizes, seconds)
        if rate > self._rate * _EQUAL or spent + cost > self._money:
            return self._refuse(sizes, now, rate, spent)
        rate = min(rate, self._rate)
        begins, ends = self._times(sizes, rate)
        starts = tuple(
            Start(item, nbytes, now + begin, now + end)
            for (item, nbytes), begin, end in zip(left.items(), begins, ends, strict=True)
        )
        return Schedule(starts, rate, starts[-1].done_seconds if starts else now, cost)

    def _refuse(self, sizes: list[int], now: float, rate: float, spent: float) -> Refusal:
        tier, seconds = self._tier, self._deadline - now
        _, ends = self._times(sizes, self._rate)
        needed_seconds = ends[-1] if ends else 0.0
        needed_money = spent + tier.cost(len(sizes), sum(sizes))
        short, reasons = [], []
        if rate > self._rate * _EQUAL:
            late = (
                f"{len(sizes)} items of {sum(sizes)} bytes need {needed_seconds:.6g} s at "
                f"{self._rate:.6g} bytes a second, and {max(0.0, seconds):.6g} s are left"
            )
            if rate < math.inf:
                short.append("bandwidth")
                reasons.append(
                    f"{late}: {rate:.6g} bytes a second would do, or a deadline of {now + needed_seconds}"
                )
            else:
                short.append("time")
                reasons.append(
                    f"{late}: no bandwidth would do with {tier.slots} slots of {tier.latency_seconds} s "
                    f"latency, a deadline of {now + needed_seconds} would"
                )
        if needed_money > self._money:
            short.append("money")
            reasons.append(
                f"it costs {needed_money:.6g} in all, {needed_money - self._money:.6g} more than may be spent"
            )
        fits = fit_bytes = 0
        for nbytes, end in zip(sizes, ends, strict=True):
            fit_bytes += nbytes
            if end > seconds or spent + tier.cost(fits + 1, fit_bytes) > self._money:
                break
            fits += 1
        reasons.append(f"the first {fits} of the items left could be had")
        return Refusal(tuple(short), now + needed_seconds, rate, needed_money, fits, "; ".join(reasons))

    def _slowest_rate(self, sizes: list[int], seconds: float) -> float:
        """Return the least bytes a second at which all is there in so many seconds; infinite for none."""
        total = sum(sizes)
        if not total:
            return self._rate if not sizes or self._last(sizes, 0.0)[0] <= seconds else math.inf
        second_a_byte = seconds / total
        while second_a_byte > 0:
            at, path_bytes = self._last(sizes, second_a_byte)
            if at <= seconds:
                return 1 / second_a_byte
            second_a_byte = (second_a_byte - (at - seconds) / path_bytes) * _FASTER if path_bytes else 0.0
        return math.inf

    def _times(self, sizes: list[int], rate: float) -> tuple[list[float], list[float]]:
        """Return after how many seconds the fetch of each item begins, and its last byte comes."""
        latency, slots = self._tier.latency_seconds, self._tier.slots
        begins: list[float] = []
        ends: list[float] = []
        link_free = 0.0
        for number, nbytes in enumerate(sizes):
            begins.append(ends[number - slots] if number >= slots else 0.0)
            link_free = max(begins[-1] + latency, link_free) + nbytes / rate
            ends.append(link_free)
        return begins, ends

    def _last(self, sizes: list[int], second_a_byte: float) -> tuple[float, int]:
        """Return after how many seconds all is there, and the bytes whose rate decides that."""
        latency, slots = self._tier.latency_seconds, self._tier.slots
        ends: list[tuple[float, int]] = []
        last = (0.0, 0)
        for number, nbytes in enumerate(sizes):
            begin, path_bytes = ends[number - slots] if number >= slots else (0.0, 0)
            at, path_bytes = max((begin + latency, path_bytes), last)
            last = (at + nbytes * second_a_byte, path_bytes + nbytes)
            ends.append(last)
        return last
