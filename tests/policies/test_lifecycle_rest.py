"""Lifecycle: any rules come to rest, no last copy goes, and limits are never passed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from policies.lifecycle import apply_rules
from tests.policies.lifecycle_tools import COOL, MIB, NOW, TIERS, catalogue, rules


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    some = st.sampled_from(TIERS)
    table: dict[str, Any] = {
        "action": draw(st.sampled_from(["move", "copy", "release", "forget", "move", "pin"]))
    }
    if draw(st.booleans()):
        table["tier"] = draw(some)
    if table["action"] in ("move", "copy"):
        table["to"] = draw(some.filter(lambda tier: tier != table.get("tier")))
    low, high = sorted(draw(st.tuples(st.integers(0, 9), st.integers(0, 9))))
    values = {"idle_for": f"{low}d", "used_within": f"{high + 1}d", "tags": ["golden"], "min_size": low * MIB}
    table |= {key: value for key, value in values.items() if draw(st.integers(0, 3)) == 0}
    if table["action"] in ("move", "release", "forget") and draw(st.booleans()):
        table["min_copies"] = draw(st.integers(0 if table["action"] == "forget" else 1, 2))
    if table["action"] == "forget" or (table["action"] != "pin" and draw(st.integers(0, 3)) == 0):
        table["keep_newest"] = draw(st.integers(1, 2))
    if table["action"] == "move" and "tier" in table and draw(st.booleans()):
        table |= {
            "high_water": 0.6,
            "low_water": 0.3,
            "order_by": draw(st.sampled_from(["idlest", "largest"])),
        }
    return table


rows_ = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(["a", "b"]),
            "version": st.integers(1, 99),
            "on": st.sets(st.sampled_from(TIERS), min_size=1).map(lambda some: " ".join(sorted(some))),
            "idle": st.integers(0, 10),
            "mib": st.integers(1, 9),
            "tags": st.sampled_from(["", "golden"]),
        }
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda row: (row["name"], row["version"]),
)


forgets = st.fixed_dictionaries(
    {"action": st.just("forget"), "keep_newest": st.just(1), "min_copies": st.integers(0, 2)}
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(tables(), min_size=1, max_size=4)
    | st.tuples(tables(), forgets)
    | st.tuples(tables(), tables(), forgets),
    rows_,
    st.integers(5, 40),
)
def test_rules_come_to_rest_and_never_take_the_last_copies(
    some: Sequence[dict[str, Any]], rows: list[dict[str, Any]], room: int
) -> None:
    try:
        loaded = rules(*some)
    except ValueError:
        assume(False)
    held = catalogue(*rows, capacity=dict.fromkeys(TIERS, room * MIB))
    outcome = apply_rules(loaded, held, NOW)
    by_name = {rule.name: rule for rule in loaded.rules}
    present = held.present.copy()
    for step in outcome.steps():  # each finds what it needs, and leaves enough
        source = TIERS.index(step.source)
        assert present[step.row, source]
        if step.target is not None:
            assert not present[step.row, TIERS.index(step.target)]
            present[step.row, TIERS.index(step.target)] = True
        if step.kind != "copy":
            present[step.row, source] = False
            assert present[step.row].sum() >= step.min_copies >= by_name[step.rule].min_copies
            assert present[step.row].any() or by_name[step.rule].action == "forget"
    assert (present == outcome.present).all()
    for tier, used in zip(TIERS, held.nbytes @ present.astype(int), strict=True):
        assert used <= max(room * MIB, held.nbytes @ held.present[:, TIERS.index(tier)])
    again = apply_rules(loaded, replace(held, present=present), NOW)
    assert len(again) == 0
    for row in range(len(rows)):
        verdicts = outcome.explain(held.names[row], int(held.versions[row]))  # type: ignore[index]
        assert len(verdicts) == len(loaded.rules) * held.present[row].sum()
        changed = (outcome.added | outcome.removed)[row].any()
        assert not changed or any(verdict.applies for verdict in verdicts)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(rows_, st.integers(1, 4), st.integers(1, 20))
def test_limits_are_never_passed_and_enough_runs_finish_the_work(
    rows: list[dict[str, Any]], objects: int, mib: int
) -> None:
    held = catalogue(*rows)
    limited = rules(COOL | {"limit_objects": objects, "limit_bytes": mib * MIB, "order_by": "largest"})
    whole = apply_rules(rules(COOL | {"max_size": mib * MIB}), held, NOW)
    for _ in range(len(rows) + 1):
        outcome = apply_rules(limited, held, NOW)
        going = outcome.removed[:, TIERS.index("disk")]
        assert going.sum() <= objects
        assert held.nbytes[going].sum() <= mib * MIB
        held = replace(held, present=outcome.present)
    assert (held.present == whole.present).all()
