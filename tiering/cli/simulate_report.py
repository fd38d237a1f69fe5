"""What a simulation found, for people: a table, and what its figures mean in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from dask.utils import format_bytes, format_time
from rich.table import Table

from policies.eviction import ONLINE
from policies.regime import Choice
from policies.simulation import Outcome, front
from policies.trace import Trace

_NEAR: Final = 1.02
"""Stalls and egress that differ by less than this are alike."""
_NOTHING: Final = 0.0005
"""What is shown as 0.0%."""


def table(outcomes: Sequence[Outcome]) -> Table:
    """A row for each; the lookahead where they differ in it, dollars where they cost any."""
    ahead = len({outcome.cache.lookahead_bytes for outcome in outcomes}) > 1
    priced = any(outcome.cost for outcome in outcomes)
    columns = ["policy", "cache", *["ahead"] * ahead, "miss", "bytes", "least", "fetched"]
    columns += [*["$"] * priced, "waits", "99%", ""]
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:  # in 80 columns a long name takes two lines, and no figure is cut
        shown.add_column(column, no_wrap=column != "policy", overflow="fold")
    chosen, frugal = best(outcomes), front(outcomes)
    for outcome in outcomes:
        row = [outcome.cache.policy, format_bytes(outcome.cache.capacity_bytes)]
        row += [format_bytes(outcome.lookahead_bytes)] * ahead
        row += [
            f"{ratio:.1%}" for ratio in (outcome.object_miss_ratio, outcome.byte_miss_ratio, outcome.bound)
        ]
        row += [format_bytes(outcome.fetched_bytes), *[f"{outcome.cost:,.4f}"] * priced]
        row += [format_time(outcome.stall_seconds), format_time(outcome.p99_stall_seconds)]
        shown.add_row(*row, "best" if outcome == chosen else "front" if outcome in frugal else "")
    return shown


def facts(outcome: Outcome) -> dict[str, Any]:
    """The outcome as flat figures."""
    fields = asdict(outcome)
    del fields["tier"], fields["cache"]
    return {
        "policy": outcome.cache.policy,
        "capacity_bytes": outcome.cache.capacity_bytes,
        **fields,
        "object_miss_ratio": outcome.object_miss_ratio,
        "byte_miss_ratio": outcome.byte_miss_ratio,
        "bound": outcome.bound,
        "distance": outcome.distance,
    }


def finite(number: float | None) -> float | None:
    """The number, or None for one that JSON has not."""
    return None if number is None or math.isinf(number) else number


def best(outcomes: Sequence[Outcome]) -> Outcome:
    """The one that a node cache can do and that stalls least; of those alike, the least egress, then room."""
    possible = [o for o in outcomes if o.cache.policy in ONLINE] or list(outcomes)
    least = min(outcome.stall_seconds for outcome in possible)
    alike = [outcome for outcome in possible if outcome.stall_seconds <= least * _NEAR]
    frugal = min(outcome.fetched_bytes for outcome in alike)
    alike = [outcome for outcome in alike if outcome.fetched_bytes <= frugal * _NEAR]
    return min(alike, key=lambda o: (o.cache.capacity_bytes, o.fetched_bytes, o.lookahead_bytes))


def advise(trace: Trace, outcomes: Sequence[Outcome]) -> list[str]:
    """What was asked for, what to choose, what that costs, how far it is from the bound and the others."""
    chosen = best(outcomes)
    words = [_demand(trace), _choice(chosen, several=len(outcomes) > 1), _bound(chosen)]
    words += _others(chosen, outcomes)
    words += _less_room(chosen, outcomes)
    words += _lookaheads(chosen, outcomes)
    smallest = min(outcome.cache.capacity_bytes for outcome in outcomes)
    if larger := int((trace.sizes > smallest).sum()):
        words.append(
            f"{larger:,} requests are for objects larger than the smallest cache, {format_bytes(smallest)}, "
            "which never keeps them."
        )
    return words


def suits(choice: Choice, chosen: Outcome) -> str:
    """What `policies.choose` takes for that room, and why."""
    ahead = f" Begin {choice.lookahead_shards} shards ahead." if choice.lookahead_shards else ""
    room = format_bytes(chosen.cache.capacity_bytes)
    return f"What suits {room} of these requests is {choice.policy}: {choice.reason}.{ahead}"


def _demand(trace: Trace) -> str:
    footprint = trace.footprint_bytes
    over = f" over {format_time(trace.seconds)}" if trace.seconds else ""
    text = (
        f"{len(trace):,} requests{over} ask for {format_bytes(trace.nbytes)} of {trace.objects:,} objects "
        f"that have {format_bytes(footprint)}."
    )
    if not trace.nbytes:
        return text
    share = f"{footprint / trace.nbytes:.0%}"
    return f"{text} Each has to be fetched once, so every cache misses at least {share} of the bytes."


def _choice(chosen: Outcome, *, several: bool) -> str:
    cache = chosen.cache
    begin = "Of those tried, choose " if several else ""
    return (
        f"{begin}{cache.policy} with {format_bytes(cache.capacity_bytes)}: it fetches "
        f"{chosen.byte_miss_ratio:.1%} of the bytes asked for ({format_bytes(chosen.fetched_bytes)} in "
        f"{chosen.fetches:,} requests, {_money(chosen)}) and writes {format_bytes(chosen.written_bytes)} to "
        f"its disk. The reader waits {format_time(chosen.stall_seconds)} of "
        f"{format_time(chosen.elapsed_seconds)}; 99 of 100 requests wait no longer than "
        f"{format_time(chosen.p99_stall_seconds)}, and the first is there after "
        f"{format_time(chosen.first_seconds)}."
    )


def _money(outcome: Outcome) -> str:
    free = not outcome.tier.request_price and not outcome.tier.egress_price_per_gb
    return "no prices known" if free else f"{outcome.cost:,.4f} dollars"


def _bound(chosen: Outcome) -> str:
    if chosen.distance < _NOTHING:
        return "No policy can fetch less with this room."
    return (
        f"No policy with this room can fetch less than {chosen.bound:.1%}: at most "
        f"{100 * chosen.distance:.1f} points are left to gain."
    )


def _others(chosen: Outcome, outcomes: Sequence[Outcome]) -> list[str]:
    rest = [
        f"{other.cache.policy}{'' if other.cache.policy in ONLINE else ' (which knows the future)'} "
        f"{other.byte_miss_ratio:.1%}"
        for other in sorted(_unlike(chosen, outcomes, "policy"), key=lambda o: o.fetched_bytes)
    ]
    return [f"With the same room the others fetch: {', '.join(rest)}."] if rest else []


def _less_room(chosen: Outcome, outcomes: Sequence[Outcome]) -> list[str]:
    """What the next smaller cache that was tried costs more."""
    sizes = _unlike(chosen, outcomes, "capacity_bytes")
    smaller = [other for other in sizes if other.cache.capacity_bytes < chosen.cache.capacity_bytes]
    if not smaller:
        return []
    less = max(smaller, key=lambda o: o.cache.capacity_bytes)
    more = max(0, less.fetched_bytes - chosen.fetched_bytes)
    return [
        f"With {format_bytes(less.cache.capacity_bytes)} it would fetch {format_bytes(more)} more and wait "
        f"{format_time(less.stall_seconds)}."
    ]


def _lookaheads(chosen: Outcome, outcomes: Sequence[Outcome]) -> list[str]:
    rest = [
        f"{format_bytes(other.lookahead_bytes)} waits {format_time(other.stall_seconds)} and fetches "
        f"{format_bytes(other.fetched_bytes)}"
        for other in _unlike(chosen, outcomes, "lookahead_bytes")
    ]
    if not rest:
        return []
    return [f"It looks {format_bytes(chosen.lookahead_bytes)} ahead; looking ahead {'; '.join(rest)}."]


def _unlike(chosen: Outcome, outcomes: Sequence[Outcome], field: str) -> list[Outcome]:
    """Those whose caches differ from the chosen one's in this field, and in nothing else."""
    values = (getattr(outcome.cache, field) for outcome in outcomes)
    caches = [replace(chosen.cache, **{field: value}) for value in values]
    return [o for o, cache in zip(outcomes, caches, strict=True) if o.cache == cache != chosen.cache]
