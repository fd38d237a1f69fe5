"""Memory of bounded size, of one process."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tiering.errors import CapacityExceeded, Conflict
from tiering.stores.memory import MemoryStore


def test_memory_write_takes_its_room_before_it_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore("m", 10)
    seen: list[int | None] = []
    check = MemoryStore._check_absent

    def look(self: MemoryStore, key: str) -> None:
        seen.append(self.free_bytes())
        check(self, key)

    monkeypatch.setattr(MemoryStore, "_check_absent", look)
    store.write("k", [b"1234567"], if_absent=True)
    assert seen == [
        10,
        3,
    ]  # before room was taken; and when the bytes had been copied, before they were stored
    assert store.free_bytes() == 3


def test_memory_write_that_fails_gives_its_room_back() -> None:
    store = MemoryStore("m", 10)
    store.write("k", [b"1234567"])
    with pytest.raises(CapacityExceeded, match="4 bytes do not fit: 3 of 10 are free"):
        store.write("l", [b"1234"])
    with pytest.raises(Conflict):
        store.write("k", [b"1"], if_absent=True)
    assert store.free_bytes() == 3
    store.write("l", [b"123"])
    assert store.free_bytes() == 0


def test_memory_replaced_object_needs_room_for_both() -> None:
    store = MemoryStore("m", 10)
    store.write("k", [b"123456"])
    with pytest.raises(CapacityExceeded):
        store.write("k", [b"12345"])
    assert store.read("k") == b"123456"
    store.write("k", [b"1234"])
    assert store.free_bytes() == 6


def test_memory_racing_writers_never_exceed_the_capacity() -> None:
    store = MemoryStore("m", 1000)
    barrier = threading.Barrier(8, timeout=60)

    def write(writer: int) -> int:
        barrier.wait()
        written = 0
        for i in range(40):
            try:
                store.write(f"{writer}/{i % 3}", [bytes(97)])
                written += 1
            except CapacityExceeded:
                store.delete(f"{writer}/{(i + 1) % 3}")
            free = store.free_bytes()
            assert free is not None
            assert free >= 0
        return written

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(write, range(8))) > 8
    used = sum(info.nbytes for info in store.list())
    assert store.free_bytes() == 1000 - used


def test_overwrite_is_one_step_for_readers_who_take_no_lock() -> None:
    class Kept(dict[str, Any]):
        def pop(self, *_: Any) -> Any:
            pytest.fail("the old object was gone before the new one was there")

    with MemoryStore("lake") as store:
        store.write("k", [b"old"])
        store._kept.objects = Kept(store._kept.objects)
        store.write("k", [b"newer"])
        assert store.read("k") == b"newer"
        assert store._kept.data_bytes == 5
