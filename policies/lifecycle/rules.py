"""A set of rules: loaded from plain tables, checked one by one and together.

Invariant: rules that load come to rest on every catalogue: doing what they say and asking again says nothing,
unless a limit had cut it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from policies.checks import whole
from policies.lifecycle.conflicts import conflicts
from policies.lifecycle.rule import Rule, read_rule

__all__ = ["Rules", "load_rules"]


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules in their order: for each copy, the first that has something to do decides."""

    rules: tuple[Rule, ...]
    tiers: tuple[str, ...]

    def __post_init__(self) -> None:
        names = [rule.name for rule in self.rules]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two rules are called {twice!r}; e.g. '{twice}-2'")


def load_rules(
    tables: Sequence[Mapping[str, Any]], tiers: Sequence[str], *, min_copies: int = 1, where: str = "rules"
) -> Rules:
    """Rules of plain tables, as `tomllib` gives them for ``[[rules]]``.

    tiers: names of all tiers there are. min_copies: how many copies of an item must remain, whatever a rule
    does; a rule may ask for more. where: what messages call the list.

    Raises ValueError for a wrong key or value, naming it, what was seen and a right one, and for rules that
    contradict each other, telling all contradictions.
    """
    whole("min_copies", min_copies, least=1, example=1)
    if not tables:
        raise ValueError(
            f"{where} is empty; e.g. {where} = [{{name = 'cold', action = 'move', to = 'lake'}}]"
        )
    rules = [read_rule(f"{where}[{number}]", table, min_copies) for number, table in enumerate(tables)]
    loaded = Rules(tuple(rules), tuple(tiers))
    for rule in rules:
        for tier in (rule.tier, rule.to):
            if tier is not None and tier not in tiers:
                raise ValueError(f"rule {rule.name!r}: no tier is called {tier!r}; e.g. {min(tiers)!r}")
    found = list(conflicts(rules, tiers, min_copies))
    if found:
        raise ValueError("\n".join(found))
    return loaded
