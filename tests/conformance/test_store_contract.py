"""The contract of `tiering.stores.base`, sentence by sentence, for every kind of store."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from tests.conformance.conftest import UNCONDITIONAL
from tests.conformance.patterns import pattern, read_range
from tiering.errors import Conflict, Corrupt, NotFound, UsageError
from tiering.stores.base import Store, check_range
from tiering.stores.scatter import Scatter, vectors

SIZES = [0, 1, 4095, 4096, 4097, 9 << 20]

BAD_KEYS = {
    "empty": "",
    "absolute": "/a",
    "parent": "a/../b",
    "here": "./a",
    "empty-segment": "a//b",
    "trailing-slash": "a/",
    "backslash": "a\\b",
    "nul": "a\0b",
    "control": "a\nb",
    "not-nfc": "e\u0301",
    "surrogate": "\ud800",
    "long-segment": "x" * 256,
    "long": "/".join(["x" * 200] * 6),
    "temp": "a/.tmp-b",
}
TRICKY_KEYS = [
    "a-b/x",
    "a.b",
    "a/%41",
    "a/[x]*?",
    "a/b/c",
    "a/b c+d&e=f#g",
    "a/x",
    "a0",
    "ab",
    "z/\u00e9",
    "z/\uff5e",  # before the next in UTF-8, after it in UTF-16
    "z/\U0001f600",
]


@pytest.mark.parametrize("nbytes", SIZES)
def test_write_any_size_reads_back(store: Store, nbytes: int) -> None:
    data = pattern(nbytes)
    info = store.write("a/b", [data])
    assert (info.key, info.nbytes) == ("a/b", nbytes)
    read = store.read("a/b")
    assert not memoryview(read).readonly
    assert read == data


def test_write_many_buffers_is_their_concatenation(store: Store) -> None:
    data = pattern(20_000)
    cuts = [0, 0, 1, 7, 4096, 4096, 9000, 20_000]
    kinds: list[Callable[[bytes], bytes | bytearray | memoryview]] = [bytes, bytearray, memoryview]
    buffers = [kinds[i % 3](data[a:b]) for i, (a, b) in enumerate(pairwise(cuts))]
    assert store.write("k", buffers).nbytes == 20_000
    assert store.read("k") == data


def test_write_no_buffers_makes_an_empty_object(store: Store) -> None:
    assert store.write("k", []).nbytes == 0
    assert store.stat("k").nbytes == 0
    assert [info.key for info in store.list()] == ["k"]


def test_write_over_an_object_replaces_it(store: Store) -> None:
    for nbytes in (5000, 3, 70_000, 0):
        store.write("k", [pattern(nbytes, nbytes)])
        assert store.read("k") == pattern(nbytes, nbytes)
        assert store.stat("k").nbytes == nbytes


def test_write_keeps_no_hold_of_the_callers_buffers(store: Store) -> None:
    buffer = bytearray(pattern(5000))
    store.write("k", [buffer])
    buffer[:] = bytes(5000)
    buffer.append(1)
    assert store.read("k") == pattern(5000)


def test_write_that_fails_leaves_the_old_object(store: Store) -> None:
    store.write("k", [b"old"])
    with pytest.raises(TypeError):
        store.write("k", [b"new", "no buffer"])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        store.write("other", [b"new", "no buffer"])  # type: ignore[list-item]
    assert store.read("k") == b"old"
    assert [info.key for info in store.list()] == ["k"]


def test_write_if_absent_is_kept_or_refused(store: Store) -> None:
    store.write("k", [b"old"])
    with pytest.raises(UsageError if store.name in UNCONDITIONAL else Conflict):
        store.write("k", [b"new"], if_absent=True)
    if store.name in UNCONDITIONAL:
        with pytest.raises(UsageError, match="ignores If-None-Match"):
            store.write("new", [b"new"], if_absent=True)
    assert store.read("k") == b"old"
    assert [info.key for info in store.list()] == ["k"]


def test_write_if_absent_makes_a_new_object(creating_store: Store) -> None:
    assert creating_store.write("k", [b"one"], if_absent=True).nbytes == 3
    assert creating_store.read("k") == b"one"


def test_write_if_absent_keeps_an_old_object(creating_store: Store) -> None:
    creating_store.write("k", [b"old"])
    with pytest.raises(Conflict) as caught:
        creating_store.write("k", [b"new"], if_absent=True)
    assert (caught.value.tier, caught.value.key) == (creating_store.name, "k")
    assert creating_store.read("k") == b"old"


def test_write_if_absent_after_delete_makes_a_new_object(creating_store: Store) -> None:
    creating_store.write("k", [b"old"])
    creating_store.delete("k")
    creating_store.write("k", [b"new"], if_absent=True)
    assert creating_store.read("k") == b"new"


@pytest.mark.parametrize(
    ("offset", "nbytes"), [(0, 10), (5000, 4096), (9_990, 10), (0, 10_000), (10_000, 0), (7, 0)]
)
def test_read_into_a_range_fills_the_buffer(store: Store, offset: int, nbytes: int) -> None:
    data = pattern(10_000)
    store.write("k", [data])
    assert read_range(store, "k", offset, nbytes) == data[offset : offset + nbytes]


def test_a_reader_fills_a_buffer_or_the_places_of_rows(store: Store) -> None:
    data = pattern(10_000)
    store.write("k", [data])
    reader = store.reader("k")
    buffer = bytearray(300)
    reader(1_000, memoryview(buffer))
    assert bytes(buffer) == data[1_000:1_300]
    rows = np.zeros((5, 70), np.uint8)
    places = rows.ctypes.data + np.array([3, 0, 4, 1]) * 70
    reader(2_000, Scatter(vectors(places, 70), 70))
    for number, row in enumerate([3, 0, 4, 1]):
        assert rows[row].tobytes() == data[2_000 + number * 70 :][:70]
    assert not rows[2].any()
    with pytest.raises(Corrupt):
        reader(9_900, Scatter(vectors(places, 70), 70))


def test_a_reader_tells_the_object_it_read_from_the_one_in_its_place(store: Store) -> None:
    store.write("k", [b"old"])
    buffer = bytearray(3)
    before = store.reader("k")(0, memoryview(buffer))
    assert store.reader("k")(0, memoryview(buffer)) == before
    store.write("k", [b"new"])
    after = store.reader("k")(0, memoryview(buffer))
    assert buffer == b"new"
    assert after is None or after != before


def test_read_into_a_long_range_in_the_middle(store: Store) -> None:
    data = pattern(20 << 20)
    store.write("k", [data])
    assert read_range(store, "k", 12_345, 17 << 20) == data[12_345 : 12_345 + (17 << 20)]


def test_read_into_part_of_a_buffer_leaves_the_rest(store: Store) -> None:
    store.write("k", [b"abcdef"])
    buffer = bytearray(b"........")
    store.read_into("k", 2, memoryview(buffer)[3:6])
    assert buffer == b"...cde.."


@pytest.mark.parametrize(
    ("offset", "nbytes"), [(0, 11), (9, 2), (10, 1), (11, 0), (1 << 40, 5), (4, 20 << 20)]
)
def test_read_into_beyond_the_end_is_corrupt(store: Store, offset: int, nbytes: int) -> None:
    store.write("k", [b"0123456789"])
    with pytest.raises(Corrupt) as caught:
        read_range(store, "k", offset, nbytes)
    assert (caught.value.tier, caught.value.key) == (store.name, "k")


def test_read_into_of_an_empty_object_is_corrupt(store: Store) -> None:
    store.write("k", [])
    with pytest.raises(Corrupt):
        read_range(store, "k", 0, 1)
    assert read_range(store, "k", 0, 0) == b""


def test_read_into_with_a_negative_offset_is_refused(store: Store) -> None:
    store.write("k", [b"0123456789"])
    with pytest.raises(UsageError):
        read_range(store, "k", -1, 2)


def test_missing_key_is_not_found(store: Store) -> None:
    store.write("there/k", [b"x"])
    for key in ("k", "there", "there/k2", "there/k/below"):
        for call in (store.read, store.stat, store.locate):
            with pytest.raises(NotFound) as caught:
                call(key)
            assert (caught.value.tier, caught.value.key) == (store.name, key)
        with pytest.raises(FileNotFoundError):
            read_range(store, key, 0, 1)
        assert not store.exists(key)


def test_delete_removes_at_once_and_is_idempotent(store: Store) -> None:
    store.write("a/k", [b"x"])
    store.write("a/k2", [b"y"])
    store.delete("a/k")
    assert not store.exists("a/k")
    assert [info.key for info in store.list()] == ["a/k2"]
    store.delete("a/k")
    store.delete("never/was")
    assert store.read("a/k2") == b"y"


def test_delete_of_the_last_object_removes_its_folders(store: Store) -> None:
    store.write("a/b/c", [b"x"])
    store.delete("a/b/c")
    assert list(store.children()) == []
    assert list(store.children("a")) == []
    store.write("a", [b"an object where a folder was"])
    assert list(store.children()) == ["a"]


def test_list_is_in_order_of_utf8_bytes(store: Store) -> None:
    for key in reversed(TRICKY_KEYS):
        store.write(key, [key.encode()])
    assert [info.key for info in store.list()] == sorted(TRICKY_KEYS, key=str.encode)
    for key in TRICKY_KEYS:
        assert store.read(key) == key.encode()


def test_list_below_a_prefix_means_a_folder(store: Store) -> None:
    for key in ("a/x", "a/y/z", "a-b/x", "ab", "b"):
        store.write(key, [b"x"])
    assert [info.key for info in store.list("a")] == ["a/x", "a/y/z"]
    assert [info.key for info in store.list("a/y")] == ["a/y/z"]
    for prefix in ("a/x", "b", "none", "none/below", "a/y/z/below"):
        assert list(store.list(prefix)) == []


def test_list_tells_size_and_etag_as_stat_does(store: Store) -> None:
    store.write("a", [b"123"])
    store.write("b", [])
    assert list(store.list()) == [store.stat("a"), store.stat("b")]


def test_children_are_names_of_objects_and_folders(store: Store) -> None:
    for key in ("a/x", "a/y/z", "a/y/z2", "a-b/x", "c"):
        store.write(key, [b"x"])
    assert list(store.children()) == ["a", "a-b", "c"]
    assert list(store.children("a")) == ["x", "y"]
    assert list(store.children("a/y")) == ["z", "z2"]
    assert list(store.children("none")) == []
    assert list(store.children("c")) == []


def test_stat_etag_changes_with_the_bytes(store: Store) -> None:
    etags = [store.write("k", [data]).etag for data in (b"one", b"two", b"six")]
    if etags[0] is not None:
        assert len(set(etags)) == 3
        assert store.stat("k").etag == etags[-1]


def test_bad_key_is_refused_without_effect(store: Store) -> None:
    calls: dict[str, Callable[[str], object]] = {
        "write": lambda key: store.write(key, [b"x"]),
        "create": lambda key: store.write(key, [b"x"], if_absent=True),
        "read_into": lambda key: read_range(store, key, 0, 1),
        "read": store.read,
        "delete": store.delete,
        "stat": store.stat,
        "exists": store.exists,
        "locate": store.locate,
        "list": lambda key: list(store.list(key)),
        "children": store.children,
    }
    for what, key in BAD_KEYS.items():
        asked = set(calls) if key else set(calls) - {"list", "children"}
        assert {name for name in asked if is_refused(calls[name], key)} == asked, what
    assert list(store.list()) == []


def is_refused(call: Callable[[str], object], key: str) -> bool:
    try:
        call(key)
    except UsageError:
        return True
    return False


def test_locate_gives_the_bytes_where_they_have_an_address(store: Store) -> None:
    data = pattern(10_000)
    store.write("k", [data])
    extent = store.locate("k")
    if extent is not None:
        with extent.path.open("rb") as file:
            file.seek(extent.offset)
            assert file.read(extent.nbytes) == data


def test_repr_and_kind_name_the_store(store: Store) -> None:
    assert store.name in repr(store)
    assert store.kind in ("memory", "file", "block", "object")


def test_check_range_tells_usage_from_truncation() -> None:
    check_range("t", "k", 0, 10, 10)
    with pytest.raises(UsageError):
        check_range("t", "k", -1, 1, 10)
    with pytest.raises(Corrupt, match=r"\[5, 11\).*10 bytes"):
        check_range("t", "k", 5, 6, 10)
