from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import replay
from policies.eviction.belady import Belady
from tests.policies.eviction_model import MODELLED, Model

PROFILE = settings(max_examples=150, deadline=None, derandomize=True)
TRACE = Path(__file__).parents[2].parent / "shared" / "data" / "cloudPhysicsIO.oracleGeneral.bin"
RECORD = np.dtype([("ts", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])
MIB = 1 << 20
CAPACITIES_MIB = (16, 32, 64, 128, 256, 512, 640, 1024)
# Misses of libCacheSim 0.3.5.
GOLDEN = {
    "fifo": (95473, 94897, 94342, 93403, 89386, 84025, 72498, 72140),
    "lru": (95095, 94658, 94203, 93374, 89783, 81722, 72494, 71704),
    "clock": (94967, 94561, 94127, 93313, 89775, 81328, 74815, 64456),
    "sieve": (93788, 93503, 92965, 91699, 86720, 76707, 69945, 64376),
    "s3fifo": (93830, 93476, 92354, 90117, 80915, 72191, 69815, 56045),
    "arc": (93751, 93393, 92572, 90252, 85861, 74297, 67381, 64772),
    "lirs": (93903, 93261, 92079, 89819, 79237, 70363, 68405, 53924),
}
NEAR = {
    "wtinylfu": (94344, 93507, 92374, 90456, 84189, 74893, 72902, 53657),
    "gdsf": (93533, 93280, 92061, 89070, 84750, 70490, 67923, 58721),
}
BELADY = (91596, 89457, 85759, 79256, 70724, 61594, 59645, 48974)


@pytest.mark.skipif(not TRACE.exists(), reason="the libCacheSim trace is not beside this checkout")
@pytest.mark.no_cover  # a million requests, five times slower under its tracer
@pytest.mark.parametrize("name", GOLDEN)
def test_replay_of_a_real_trace_misses_as_libcachesim_does(name: str) -> None:
    trace = np.fromfile(TRACE, dtype=RECORD)
    for capacity_mib, misses in zip(CAPACITIES_MIB, GOLDEN[name], strict=True):
        result = replay(name, trace["id"], trace["size"], capacity_mib * MIB)
        assert (result.requests, result.misses) == (113_872, misses)
        assert result.bytes == int(trace["size"].sum(dtype=np.int64))


@pytest.mark.skipif(not TRACE.exists(), reason="the libCacheSim trace is not beside this checkout")
@pytest.mark.no_cover  # a million requests, five times slower under its tracer
@pytest.mark.parametrize(("name", "tolerance"), [("gdsf", 0.001), ("wtinylfu", 0.01)])
def test_replay_of_a_real_trace_is_near_libcachesim_or_better(name: str, tolerance: float) -> None:
    """GDSF breaks ties otherwise; W-TinyLFU counts exactly, and moves the border of its window."""
    trace = np.fromfile(TRACE, dtype=RECORD)
    for capacity_mib, misses in zip(CAPACITIES_MIB, NEAR[name], strict=True):
        assert replay(name, trace["id"], trace["size"], capacity_mib * MIB).misses <= misses * (1 + tolerance)


@pytest.mark.skipif(not TRACE.exists(), reason="the libCacheSim trace is not beside this checkout")
@pytest.mark.no_cover  # a million requests, five times slower under its tracer
def test_belady_on_a_real_trace_misses_as_libcachesim_does_where_it_must_admit() -> None:
    trace = np.fromfile(TRACE, dtype=RECORD)
    ids, sizes = trace["id"].tolist(), trace["size"].tolist()
    for capacity_mib, expected in zip(CAPACITIES_MIB, BELADY, strict=True):
        misses, _ = Belady(capacity_mib * MIB, ids, must_admit=True).run(ids, sizes)
        assert misses == expected
        assert replay("belady", ids, sizes, capacity_mib * MIB).misses <= expected


@pytest.mark.parametrize("name", MODELLED)
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
        (("mru", [1], 1, 1), "policy must be one of fifo, lru, clock"),
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
