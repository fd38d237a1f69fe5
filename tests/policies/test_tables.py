"""What theory and an earlier record say of training orders comes out within sampling error."""

from math import sqrt

import pytest

from bench import tables
from bench.tables import SHARES
from policies.bounds import lru_hit_ratio

ITEMS = 400
SIGMAS = 4


def test_lru_of_permutations_hits_what_its_closed_form_says() -> None:
    rows = {row.policy: row for row in tables.permutation_rows(ITEMS, epochs=20, seed=1)}
    for measured, expected in zip(rows["lru"].measured, map(lru_hit_ratio, SHARES), strict=True):
        sampling = sqrt(expected * (1 - expected) / (19 * ITEMS))
        assert abs(measured - expected) <= SIGMAS * sampling + 2 / ITEMS


@pytest.mark.parametrize("policy", ["pin", "belady"])
def test_pin_and_belady_of_permutations_hit_the_bound_itself(policy: str) -> None:
    (row,) = (row for row in tables.permutation_rows(ITEMS, seed=2) if row.policy == policy)
    assert row.measured == row.expected == SHARES


@pytest.mark.parametrize(("policy", "near"), [("sieve", 0.03), ("wtinylfu", 0.05)])
def test_online_policy_on_ten_permutations_hits_what_was_recorded(policy: str, near: float) -> None:
    (row,) = (row for row in tables.permutation_rows(ITEMS, seed=3) if row.policy == policy)
    assert max(map(abs, row.deviation)) <= near


def test_pin_of_slices_hits_what_its_filling_says() -> None:
    rows, _ = tables.slice_rows(ITEMS, epochs=30, world=5, seed=4)
    (row,) = (row for row in rows if row.policy == "pin")
    for share, deviation in zip(SHARES, row.deviation, strict=True):
        sampling = sqrt(share * (1 - share) * (1 - 1 / 5) / (30 * ITEMS / 5))
        assert abs(deviation) <= SIGMAS * sampling


def test_pin_of_jobs_misses_what_it_holds_once_and_the_rest_always() -> None:
    rows, _ = tables.job_rows(ITEMS // 4, epochs=7, count=3, seed=5)
    (row,) = (row for row in rows if row.policy == "pin")
    assert row.measured == pytest.approx([share * (1 - 1 / 21) for share in SHARES])


@pytest.mark.parametrize(("rows", "seed"), [(tables.slice_rows, 6), (tables.job_rows, 7)])
def test_belady_of_slices_and_jobs_hits_what_was_recorded_just_below_the_bound(
    rows: object, seed: int
) -> None:
    found, bounds = rows(ITEMS // 2, seed=seed)
    policies = {row.policy: row for row in found}
    assert max(map(abs, policies["belady"].deviation)) <= 0.03  # a little less, with so few items
    for lru, pin, belady, bound in zip(
        policies["lru"].measured,
        policies["pin"].measured,
        policies["belady"].measured,
        bounds,
        strict=True,
    ):
        assert lru < pin < belady <= bound <= 1.03 * belady


def test_pin_smallest_of_unequal_sizes_makes_the_fewest_requests_at_equal_egress() -> None:
    found = tables.unequal_sizes(ITEMS, seed=8)
    pin, smallest = found["pin"], found["pin-smallest"]
    assert smallest["requests"] == pytest.approx(smallest["requests_expected"])
    assert pin["requests"] == pytest.approx(pin["requests_expected"], abs=0.06)
    for policy in (pin, smallest):
        assert policy["egress"] == pytest.approx(policy["egress_expected"], abs=0.01)
    assert all(few < many for few, many in zip(smallest["requests"], pin["requests"], strict=True))
