"""Tiers of one test, closed when it ends."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from tiering import Tier, open_tier
from tiering.graph import local_cluster
from tiering.monitor.stats import COUNTERS


@pytest.fixture
def make_tier(tmp_path: Path) -> Iterator[Callable[..., Tier]]:
    """Makes file tiers by name below the test's folder."""
    made: list[Tier] = []

    def make(name: str, **options: Any) -> Tier:
        made.append(open_tier(tmp_path / name, name, **options))
        return made[-1]

    yield make
    for tier in made:
        tier.close()


@pytest.fixture
def lake(make_tier: Callable[..., Tier]) -> Tier:
    return make_tier("lake")


@pytest.fixture
def disk(make_tier: Callable[..., Tier]) -> Tier:
    return make_tier("disk")


@pytest.fixture
def memory() -> Iterator[Tier]:
    """A memory tier that is empty at the start and at the end."""
    tier = open_tier(f"memory://{secrets.token_hex(4)}", "memory")
    yield tier
    for info in tier.store.list():
        tier.store.delete(info.key)
    tier.close()


@pytest.fixture(scope="package")
def cluster() -> Iterator[Client]:
    """Two worker processes on loopback, for all tests that need some; never the current client."""
    with local_cluster(processes=True, workers=2) as client, client.as_current():
        yield client
    COUNTERS.reset()
