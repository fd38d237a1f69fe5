"""When a rule is about an item, whatever its copies are: as masks of all items, and in words for one.

Invariant: both come from one list of conditions, so what is explained is what was decided.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from policies.lifecycle.catalogue import Bools, Catalogue
from policies.lifecycle.rule import Rule
from policies.lifecycle.units import duration_text, size_text

__all__ = ["Facts", "check_facts", "conditions", "facts", "matches"]

_FACTS = {
    "idle_for": "last_access_seconds",
    "used_within": "last_access_seconds",
    "older_than": "created_seconds",
    "younger_than": "created_seconds",
    "min_accesses": "accesses",
    "max_accesses": "accesses",
    "tags": "tags",
    "keep_tags": "tags",
    "keep_newest": "versions",
}
_ORDER_FACTS = {
    "oldest": "created_seconds",
    "newest": "created_seconds",
    "idlest": "last_access_seconds",
    "least-read": "accesses",
}


@dataclass(frozen=True, slots=True)
class Facts:
    """A catalogue at an instant: seconds of idleness and age, and how many newer versions there are, [N]."""

    catalogue: Catalogue
    idle: npt.NDArray[np.float64] | None
    age: npt.NDArray[np.float64] | None
    newer: npt.NDArray[np.int64] | None


def facts(catalogue: Catalogue, now_seconds: float, alive: Bools, *, ranked: bool) -> Facts:
    """The facts; versions are ranked, where asked for, among those `alive`, which have a copy somewhere."""
    idle, age = (
        None if then is None else now_seconds - then
        for then in (catalogue.last_access_seconds, catalogue.created_seconds)
    )
    return Facts(catalogue, idle, age, _newer(catalogue, alive) if ranked else None)


def check_facts(rule: Rule, catalogue: Catalogue) -> None:
    """Raise ValueError where the catalogue lacks a fact, a tier, a tag or a capacity that a rule needs."""
    where = f"rule {rule.name!r}"
    needs = [(key, fact) for key, fact in _FACTS.items() if getattr(rule, key) not in (None, ())]
    if rule.order_by in _ORDER_FACTS:
        needs.append(("order_by", _ORDER_FACTS[rule.order_by]))
    for key, fact in needs:
        if getattr(catalogue, fact) is None:
            raise ValueError(
                f"{where} needs {fact} for its {key}, which this catalogue does not record;"
                f" e.g. leave {key} out"
            )
    for tag in (*rule.tags, *rule.keep_tags):
        if tag not in (catalogue.tags or {}):
            known = min(catalogue.tags or {}, default="none is known")
            raise ValueError(f"{where} names the tag {tag!r}, which no item has; e.g. {known!r}")
    for tier in (rule.tier, rule.to):
        if tier is not None and tier not in catalogue.tiers:
            raise ValueError(
                f"{where} names the tier {tier!r}, which is not here; e.g. {catalogue.tiers[0]!r}"
            )
    if rule.high_water is not None and rule.tier not in catalogue.capacity_bytes:
        raise ValueError(
            f"{where} has water marks, but tier {rule.tier!r} has no known capacity; e.g. capacity = '2TB'"
        )


def conditions(rule: Rule, known: Facts) -> Iterator[tuple[Bools, Callable[[int], str]]]:
    """Each condition: whom it lets pass, [N], and why it does not let pass an item."""
    idle, age, newer = known.idle, known.age, known.newer
    nbytes, accesses, tags = known.catalogue.nbytes, known.catalogue.accesses, known.catalogue.tags or {}
    if idle is not None and (least := rule.idle_for) is not None:
        yield idle >= least, lambda at: f"idle for {duration_text(idle[at])}, not {duration_text(least)}"
    if idle is not None and (below := rule.used_within) is not None:
        yield (
            idle < below,
            lambda at: f"not used for {duration_text(idle[at])}, not within {duration_text(below)}",
        )
    if age is not None and (oldest := rule.older_than) is not None:
        yield age >= oldest, lambda at: f"{duration_text(age[at])} old, not {duration_text(oldest)}"
    if age is not None and (young := rule.younger_than) is not None:
        yield age < young, lambda at: f"{duration_text(age[at])} old, not under {duration_text(young)}"
    if (smallest := rule.min_size) is not None:
        yield nbytes >= smallest, lambda at: f"{size_text(nbytes[at])}, under {size_text(smallest)}"
    if (largest := rule.max_size) is not None:
        yield nbytes <= largest, lambda at: f"{size_text(nbytes[at])}, over {size_text(largest)}"
    if accesses is not None and (fewest := rule.min_accesses) is not None:
        yield accesses >= fewest, lambda at: f"read {accesses[at]} times, under {fewest}"
    if accesses is not None and (most := rule.max_accesses) is not None:
        yield accesses <= most, lambda at: f"read {accesses[at]} times, over {most}"
    for tag in rule.tags:
        yield tags[tag], lambda _, tag=tag: f"has not the tag {tag!r}"  # type: ignore[misc]
    for tag in rule.keep_tags:
        yield ~tags[tag], lambda _, tag=tag: f"kept for its tag {tag!r}"  # type: ignore[misc]
    if newer is not None and (newest := rule.keep_newest) is not None:
        yield newer >= newest, lambda _: f"kept as one of the newest {newest} versions"
    if (limit := rule.limit_bytes) is not None:
        yield nbytes <= limit, lambda at: f"{size_text(nbytes[at])}, over limit_bytes of {size_text(limit)}"


def matches(rule: Rule, known: Facts) -> Bools:
    """Whom all conditions of a rule let pass, [N]."""
    passed = np.ones(len(known.catalogue.names), bool)
    for mask, _ in conditions(rule, known):
        passed &= mask
    return passed


def _newer(catalogue: Catalogue, alive: Bools) -> npt.NDArray[np.int64]:
    """How many living versions of the same name are newer, [N]."""
    if catalogue.versions is None:
        return np.zeros(len(catalogue.names), np.int64)
    _, name = np.unique(np.asarray(catalogue.names), return_inverse=True)
    order = np.lexsort((-catalogue.versions, name))
    living: npt.NDArray[np.int64] = np.cumsum(alive[order]) - alive[order]  # of those before
    first = np.r_[True, name[order][1:] != name[order][:-1]]
    start = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
    newer = np.empty(len(order), np.int64)
    newer[order] = living - living[start]
    return newer
