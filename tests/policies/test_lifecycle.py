"""Lifecycle: what rules do to a catalogue, that they come to rest, and that no last copy goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from policies.lifecycle import Catalogue, apply_rules, load_rules
from tests.policies.lifecycle_tools import COOL, MIB, NOW, TIERS, catalogue, rules, told

BACK = {"action": "move", "tier": "lake", "to": "disk"}
WATER = {"high_water": 0.9, "low_water": 0.8}


@pytest.mark.parametrize(
    ("condition", "yes", "no"),
    [
        ({"idle_for": "5d"}, {"idle": 5}, {"idle": 4.9}),
        ({"used_within": "5d"}, {"idle": 4.9}, {"idle": 5}),
        ({"older_than": "36h"}, {"age": 1.5}, {"age": 1.4}),
        ({"younger_than": "2w"}, {"age": 13}, {"age": 14}),
        ({"min_size": "3MiB"}, {"mib": 3}, {"mib": 2}),
        ({"max_size": 3 * MIB}, {"mib": 3}, {"mib": 4}),
        ({"min_accesses": 7}, {"reads": 7}, {"reads": 6}),
        ({"max_accesses": 7}, {"reads": 7}, {"reads": 8}),
        ({"tags": ["golden"]}, {"tags": "golden"}, {}),
        ({"keep_tags": ["golden"]}, {}, {"tags": "golden"}),
        ({"limit_bytes": "2MiB"}, {"mib": 2}, {"mib": 3}),
        ({}, {"on": "disk"}, {"on": "archive"}),
    ],
)
def test_condition_lets_pass_what_it_names_and_no_other(condition: Any, yes: Any, no: Any) -> None:
    outcome = apply_rules(rules(COOL | condition), catalogue(yes, no), NOW)
    assert told(outcome) == ["move c0 disk lake"]
    assert [verdict.applies for verdict in outcome.explain("c0")] == [True]
    assert [verdict.applies for verdict in outcome.explain("c1")] == [False]


def test_keep_newest_counts_versions_that_are_there() -> None:
    held = catalogue(
        {"name": "a", "version": 1, "on": "disk"},
        {"name": "a", "version": 2, "on": "disk"},
        {"name": "a", "version": 3, "on": ""},
        {"name": "a", "version": 4, "on": "disk"},
        {"name": "b", "version": 9, "on": "disk"},
    )
    outcome = apply_rules(rules({"action": "forget", "keep_newest": 2, "min_copies": 0}), held, NOW)
    assert [(step.kind, step.row) for step in outcome.steps()] == [("forget", 0)]
    assert "kept as one of the newest 2 versions" in str(outcome.explain("a", 2)[0])


def test_a_copy_that_one_rule_moves_and_another_forgets_is_forgotten_where_it_is() -> None:
    held = catalogue({"name": "a", "version": 1, "on": "disk"}, {"name": "a", "version": 2, "on": "lake"})
    drop = {"action": "forget", "keep_newest": 1, "min_copies": 0}
    outcome = apply_rules(rules(COOL, drop), held, NOW)
    assert told(outcome) == ["forget a disk"]
    assert [(step.rule, step.min_copies) for step in outcome.steps()] == [("r1", 0)]
    assert [(verdict.rule, verdict.applies) for verdict in outcome.explain("a", 1)] == [
        ("r0", False),
        ("r1", True),
    ]


def test_what_wants_more_copies_to_remain_goes_first() -> None:
    held = catalogue({"name": "a", "version": 1, "on": "archive disk lake"}, {"name": "a", "version": 2})
    some = rules(
        {"action": "release", "tier": "lake", "min_copies": 2},
        {"action": "forget", "tier": "archive", "keep_newest": 1},
    )
    assert told(apply_rules(some, held, NOW)) == ["release a lake", "forget a archive"]


def test_forget_leaves_a_copy_unless_told_otherwise() -> None:
    held = catalogue({"name": "a", "version": 1, "on": "disk lake"}, {"name": "a", "version": 2})
    assert told(apply_rules(rules({"action": "forget", "keep_newest": 1}), held, NOW)) == ["forget a disk"]


def test_first_rule_with_something_to_do_decides() -> None:
    pin = {"action": "pin", "tags": ["golden"]}
    outcome = apply_rules(rules(pin, COOL), catalogue({"tags": "golden"}, {}), NOW)
    assert told(outcome) == ["move c1 disk lake"]
    assert str(outcome.explain("c0")[1]) == "disk: r1 does not apply: 'r0' comes first"
    assert str(outcome.explain("c0")[0]) == "disk: r0 applies: all conditions hold, pin"


def test_copy_that_two_rules_send_on_travels_once() -> None:
    onward = {"action": "move", "tier": "lake", "to": "archive", "idle_for": "8d"}
    outcome = apply_rules(rules(COOL, onward), catalogue({"idle": 9}, {"idle": 7}), NOW)
    assert told(outcome) == ["move c0 disk archive", "move c1 disk lake"]


def test_copy_and_release_are_done_in_that_order() -> None:
    copy = {"action": "copy", "tier": "disk", "to": "archive"}
    free = {"action": "release", "tier": "disk", "idle_for": "5d"}
    outcome = apply_rules(rules(copy, free), catalogue({"idle": 9}, {"idle": 3}), NOW)
    assert told(outcome) == ["copy c0 disk archive", "copy c1 disk archive", "release c0 disk"]


def test_move_to_where_a_copy_is_gives_up_the_source_only() -> None:
    assert told(apply_rules(rules(COOL), catalogue({"on": "disk lake"}), NOW)) == ["release c0 disk"]


def test_release_needs_other_copies_and_says_how_many() -> None:
    free = {"action": "release", "tier": "disk", "min_copies": 2}
    outcome = apply_rules(rules(free), catalogue({"on": "disk lake"}, {"on": "disk lake archive"}), NOW)
    assert told(outcome) == ["release c1 disk"]
    assert "1 copy would remain, and min_copies is 2" in str(outcome.explain("c0")[0])


def test_strictest_rule_that_an_item_meets_guards_its_copies() -> None:
    strict = {"action": "release", "tier": "disk", "min_copies": 2}
    outcome = apply_rules(
        rules(strict, {"action": "release", "tier": "lake"}), catalogue({"on": "disk lake"}), NOW
    )
    assert told(outcome) == []


@pytest.mark.parametrize(
    ("order", "first"), [("idlest", 2), ("oldest", 1), ("largest", 0), ("least-read", 2)]
)
def test_water_marks_free_the_first_by_order_down_to_the_low_mark(order: str, first: int) -> None:
    held = catalogue(
        {"idle": 3, "age": 5, "mib": 7, "reads": 5},
        {"idle": 5, "age": 11, "mib": 5, "reads": 7},
        {"idle": 7, "age": 7, "mib": 5, "reads": 3},
        capacity={"disk": 20 * MIB},
    )
    full = COOL | {"high_water": 0.8, "low_water": 0.7, "order_by": order}
    outcome = apply_rules(rules(full), held, NOW)
    assert told(outcome) == [f"move c{first} disk lake"]
    kept = outcome.explain("c0" if first else "c1")[0]
    assert "disk came down to its low_water of 70% without it" in kept.because
    calm = apply_rules(rules(full | {"high_water": 0.85, "low_water": 0.7}), held, NOW)
    assert told(calm) == []
    assert "17MiB of 20MiB, not over its high_water of 85%" in str(calm.explain("c1")[0])


def test_limits_cut_and_the_rest_waits() -> None:
    held = catalogue(*[{"mib": size} for size in (3, 5, 7, 11)])
    outcome = apply_rules(
        rules(
            COOL | {"limit_objects": 3, "limit_bytes": "13MiB"}, COOL | {"to": "archive", "min_size": "7MiB"}
        ),
        held,
        NOW,
    )
    assert told(outcome) == ["move c0 disk lake", "move c1 disk lake"]
    assert outcome.waiting == {"r0": 2}
    assert "waits for the next time: limit_objects or limit_bytes" in outcome.explain("c3")[0].because


def test_target_without_room_takes_what_fits() -> None:
    held = catalogue({"mib": 3}, {"mib": 5}, {"mib": 7, "on": "lake"}, capacity={"lake": 11 * MIB})
    outcome = apply_rules(rules(COOL), held, NOW)
    assert told(outcome) == ["move c0 disk lake"]
    assert "room on lake was used up" in outcome.explain("c1")[0].because


def test_fact_that_nobody_recorded_is_asked_for_by_name() -> None:
    bare = Catalogue(["a"], TIERS, np.ones((1, 3), bool), np.ones(1, np.int64))
    for condition, fact in (
        ({"idle_for": "1d"}, "last_access_seconds for its idle_for"),
        ({"older_than": "1d"}, "created_seconds for its older_than"),
        ({"max_accesses": 3}, "accesses for its max_accesses"),
        ({"tags": ["x"]}, "tags for its tags"),
        ({"keep_newest": 1}, "versions for its keep_newest"),
        ({"order_by": "oldest"}, "created_seconds for its order_by"),
        (WATER, "tier 'disk' has no known capacity"),
    ):
        with pytest.raises(ValueError, match=f"rule 'r0' .*{fact}.*; e.g. "):
            apply_rules(rules(COOL | condition), bare, NOW)


def test_tag_or_tier_that_is_nowhere_is_refused() -> None:
    with pytest.raises(ValueError, match=r"names the tag 'gloden', which no item has; e\.g\. 'golden'"):
        apply_rules(rules(COOL | {"keep_tags": ["gloden"]}), catalogue({}), NOW)
    other = replace(catalogue({}), tiers=("archive", "disc", "lake"))
    with pytest.raises(ValueError, match=r"names the tier 'disk', which is not here; e\.g\. 'archive'"):
        apply_rules(rules(COOL), other, NOW)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ([COOL, BACK], "'r0' and 'r1' lead any item in a circle: disk, lake, disk"),
        (
            [
                COOL | {"idle_for": "3d"},
                BACK | {"to": "archive", "idle_for": "5d"},
                BACK | {"tier": "archive", "min_size": "2GiB"},
            ],
            "items idle for 5d and of 2GiB in a circle: archive, disk, lake, archive",
        ),
        (
            [COOL | {"action": "copy"}, {"action": "release", "tier": "lake"}],
            "undo each other for any item: one copies to lake",
        ),
        ([COOL, COOL | {"to": "archive", "idle_for": "9d"}], "'r1' is never reached: 'r0' comes first"),
        ([{"action": "pin"}, COOL], "'r1' is never reached"),
        ([{"action": "release", "min_copies": 3}], "'r0' can never release: it must leave 3 copies"),
    ],
)
def test_contradictions_are_found_when_rules_are_loaded(tables: Sequence[Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rules(*tables)


@pytest.mark.parametrize(
    "tables",
    [
        [COOL | {"idle_for": "7d"}, {"action": "copy", "tier": "lake", "to": "disk", "used_within": "7d"}],
        [COOL | {"keep_tags": ["hot"]}, BACK | {"tags": ["hot"]}],
        [COOL | {"idle_for": "9d"}, COOL | {"to": "archive", "idle_for": "3d"}],
        [COOL | WATER, COOL | {"idle_for": "3d"}],
        [COOL | {"action": "copy"}, {"action": "copy", "tier": "lake", "to": "disk"}],
    ],
)
def test_rules_without_a_contradiction_load(tables: Sequence[Any]) -> None:
    rules(*tables)


def test_rule_that_leaves_fewer_copies_than_all_must_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"may leave min_copies = 1, but all rules must leave 2; e\.g\. min_copies = 2"
    ):
        rules(COOL | {"min_copies": 1}, min_copies=2)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"action": "mvoe"}, r"rule 'r0': action = 'mvoe' is not known; e\.g\. 'move'"),
        ({"action": "move"}, "action = 'move' needs a tier to go to; e.g. action = 'move', to = 'lake'"),
        ({"action": "release", "to": "lake"}, "action = 'release' goes nowhere, but to = 'lake'"),
        (COOL | {"tier": "lake"}, "tier and to are both 'lake'"),
        (COOL | {"idle_fro": "3d"}, r"rules\[0\]\.idle_fro is not a known key; e\.g\. 'idle_for'"),
        (COOL | {"idle_for": 30}, r"rules\[0\]\.idle_for = 30 is not a duration; e\.g\. '30d'"),
        (COOL | {"idle_for": "30 moons"}, "idle_for = '30 moons' is not a duration"),
        (COOL | {"min_size": "64 MegaBob"}, "min_size = '64 MegaBob' is not a size; e.g. '64MiB'"),
        (COOL | {"min_size": -1}, "min_size = -1 is not a size"),
        (COOL | {"max_accesses": True}, "max_accesses must be a whole number, not True"),
        (COOL | {"tags": "golden"}, r"tags = 'golden' is not a list of texts; e\.g\. \['golden'\]"),
        (COOL | {"order_by": "biggest"}, "order_by = 'biggest' is not known; e.g. "),
        (COOL | {"idle_for": "3d", "used_within": "3d"}, "idle_for and used_within leave nothing between"),
        (COOL | {"min_size": 5, "max_size": 3}, "min_size and max_size leave nothing between"),
        (COOL | {"tags": ["a"], "keep_tags": ["a"]}, "'a' is in tags and in keep_tags"),
        (COOL | {"high_water": 0.9}, "high_water and low_water go together"),
        (COOL | {"high_water": 0.8, "low_water": 0.8}, "low_water = 0.8 is not below high_water = 0.8"),
        (COOL | {"high_water": 90, "low_water": 0.8}, "high_water = 90 is not a share of 1"),
        ({"action": "release", **WATER}, "water marks are for moves and releases from"),
        (COOL | {"min_copies": 0}, "min_copies must be at least 1, not 0"),
        (COOL | {"limit_objects": 0}, "limit_objects must be at least 1"),
        ({"action": "forget"}, "forget needs keep_newest, or all would go; e.g. keep_newest = 2"),
        ({"action": "pin", "limit_objects": 3}, "limit_objects does nothing for a pin"),
        (COOL | {"to": "lak"}, "no tier is called 'lak'"),
        ({"action": 3}, "action = 3 is not a text"),
    ],
)
def test_wrong_rule_is_answered_with_the_key_the_value_and_a_right_one(table: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rules(table)


def test_wrong_lists_of_rules_are_named() -> None:
    for tables, said in (
        ([], "rules is empty; e.g. "),
        ([3], r"rules\[0\] = 3 is not a table"),
        ([{"action": "pin"}], r"rules\[0\]\.name is missing; e\.g\. name = 'cold'"),
        ([{"name": "a", **COOL}, {"name": "a", **COOL}], "two rules are called 'a'"),
    ):
        with pytest.raises(ValueError, match=said):
            load_rules(tables, TIERS)  # type: ignore[arg-type]


def test_catalogue_refuses_columns_of_another_length() -> None:
    with pytest.raises(ValueError, match=r"present must be bool \[1, 3\], .* not bool \[3, 1\]"):
        Catalogue(["a"], TIERS, np.ones((3, 1), bool), np.ones(1, np.int64))
    with pytest.raises(ValueError, match=r"nbytes must have one value for each of the 1 names, not \[2\]"):
        Catalogue(["a"], TIERS, np.ones((1, 3), bool), np.ones(2, np.int64))
    with pytest.raises(ValueError, match=r"'b' version 3 is not in the catalogue; e\.g\. 'c0'"):
        catalogue({}).row("b", 3)
