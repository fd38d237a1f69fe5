"""Sweeps give the same results wherever they run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from distributed import Client

from policies.curves import curve, sampled_curve
from policies.simulation import CacheModel, TierModel, simulate_trace
from policies.trace import Trace
from tiering import sweep as sweeping
from tiering.errors import Unavailable
from tiering.sweep import curves, sweep

RNG = np.random.default_rng(5)
IDS = RNG.integers(0, 40, 300)
TRACE = Trace(np.sort(RNG.random(300)) + 100, IDS, 1000 + IDS * 10)
TIER = TierModel(0.01, 1e6, slots=2, request_price=1e-3, egress_price_per_gb=0.5)
CACHES = [
    CacheModel(capacity, policy, lookahead_bytes=ahead)
    for capacity in (5_000, 20_000)
    for policy in ("lru", "belady", "integrated")
    for ahead in (0, 4_000)
]


def test_sweep_is_a_simulation_of_each_cache_in_its_order() -> None:
    expected = [
        simulate_trace(
            TRACE.ids,
            TRACE.sizes,
            TIER,
            cache,
            compute_seconds=TRACE.sizes * 1e-5,
            arrival_seconds=TRACE.times - TRACE.times[0],
        )
        for cache in CACHES
    ]
    assert sweep(TRACE, TIER, CACHES, seconds_a_byte=1e-5) == expected
    assert len(set(map(repr, expected))) == len(CACHES)
    assert sweep(TRACE, TIER, CACHES[::-1], seconds_a_byte=1e-5) == expected[::-1]


def test_sweep_on_a_cluster_gives_the_same(cluster: Client) -> None:
    assert sweep(TRACE, TIER, CACHES, client=cluster) == sweep(TRACE, TIER, CACHES)
    policies, sizes = ["lru", "sieve", "pin"], [5_000, 20_000]
    found = curves(TRACE, policies, sizes, client=cluster)
    assert found == [curve(policy, TRACE.ids, TRACE.sizes, sizes) for policy in policies]


def test_sweep_on_a_cluster_does_not_lose_what_the_one_before_has_just_let_go(cluster: Client) -> None:
    expected = sweep(TRACE, TIER, CACHES[:1])
    for _ in range(20):
        assert sweep(TRACE, TIER, CACHES[:1], client=cluster) == expected


def test_sweep_on_a_cluster_raises_the_error_of_a_simulation(cluster: Client) -> None:
    wrong = replace(CACHES[0], demand_slots=5)
    with pytest.raises(ValueError, match="demand_slots must be below 2"):
        sweep(TRACE, TIER, [*CACHES, wrong], client=cluster)


def test_curves_by_a_sample_are_those_of_the_policy() -> None:
    (found,) = curves(TRACE, ["lru"], [200_000], sample=0.5)
    assert found == sampled_curve("lru", TRACE.ids, TRACE.sizes, [200_000], rate=0.5)
    assert found.points[0].object_error > 0


def test_sweep_starts_processes_when_it_is_large(monkeypatch: pytest.MonkeyPatch, cluster: Client) -> None:
    started = []

    @contextlib.contextmanager
    def local_cluster(*, processes: bool) -> Iterator[Client]:
        started.append(processes)
        yield cluster

    monkeypatch.setattr(sweeping, "local_cluster", local_cluster)
    monkeypatch.setattr(sweeping, "MANY_REQUESTS", len(TRACE) * len(CACHES))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    expected = sweep(TRACE, TIER, CACHES)
    assert started == []
    monkeypatch.setattr(sweeping, "MANY_REQUESTS", len(TRACE) * len(CACHES) - 1)
    assert sweep(TRACE, TIER, CACHES) == expected
    assert started == [True]
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert sweep(TRACE, TIER, CACHES) == expected
    assert started == [True]


def test_sweep_on_a_cluster_without_workers_says_so() -> None:
    deserted = mock.create_autospec(Client, instance=True)
    deserted.scatter.side_effect = TimeoutError("No valid workers found")
    with pytest.raises(Unavailable, match=r"takes no data: No valid workers found. Has it workers\?"):
        sweep(TRACE, TIER, CACHES, client=deserted)
