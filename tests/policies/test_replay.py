from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import replay
from policies.eviction import NAMES
from tests.policies.eviction_model import Model

PROFILE = settings(max_examples=150, deadline=None, derandomize=True)
TRACE = Path(__file__).parents[2].parent / "shared" / "data" / "cloudPhysicsIO.oracleGeneral.bin"
RECORD = np.dtype([("ts", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])
MIB = 1 << 20


@pytest.mark.skipif(not TRACE.exists(), reason="the libCacheSim trace is not beside this checkout")
@pytest.mark.parametrize(
    ("name", "capacity_mib", "misses"),
    [
        ("lru", 128, 93374), ("lru", 640, 72494), ("lru", 1024, 71704),
        ("fifo", 128, 93403), ("fifo", 640, 72498), ("fifo", 1024, 72140),
    ],
)  # fmt: skip
def test_replay_of_a_real_trace_misses_as_libcachesim_does(name: str, capacity_mib: int, misses: int) -> None:
    trace = np.fromfile(TRACE, dtype=RECORD)
    result = replay(name, trace["id"], trace["size"], capacity_mib * MIB)
    assert (result.requests, result.misses) == (113_872, misses)
    assert result.bytes == int(trace["size"].sum(dtype=np.int64))


@pytest.mark.parametrize("name", NAMES)
@PROFILE
@given(
    requests=st.lists(st.tuples(st.integers(-3, 9), st.integers(0, 13)), max_size=80),
    capacity=st.integers(0, 40),
)
def test_replay_equals_a_list_searched_from_end_to_end(
    name: str, requests: list[tuple[int, int]], capacity: int
) -> None:
    ids, sizes = [item for item, _ in requests], [nbytes for _, nbytes in requests]
    model = Model(name, capacity)
    missed = []
    for item, nbytes in requests:
        if not model.hit(item):
            missed.append(nbytes)
            model.admit(item, nbytes)
    result = replay(name, ids, sizes, capacity)
    assert (result.requests, result.misses, result.hits) == (len(ids), len(missed), len(ids) - len(missed))
    assert (result.bytes, result.miss_bytes) == (sum(sizes), sum(missed))


def test_replay_ratios_are_of_requests_and_of_bytes() -> None:
    result = replay("fifo", [1, 2, 1, 1], [3, 5, 3, 3], 8)
    assert (result.hits, result.misses, result.bytes, result.miss_bytes) == (2, 2, 14, 8)
    assert (result.object_miss_ratio, result.byte_miss_ratio) == (2 / 4, 8 / 14)


def test_replay_takes_one_size_for_all_and_any_integer_array() -> None:
    ids = np.array([2**64 - 1, 5, 2**64 - 1], dtype=np.uint64)
    result = replay("lru", ids, 7, 14)
    assert result == replay("lru", [0, 1, 0], np.array([7, 7, 7], dtype=np.uint8), 14)
    assert (result.misses, result.miss_bytes, result.bytes) == (2, 14, 21)
    assert type(result.miss_bytes) is int


def test_replay_of_nothing_misses_nothing() -> None:
    result = replay("lru", [], [], 10)
    assert (result.requests, result.object_miss_ratio, result.byte_miss_ratio) == (0, 0.0, 0.0)


def test_replay_result_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        replay("lru", [1], 1, 1).misses = 0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mru", [1], 1, 1), "policy must be one of fifo, lru, pin"),
        (("lru", [1.5], 1, 1), "ids must be a flat sequence of ints, not float64"),
        (("lru", [[1]], 1, 1), "ids must be a flat sequence of ints"),
        (("lru", [1, 2], [1], 1), "sizes must be one number or 2"),
        (("lru", [1, 2], [1, -1], 1), "sizes must be at least 0, not -1"),
        (("lru", [1], 1, -1), "capacity_bytes must be at least 0"),
    ],
)
def test_replay_refuses_arguments_out_of_range(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replay(*arguments)  # type: ignore[arg-type]
