"""What is wrong with rules together, found when they are loaded.

Two kinds would never come to rest: moves that lead a copy in a circle, and a rule that copies to a tier from
which another takes the copy away again. Where neither is found, evaluation ends: what is added to a tier
again and again must be taken from it as often, so it was moved there (a copy is the second kind), from a
tier for which the same holds, and so on in a circle (the first kind). Ranges and tags count; water marks,
limits and kept versions do not, so what is refused might have come to rest, and what is taken surely does.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self

from policies.lifecycle.rule import Rule
from policies.lifecycle.units import duration_text, size_text

__all__ = ["conflicts"]

_RANGES: Final[tuple[tuple[str, str, str, Callable[[float], str]], ...]] = (
    ("idle_for", "used_within", "idle for", duration_text),
    ("older_than", "younger_than", "of the age", duration_text),
    ("min_size", "max_size", "of", size_text),
    ("min_accesses", "max_accesses", "read times:", str),
)


@dataclass(frozen=True, slots=True)
class Scope:
    """The items that match some rules at once: ranges of facts, tags they must have and must not have."""

    ranges: tuple[tuple[float, float], ...]
    tags: frozenset[str]
    without: frozenset[str]

    @classmethod
    def of(cls, rule: Rule) -> Self:
        """That of one rule; both ends of its ranges are included, which for durations is a hair too wide."""
        ends = [(getattr(rule, low), getattr(rule, high)) for low, high, *_ in _RANGES]
        ranges = [(0.0 if a is None else a, float("inf") if b is None else b) for a, b in ends]
        return cls(tuple(ranges), frozenset(rule.tags), frozenset(rule.keep_tags))

    def __and__(self, other: Self) -> Self:
        pairs = zip(self.ranges, other.ranges, strict=True)
        ranges = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in pairs)
        return type(self)(ranges, self.tags | other.tags, self.without | other.without)

    @property
    def empty(self) -> bool:
        """Whether surely nothing is in it."""
        durations, counts = self.ranges[:2], self.ranges[2:]
        none = any(low >= high for low, high in durations) or any(low > high for low, high in counts)
        return none or bool(self.tags & self.without)

    def within(self, other: Self) -> bool:
        """Whether all that is in this is in the other."""
        pairs = zip(self.ranges, other.ranges, strict=True)
        inside = all(c <= a and b <= d for (a, b), (c, d) in pairs)
        return inside and other.tags <= self.tags and other.without <= self.without

    def __str__(self) -> str:
        """Whom a message speaks of."""
        said = [
            f"{words} {text(low)}"
            for (low, _), (_, _, words, text) in zip(self.ranges, _RANGES, strict=True)
            if low > 0
        ]
        said += [f"tagged {tag!r}" for tag in sorted(self.tags)]
        return f"items {' and '.join(said)}" if said else "any item"


def conflicts(rules: Sequence[Rule], tiers: Sequence[str], min_copies: int) -> Iterator[str]:
    """Each conflict, in words."""
    for rule in rules:
        yield from _alone(rule, tiers, min_copies)
    for number, rule in enumerate(rules):
        for earlier in rules[:number]:
            if _shadows(earlier, rule, tiers):
                yield (
                    f"rule {rule.name!r} is never reached: {earlier.name!r} comes first and takes all it"
                    " matches; e.g. put the narrower one first"
                )
    yield from _undone(rules)
    yield from _circles(rules, tiers)


def _alone(rule: Rule, tiers: Sequence[str], min_copies: int) -> Iterator[str]:
    if rule.removes and rule.action != "forget" and rule.min_copies < min_copies:
        yield (
            f"rule {rule.name!r} may leave min_copies = {rule.min_copies}, but all rules must leave"
            f" {min_copies}; e.g. min_copies = {min_copies}"
        )
    if rule.action in ("release", "forget") and rule.min_copies >= len(tiers):
        yield (
            f"rule {rule.name!r} can never {rule.action}: it must leave {rule.min_copies} copies, and with"
            f" {len(tiers)} tiers there are at most {len(tiers) - 1} others; e.g. min_copies = 1"
        )


def _shadows(earlier: Rule, later: Rule, tiers: Sequence[str]) -> bool:
    """Whether the earlier rule decides on every copy that the later one could match."""
    wider = (
        earlier.high_water is None
        and earlier.limit_bytes is None
        and (earlier.keep_newest is None or (later.keep_newest or 0) >= earlier.keep_newest)
        and set(_sources(later, tiers)) <= set(_sources(earlier, tiers))
        and Scope.of(later).within(Scope.of(earlier))
        and earlier.min_copies <= max(later.min_copies, 1)
    )
    alike = earlier.action == later.action and earlier.to == later.to
    return wider and (alike or earlier.action in ("pin", "move"))


def _sources(rule: Rule, tiers: Sequence[str]) -> list[str]:
    return [tier for tier in tiers if rule.tier in (None, tier) and rule.to != tier]


def _undone(rules: Sequence[Rule]) -> Iterator[str]:
    for copying in (rule for rule in rules if rule.action == "copy"):
        for removing in (rule for rule in rules if rule.removes):
            both = Scope.of(copying) & Scope.of(removing)
            if removing.tier in (None, copying.to) and removing.to != copying.to and not both.empty:
                yield (
                    f"rules {copying.name!r} and {removing.name!r} undo each other for {both}: one copies to"
                    f" {copying.to}, the other takes away from there; e.g. used_within = '7d' for the"
                    " first and idle_for = '7d' for the second"
                )


def _circles(rules: Sequence[Rule], tiers: Sequence[str]) -> Iterator[str]:
    """Circles of moves that one copy could follow, each told once, from its first tier."""
    moves = [rule for rule in rules if rule.action == "move"]

    def follow(start: str, at: str, path: list[Rule], scope: Scope, seen: list[str]) -> Iterator[str]:
        for rule in moves:
            narrower = scope & Scope.of(rule)
            if rule.tier not in (None, at) or rule.to is None or rule.to == at or narrower.empty:
                continue
            if rule.to == start:
                names = " and ".join(repr(one.name) for one in [*path, rule])
                way = ", ".join([*seen, start])
                yield (
                    f"rules {names} lead {narrower} in a circle: {way}; e.g. used_within = '7d' for the"
                    " one towards the GPU and idle_for = '7d' for the one away from it"
                )
            elif rule.to > start and rule.to not in seen:
                yield from follow(start, rule.to, [*path, rule], narrower, [*seen, rule.to])

    whole = Scope(((0.0, float("inf")),) * len(_RANGES), frozenset(), frozenset())
    for tier in sorted(tiers):
        yield from follow(tier, tier, [], whole, [tier])
