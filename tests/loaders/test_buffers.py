"""Memory for batches: used again, and never while anybody can see it."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from loaders.buffers import BatchBuffer, BatchBuffers
from tiering.layout.zarr import ZarrColumn

COLUMNS = (ZarrColumn("a", np.dtype("u2"), (3,)), ZarrColumn("b", np.dtype("f4")))


def batch(buffer: BatchBuffer) -> dict[str, np.ndarray]:
    return {name: array[:] for name, array in buffer.arrays.items()}


def test_memory_nobody_refers_to_is_used_again() -> None:
    buffers = BatchBuffers(COLUMNS, 4, 8)
    first = buffers.take()
    assert {name: (array.shape, array.dtype) for name, array in first.arrays.items()} == {
        "a": ((4, 3), np.dtype("u2")),
        "b": ((4,), np.dtype("f4")),
    }
    assert first.addresses == {name: array.ctypes.data for name, array in first.arrays.items()}
    buffers.give(first)
    assert buffers.take() is first


@pytest.mark.parametrize(
    "keep",
    [
        lambda found: found,
        lambda found: found["a"],
        lambda found: found["b"][1:2].view(np.uint8),
        lambda found: found["a"].T[0],
        lambda found: memoryview(found["b"]),
        lambda found: np.asarray(memoryview(found["a"]).cast("B")),
        lambda found: np.from_dlpack(found["b"]),
        lambda found: iter(found["a"]),
    ],
)
def test_memory_somebody_refers_to_is_left_alone(keep: Any) -> None:
    buffers = BatchBuffers(COLUMNS, 4, 8)
    first = buffers.take()
    kept = keep(batch(first))
    buffers.give(first)
    second = buffers.take()
    assert second is not first
    del kept
    gc.collect()
    assert buffers.take() is first


def test_one_that_is_kept_for_ever_does_not_hide_the_others() -> None:
    buffers = BatchBuffers(COLUMNS, 4, 8)
    made = [buffers.take() for _ in range(3)]
    kept = batch(made[0])
    for buffer in made:
        buffers.give(buffer)
    assert {id(buffers.take()) for _ in range(2)} == {id(made[1]), id(made[2])}
    assert kept["a"].shape == (4, 3)


def test_no_more_are_remembered_than_asked_for() -> None:
    buffers = BatchBuffers(COLUMNS, 4, 2)
    made = [buffers.take() for _ in range(5)]
    for buffer in made:
        buffers.give(buffer)
    again = [buffers.take() for _ in range(3)]
    assert again[:2] == made[3:]
    assert again[2] not in made
