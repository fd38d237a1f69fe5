"""An encrypted store keeps the whole contract of stores: the conformance suite, run over it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.conformance import test_store_concurrency, test_store_contract
from tests.conformance.test_store_stateful import StoreMachine
from tests.tiering.encryption.tools import encrypted
from tiering.stores.base import Store
from tiering.stores.block import BlockStore, format_volume
from tiering.stores.file import FileStore
from tiering.stores.memory import MemoryStore


def inner_store(kind: str, folder: Path) -> Store:
    if kind == "memory":
        return MemoryStore("lake")
    if kind == "file":
        return FileStore("lake", folder / "lake")
    format_volume(folder / "volume", 96 << 20)
    return BlockStore("lake", folder / "volume")


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with encrypted(inner_store(request.param, tmp_path), tmp_path) as store:
        yield store


@pytest.fixture
def creating_store(store: Store) -> Store:
    """The suite's name for a store that keeps ``if_absent``: every store here does."""
    return store


for module in (test_store_contract, test_store_concurrency):
    globals().update((name, test) for name, test in vars(module).items() if name.startswith("test_"))


@pytest.mark.parametrize("kind", ["memory", "file", "block"])
def test_encrypted_store_behaves_as_the_model(kind: str, tmp_path: Path) -> None:
    profile = settings(
        max_examples=8,
        stateful_step_count=25,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    with encrypted(inner_store(kind, tmp_path), tmp_path) as store:
        run_state_machine_as_test(lambda: StoreMachine(store, Counter()), settings=profile)
