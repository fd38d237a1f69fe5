"""Tiers of one test, closed when it ends."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster
from hypothesis import settings

from tiering import Tier, open_tier

settings.register_profile("steady", deadline=None, derandomize=True, database=None)
settings.load_profile("steady")


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
    """Two worker processes on loopback, for all tests that ask for them: it is not the current client."""
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as workers,
        Client(workers, set_as_default=False) as client,
    ):
        yield client
