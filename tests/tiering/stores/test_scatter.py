"""Rows to places of their own: every row where it belongs, and nothing else touched."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tiering.stores import scatter as scatter_module
from tiering.stores.scatter import Scatter, vectors

ROW_BYTES = 300


def places(rows: int, buffers: int = 3) -> tuple[list[np.ndarray], np.ndarray]:
    """Buffers that are all 255, and a shuffled choice of places in them, a byte apart."""
    memory = [np.full((rows, ROW_BYTES + 1), 255, np.uint8) for _ in range(buffers)]
    every = np.concatenate([one.ctypes.data + np.arange(rows) * (ROW_BYTES + 1) for one in memory])
    return memory, np.random.default_rng(7).permutation(every)[:rows]


def check(memory: list[np.ndarray], addresses: np.ndarray, rows: np.ndarray) -> None:
    """Each row is at its place, and all other bytes are as they were."""
    for address, row in zip(addresses.tolist(), rows, strict=True):
        for one in memory:
            offset = address - one.ctypes.data
            if 0 <= offset < one.nbytes:
                found = one.reshape(-1)[offset : offset + ROW_BYTES]
                np.testing.assert_array_equal(found, row)
                found[:] = 255
    assert all((one == 255).all() for one in memory)


def numbers(rows: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (rows, ROW_BYTES), np.uint8)


@pytest.mark.parametrize("rows", [1, 7, 2 * os.sysconf("SC_IOV_MAX") + 3])
def test_rows_of_a_file_come_to_their_places(tmp_path: Path, rows: int) -> None:
    data = numbers(rows)
    path = tmp_path / "rows"
    path.write_bytes(b"before" + data.tobytes() + b"behind")
    memory, addresses = places(rows)
    scatter = Scatter(vectors(addresses, ROW_BYTES), ROW_BYTES)
    assert scatter.nbytes == data.nbytes
    fd = os.open(path, os.O_RDONLY)
    assert scatter.read(fd, 6) == data.nbytes
    os.close(fd)
    check(memory, addresses, data)


def test_a_file_that_ends_before_gives_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(bytes(3 * ROW_BYTES + 5))
    _memory, addresses = places(8)
    fd = os.open(path, os.O_RDONLY)
    assert Scatter(vectors(addresses, ROW_BYTES), ROW_BYTES).read(fd, 0) == 3 * ROW_BYTES + 5
    os.close(fd)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    _memory, addresses = places(2)
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(IsADirectoryError):
        Scatter(vectors(addresses, ROW_BYTES), ROW_BYTES).read(fd, 0)
    os.close(fd)


@pytest.mark.parametrize("kernel", ["copies", "refuses", "has no such call"])
@pytest.mark.parametrize("rows", [40, os.sysconf("SC_IOV_MAX") + 3])
def test_rows_in_memory_are_copied_to_their_places(
    monkeypatch: pytest.MonkeyPatch, rows: int, kernel: str
) -> None:
    calls: list[int] = []
    copies = scatter_module._copy_vectors

    def refuses(*_arguments: object) -> int:
        calls.append(-1)
        return -1

    def counts(*arguments: object) -> int:
        calls.append(copies(*arguments))
        return calls[-1]

    made = {"copies": counts, "refuses": refuses, "has no such call": None}[kernel]
    monkeypatch.setattr(scatter_module, "_copy_vectors", made)
    data = numbers(rows)
    memory, addresses = places(rows)
    Scatter(vectors(addresses, ROW_BYTES), ROW_BYTES).copy(data.view(np.uint16).reshape(rows, 15, 10))
    check(memory, addresses, data)
    if kernel == "copies" and min(calls) >= 0:  # else it is forbidden here
        assert sum(calls) == data.nbytes
    assert bool(calls) == (kernel != "has no such call")


def test_no_rows_are_copied_nowhere() -> None:
    Scatter(np.empty((0, 2), np.int64), ROW_BYTES).copy(np.empty((0, ROW_BYTES), np.uint8))


def test_a_part_of_the_rows_has_their_places() -> None:
    data = numbers(9)
    memory, addresses = places(9)
    Scatter(vectors(addresses, ROW_BYTES), ROW_BYTES).part(2, 7).copy(data[2:7])
    check(memory, addresses[2:7], data[2:7])
