"""Any sequence of calls has the same results on every store as on the model, `MemoryStore`.

10,000 steps in all, counted as they are made, most of them where they are cheap; with ``--profile nightly``
ten times as many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.conformance.conftest import UNCONDITIONAL, params
from tiering.digest import digest
from tiering.errors import TieringError
from tiering.stores.base import Store
from tiering.stores.memory import MemoryStore

# None is a folder of another: a file system cannot hold both, and the contract does not ask for it.
KEYS = st.sampled_from(["a", "b/c", "b/d/e", "b-f", "\u00e9/x"])
FOLDERS = st.sampled_from(["", "a", "b", "b/d", "\u00e9", "none"])
BUFFERS = st.lists(
    st.builds(lambda nbytes, fill: bytes([fill]) * nbytes, st.integers(0, 9000), st.integers(0, 255)),
    max_size=3,
)
OFFSETS = st.integers(-1, 20_000)

STEPS = 25
STEPS_SHARE = 0.8
"""Of `STEPS`, what an example has at least on average: hypothesis cuts some that it makes of others short."""
EXAMPLES = {
    "shared-memory": 25,
    "wrapped": 35,
    "file": 175,
    "block": 80,
    "loop": 12,
    "fsspec-memory": 135,
    "object-moto": 10,
    "s3fs-moto": 8,
    "object-ceph": 8,
    "s3fs-ceph": 6,
    "object-rclone": 6,
}
NIGHTLY = 10


class StoreMachine(RuleBasedStateMachine):
    """Makes each call on a store and on the model, and compares."""

    def __init__(self, store: Store, steps: Counter[str]) -> None:
        super().__init__()
        self.store = store
        self.steps = steps
        steps["begun"] -= 1  # the first look is before the first step
        self.model = MemoryStore("model")

    def teardown(self) -> None:
        for info in list(self.store.list()):
            self.store.delete(info.key)
        assert list(self.store.children()) == []

    def same(self, call: Callable[[Store], Any]) -> None:
        assert outcome(call, self.store) == outcome(call, self.model)

    @invariant()
    def step(self) -> None:
        self.steps["made"] += 1

    @rule(key=KEYS, buffers=BUFFERS, if_absent=st.booleans(), known=st.booleans())
    def write(self, key: str, buffers: list[bytes], if_absent: bool, known: bool) -> None:
        if_absent = if_absent and self.store.name not in UNCONDITIONAL
        name = digest(buffers) if known else None
        self.same(lambda store: size_of(store.write(key, buffers, if_absent=if_absent, digest=name)))

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        self.same(lambda store: store.delete(key))

    @rule(key=KEYS)
    def look(self, key: str) -> None:
        self.same(lambda store: store.read(key))
        self.same(lambda store: size_of(store.stat(key)))
        self.same(lambda store: store.exists(key))

    @rule(key=KEYS, offset=OFFSETS, nbytes=st.integers(0, 10_000))
    def read_range(self, key: str, offset: int, nbytes: int) -> None:
        def read(store: Store) -> bytes:
            buffer = bytearray(nbytes)
            store.read_into(key, offset, memoryview(buffer))
            return bytes(buffer)

        self.same(read)

    @rule(folder=FOLDERS)
    def walk(self, folder: str) -> None:
        self.same(lambda store: [size_of(info) for info in store.list(folder)])
        self.same(lambda store: list(store.children(folder)))


def size_of(info: Any) -> tuple[str, int]:
    return info.key, info.nbytes


def outcome(call: Callable[[Store], Any], store: Store) -> Any:
    """What `call` returns, or the type of the error it raises."""
    try:
        return call(store)
    except TieringError as error:
        return type(error)


@pytest.mark.timeout(3600)
@pytest.mark.no_cover  # ten thousand times what the contract's tests cover
@pytest.mark.parametrize("kind", params(tuple(EXAMPLES)))
def test_store_behaves_as_the_model(
    kind: str, open_store: Callable[[str], AbstractContextManager[Store]], request: pytest.FixtureRequest
) -> None:
    nightly = request.config.getoption("profile") == "nightly"
    profile = settings(
        max_examples=EXAMPLES[kind] * (NIGHTLY if nightly else 1),
        stateful_step_count=STEPS,
        derandomize=not nightly,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    steps: Counter[str] = Counter()
    with open_store(kind) as store:
        run_state_machine_as_test(lambda: StoreMachine(store, steps), settings=profile)
    assert nightly or steps.total() >= EXAMPLES[kind] * STEPS * STEPS_SHARE


def test_profile_ci_has_ten_thousand_steps() -> None:
    assert sum(EXAMPLES.values()) * STEPS * STEPS_SHARE >= 10_000
