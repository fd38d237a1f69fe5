"""The read half of the contract, for stores whose objects somebody else puts there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance.patterns import pattern, read_range
from tests.servers import http_files
from tiering.errors import Corrupt, NotFound, UsageError
from tiering.stores.base import Store
from tiering.stores.fsspec import FsspecStore
from tiering.stores.memory import MemoryStore
from tiering.stores.wrappers import ReadOnly

OBJECTS = {
    "a/x": pattern(10_000),
    "a/y/z": pattern(9 << 20, 2),
    "a-b/x": b"1",
    "c": b"",
    "d.e": pattern(4097, 3),
}


@pytest.fixture(params=["read-only-memory", "http"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A store that holds `OBJECTS` and takes nothing more."""
    if request.param == "http":
        for key, data in OBJECTS.items():
            path = tmp_path / "tier" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        with http_files(tmp_path) as url, FsspecStore("http", f"{url}/tier") as web:
            yield web
        return
    memory = MemoryStore("read-only-memory")
    for key, data in OBJECTS.items():
        memory.write(key, [data])
    yield ReadOnly(memory)


@pytest.mark.parametrize("key", OBJECTS)
def test_read_gives_all_bytes(store: Store, key: str) -> None:
    data = store.read(key)
    assert isinstance(data, bytearray)
    assert data == OBJECTS[key]
    assert (store.stat(key).key, store.stat(key).nbytes) == (key, len(OBJECTS[key]))
    assert store.exists(key)


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 10), (5000, 4096), (9_990, 10), (0, 10_000), (10_000, 0)])
def test_read_into_a_range_fills_the_buffer(store: Store, offset: int, nbytes: int) -> None:
    assert read_range(store, "a/x", offset, nbytes) == OBJECTS["a/x"][offset : offset + nbytes]


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 10_001), (9_999, 2), (10_000, 1), (1 << 40, 5)])
def test_read_into_beyond_the_end_is_corrupt(store: Store, offset: int, nbytes: int) -> None:
    with pytest.raises(Corrupt) as caught:
        read_range(store, "a/x", offset, nbytes)
    assert (caught.value.tier, caught.value.key) == (store.name, "a/x")


def test_missing_key_is_not_found(store: Store) -> None:
    for key in ("k", "a/x2", "none/k"):
        for call in (store.read, store.stat, store.locate):
            with pytest.raises(NotFound):
                call(key)
        assert not store.exists(key)


def test_list_is_in_order_with_sizes(store: Store) -> None:
    assert [(info.key, info.nbytes) for info in store.list()] == [
        (key, len(OBJECTS[key])) for key in sorted(OBJECTS, key=str.encode)
    ]
    assert [info.key for info in store.list("a")] == ["a/x", "a/y/z"]
    assert list(store.list("none")) == []


def test_children_are_names_of_objects_and_folders(store: Store) -> None:
    assert list(store.children()) == ["a", "a-b", "c", "d.e"]
    assert list(store.children("a")) == ["x", "y"]
    assert list(store.children("none")) == []


def test_changes_are_refused_without_effect(store: Store) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.write("a/x", [b"new"]),
        lambda: store.write("new", [b"new"]),
        lambda: store.write("new", [b"new"], if_absent=True),
        lambda: store.delete("a/x"),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="read-only"):
            call()
    assert {info.key for info in store.list()} == set(OBJECTS)
    assert store.read("a/x") == OBJECTS["a/x"]
