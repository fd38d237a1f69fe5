"""Placement: against every placement there is, by hand, and what it says when there is none."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from policies.placement import Infeasible, Item, Placement, Run, TierSpec, place
from policies.placement import solver as solver_module
from policies.placement.deal import deal
from policies.placement.program import Counts, Program, branch
from tests.policies.placement_model import cheapest, fits, money

GB = 1_000_000_000
LAKE = TierSpec("lake", storage_gb_month=3.0, egress_gb=5.0)
Problem = tuple[list[Item], list[TierSpec], list[Run]]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    number = st.integers(0, 12)
    price = st.sampled_from([0.0, 0.3, 1.1, 2.7])
    names = [f"t{n}" for n in range(draw(st.integers(1, 3)))]
    tiers = [
        TierSpec(
            name,
            draw(st.none() | number.map(lambda n: n * GB)),
            draw(st.none() | number.map(lambda n: n * 1e6)),
            *[draw(price) for _ in range(6)],
        )
        for name in names
    ]
    items = [
        Item(
            f"i{n}",
            draw(st.sampled_from([3, 5, 7, 5])) * GB,
            tuple(draw(st.sets(st.sampled_from(names)))),
            draw(st.integers(1, min(2, len(names)))),
            draw(number),
            draw(number),
        )
        for n in range(draw(st.integers(1, 4)))
    ]
    some = st.sets(st.sampled_from([item.name for item in items]), min_size=1)
    runs = [
        Run(
            f"r{n}",
            tuple(sorted(draw(some))),
            draw(st.sampled_from([1000.0, 3000.0])),
            **draw(st.sampled_from([{"epochs": 2.5}, {"bytes_per_second": 4e6}])),
            start_seconds=draw(st.sampled_from([0.0, 1000.0])),
        )
        for n in range(draw(st.integers(0, 2)))
    ]
    return items, tiers, runs


def chosen(placement: Placement) -> dict[str, tuple[tuple[str, ...], str]]:
    return {name: (placed.tiers, placed.serves) for name, placed in placement.items.items()}


def try_place(problem: Problem, **options: Any) -> Placement | None:
    try:
        return place(*problem, months=2.0, kwh_price=0.4, **options)
    except Infeasible:
        return None


@settings(max_examples=50, deadline=None, derandomize=True)
@given(problems())
def test_place_costs_as_little_as_any_placement_that_fits(problem: Problem) -> None:
    best = cheapest(*problem, months=2.0, kwh_price=0.4)
    found = try_place(problem)
    assert (found is None) == (best is None)
    if found is not None and best is not None:
        assert fits(*problem, chosen(found))
        assert found.cost.total == pytest.approx(money(*problem, chosen(found), 2.0, 0.4), rel=1e-9)
        assert found.cost.total == pytest.approx(best, rel=1e-6, abs=1e-9)
        assert found.bound <= best * (1 + 1e-12) + 1e-12
        assert all(found.why(item.name) for item in problem[0])


@pytest.mark.parametrize("seed", range(2))
def test_rounded_placement_fits_and_its_gap_holds(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many items on few, tight tiers; what branch and bound finds is at least as dear as the bound."""
    monkeypatch.setattr(solver_module, "_FREE_ROWS", 3)
    draw = random.Random(seed)
    items = [Item(f"i{n:03}", draw.randint(1, 99) * GB, ("a",), 1 + n % 2, gets=n) for n in range(60)]
    total = sum(item.nbytes for item in items)
    tiers = [
        TierSpec("a", None, 2e9, 0.02, 0.09),
        TierSpec("b", total // 3, 3e9, 0.05, 0.01),
        TierSpec("c", total // 5, 5e9, 0.11, 0.0),
        TierSpec("d", None, None, 0.5, 0.3),
    ]
    runs = [Run("r", tuple(item.name for item in items[::2]), 700.0, epochs=1.0)]
    problem = (items, tiers, runs)
    rounded = place(*problem, exact_cells=0)
    better = place(*problem, exact_cells=10_000, node_limit=50)
    assert (rounded.method, better.method) == ("rounded", "branch and bound")
    for placement in (rounded, better):
        assert fits(*problem, chosen(placement))
        assert placement.cost.total == pytest.approx(money(*problem, chosen(placement), 1.0, 0.0))
    assert 0 < rounded.bound <= better.cost.total * (1 + 1e-9)
    assert rounded.cost.total * (1 - rounded.gap) <= better.cost.total * (1 + 1e-9)
    assert rounded.gap < 0.05


@settings(max_examples=12, deadline=None, derandomize=True)
@given(problems(), st.integers(0, 2), st.integers(1, 9))
def test_more_capacity_never_costs_more(problem: Problem, which: int, more: int) -> None:
    items, tiers, runs = problem
    tier = tiers[which % len(tiers)]
    assume(tier.capacity_bytes is not None)
    before = try_place(problem)
    assume(before is not None)
    wider = [replace(t, capacity_bytes=t.capacity_bytes + more * GB) if t is tier else t for t in tiers]  # type: ignore[operator]
    after = try_place((items, wider, runs))
    assert before is not None
    assert after is not None
    assert after.cost.total <= before.cost.total * (1 + 1e-9) + 1e-9


@settings(max_examples=12, deadline=None, derandomize=True)
@given(problems())
def test_infeasible_names_what_makes_it_feasible(problem: Problem) -> None:
    items, tiers, runs = problem
    try:
        place(*problem)
    except Infeasible as caught:
        error = caught
        short = {(one.where, one.what): one.short for one in error.shortages}
    else:
        assume(False)
    assert error.proven
    assert error.enough
    wider = [
        replace(
            tier,
            capacity_bytes=None
            if tier.capacity_bytes is None
            else tier.capacity_bytes + int(short.get((tier.name, "bytes"), 0)),
            bytes_per_second=None
            if tier.bytes_per_second is None
            else tier.bytes_per_second + short.get((tier.name, "bytes/s"), 0) * (1 + 1e-9),
        )
        for tier in tiers
    ]
    place(items, wider, runs)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(problems(), st.randoms(use_true_random=False))
def test_place_ignores_the_order_of_arguments(problem: Problem, rng: random.Random) -> None:
    shuffled = [rng.sample(part, len(part)) for part in problem]
    first, second = try_place(problem), try_place(shuffled)  # type: ignore[arg-type]
    assert (first and chosen(first)) == (second and chosen(second))


def test_cost_is_what_one_computes_by_hand() -> None:
    item = Item("x", 7 * GB, ("lake",), gets=11_000, puts=13_000)
    lake = replace(LAKE, get_1000=0.5)
    disk = TierSpec("disk", put_1000=0.25, storage_gb_month=1.5, watts_per_gb=3.0, joules_per_gb=5.0)
    run = Run("r", ("x",), 3600.0, epochs=11)
    found = place([item], [lake, disk], [run], months=3.0, kwh_price=0.2)
    assert found.items["x"].tiers == ("disk",)
    assert found.cost.storage == pytest.approx(7 * 1.5 * 3)
    assert found.cost.moving == pytest.approx(7 * 5 + 11 * 0.5 + 13 * 0.25)
    assert found.cost.reading == 0.0
    watts = 7 * 3.0 * 3 * 730 / 1000 * 0.2
    joules = 7 * 5 * (1 + 11) / 3.6e6 * 0.2
    assert found.cost.energy == pytest.approx(watts + joules)
    assert found.gap == pytest.approx(0.0, abs=1e-12)
    assert (found.items["x"].copy_to, found.items["x"].release_from) == (("disk",), ("lake",))


def test_why_tells_the_next_best_choice_and_its_price() -> None:
    found = place([Item("x", 5 * GB, ("lake",))], [LAKE, TierSpec("disk", storage_gb_month=1.0)])
    assert found.why("x") == "'x' lies on lake for 15. Next best: disk would cost 15 more."


def test_why_tells_what_is_in_the_way() -> None:
    tiers = [LAKE, TierSpec("disk", 7 * GB)]
    found = place([Item("a", 3 * GB), Item("b", 7 * GB)], tiers)
    assert found.items["b"].tiers == ("disk",)
    assert "disk would cost 9 less, but disk lacks 3,000,000,000 bytes of room for it" in found.why("a")


def test_why_of_an_item_without_a_choice_says_so() -> None:
    assert place([Item("x", 3)], [LAKE]).why("x").endswith("there is no other choice.")
    tiers = [LAKE, TierSpec("disk", 2)]
    said = place([Item("x", 3)], tiers).why("x")
    assert "Nothing else has room: disk would cost 9e-09 less, but disk lacks 1 bytes" in said
    with pytest.raises(ValueError, match=r"no item 'y' was placed; e\.g\. 'x'"):
        place([Item("x", 3)], [LAKE]).why("y")


def test_only_a_tier_that_is_fast_enough_serves_a_run() -> None:
    tiers = [TierSpec("slow", None, 3.0), TierSpec("fast", None, 5.0, storage_gb_month=1.0)]
    for rate, where in ((3.0, "slow"), (3.1, "fast")):
        run = Run("r", ("x",), 10.0, bytes_per_second=rate)
        assert place([Item("x", 7)], tiers, [run]).items["x"].serves == where


def test_runs_share_a_tier_only_while_both_run() -> None:
    tiers = [TierSpec("a", None, 5.0), TierSpec("b", None, 5.0, storage_gb_month=1.0)]
    items = [Item("x", 7), Item("y", 7)]
    runs = [Run("x", ("x",), 10.0, bytes_per_second=3.0), Run("y", ("y",), 10.0, bytes_per_second=3.0)]
    assert sorted(p.serves for p in place(items, tiers, runs).items.values()) == ["a", "b"]
    later = [runs[0], replace(runs[1], start_seconds=10.0)]
    assert [p.serves for p in place(items, tiers, later).items.values()] == ["a", "a"]


def test_ties_go_to_the_name_that_comes_first() -> None:
    tiers = [TierSpec(name, 5) for name in ("c", "b", "a")]
    found = place([Item(name, 5) for name in ("z", "x", "y")], tiers)
    assert {name: placed.tiers for name, placed in found.items.items()} == {
        "x": ("a",),
        "y": ("b",),
        "z": ("c",),
    }
    wide = [TierSpec("c", 3), TierSpec("b", 7), TierSpec("a", 7)]
    assert place([Item("x", 5)], wide).items["x"].tiers == ("a",)


def test_alike_items_are_one_kind_and_their_copies_lie_apart() -> None:
    tiers = [TierSpec(name, 6 * GB, storage_gb_month=price) for name, price in (("a", 1), ("b", 2), ("c", 3))]
    items = [Item(f"x{n}", GB, min_copies=2) for n in range(9)]
    found = place(items, tiers)
    assert found.used_bytes == {"a": 6 * GB, "b": 6 * GB, "c": 6 * GB}
    assert all(len(set(placed.tiers)) == 2 for placed in found.items.values())
    assert found.cost.total == pytest.approx(6 * (1 + 2 + 3))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_deal_gives_each_item_distinct_tiers_and_all_counts(data: st.DataObject) -> None:
    import numpy as np

    tiers = data.draw(st.integers(2, 5))
    copies = data.draw(st.integers(1, tiers))
    spots = [
        data.draw(st.permutations(range(tiers)).map(lambda p: p[:copies]))
        for _ in range(data.draw(st.integers(1, 6)))
    ]
    lead = data.draw(st.booleans()) or copies == 1
    serve, keep = np.zeros(tiers, np.int64), np.zeros(tiers, np.int64)
    for spot in spots:
        serve[spot[0]] += lead
        keep[spot[1:] if lead else spot] += 1
    dealt = list(deal(serve, keep, copies))
    assert len(dealt) == len(spots)
    assert all(len(set(spot.tiers)) == copies and spot.serves in spot.tiers for spot in dealt)
    counted = np.bincount([tier for spot in dealt for tier in spot.tiers], minlength=tiers)
    assert counted.tolist() == (serve + keep).tolist()
    if lead:
        assert np.bincount([spot.serves for spot in dealt], minlength=tiers).tolist() == serve.tolist()


def test_too_few_tiers_for_the_copies_is_said_by_item() -> None:
    with pytest.raises(Infeasible, match="item 'x' wants 2 more distinct tiers than there are") as caught:
        place([Item("x", 1, min_copies=3)], [LAKE])
    assert caught.value.proven


def test_shortage_names_the_tier_and_the_bytes() -> None:
    with pytest.raises(
        Infeasible, match=r"no placement exists: tier 'disk' lacks 4 bytes; with that much more"
    ):
        place([Item("x", 11)], [TierSpec("disk", 7)])
    with pytest.raises(Infeasible, match=r"tier 'disk' lacks 4 bytes; at least that much more is needed"):
        place([Item("x", 11)], [TierSpec("disk", 7)], exact_cells=0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Item("x", 0), r"item 'x': nbytes must be at least 1, not 0; e\.g\. "),
        (lambda: Item("x", 1, min_copies=0), "item 'x': min_copies must be at least 1, not 0"),
        (lambda: Item("x", 1, "lake"), "item 'x': on must be a tuple of names, not 'lake'"),  # type: ignore[arg-type]
        (lambda: TierSpec("t", -1), "tier 't': capacity_bytes must be at least 0, not -1"),
        (
            lambda: TierSpec("t", egress_gb=-0.1),
            "tier 't': egress_gb must be at least 0 .*, not -0.1",
        ),
        (
            lambda: TierSpec("t", egress_gb=float("nan")),
            "egress_gb must be at least 0 .*, not nan; e.g. tier 't': egress_gb=0.023",
        ),
        (lambda: Run("r", (), 1.0, epochs=1), r"run 'r': items is empty; e\.g\. items="),
        (
            lambda: Run("r", ("x",), 0.0, epochs=1),
            "window_seconds must be above 0 .*, not 0.0",
        ),
        (lambda: Run("r", ("x",), 1.0), "either epochs or bytes_per_second, not neither; e.g. epochs=3"),
        (lambda: Run("r", ("x",), 1.0, 1.0, 1.0), "not epochs and bytes_per_second"),
        (lambda: place([], []), r"tiers is empty; e\.g\. tiers="),
        (lambda: place([Item("x", 1), Item("x", 2)], [LAKE]), "items has 'x' twice"),
        (
            lambda: place([Item("x", 1, ("disk",))], [LAKE]),
            "on has 'disk', which tiers does not; e.g. 'lake'",
        ),
        (lambda: place([], [LAKE], months=0), "months must be above 0"),
        (lambda: place([], [LAKE], node_limit=0), "node_limit must be at least 1"),
    ],
)
def test_wrong_arguments_are_named_with_a_right_example(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_no_items_cost_nothing() -> None:
    found = place([], [LAKE])
    assert (found.cost.total, found.gap, dict(found.items)) == (0.0, 0.0, {})


def test_solver_that_overdraws_a_room_is_asked_again_with_a_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    """HiGHS may overdraw a line by 1e-6 of it; here by more, the first time."""
    asked: list[Program] = []

    def loose(problem: Program, node_limit: int) -> Counts | None:
        asked.append(problem)
        wider = problem.limits * (2 if len(asked) == 1 else 1)
        return branch(replace(problem, limits=wider), node_limit)

    monkeypatch.setattr(solver_module, "branch", loose)
    items = [Item("x", 7), Item("y", 7)]
    found = place(items, [TierSpec("disk", 11), TierSpec("lake", storage_gb_month=3.0)])
    assert len(asked) == 2
    assert found.used_bytes == {"disk": 7, "lake": 7}
    asked.clear()
    with pytest.raises(Infeasible, match="no placement was found: tier 'disk' lacks 3 bytes; with that much"):
        place(items, [TierSpec("disk", 11)])
