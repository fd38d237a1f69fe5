"""BlockStore keeps the contract of a store on an image file."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tiering.digest import digest
from tiering.errors import CapacityExceeded, Conflict, Corrupt, FormatError, NotFound, UsageError
from tiering.keys import INTERNAL
from tiering.stores.block import BlockStore, format_volume
from tiering.stores.block_index import span_of
from tiering.stores.block_layout import DATA_START
from tiering.stores.pages import PAGE_BYTES, PIECE_BYTES, aligned_buffer

DATA_BYTES = (2 << 20) - DATA_START


def pattern(nbytes: int, seed: int = 1) -> bytes:
    """At least `nbytes` bytes that differ from page to page."""
    return bytes((seed * 31 + i * 7) % 251 for i in range(251)) * (nbytes // 251 + 1)


@pytest.mark.parametrize("nbytes", [0, 1, 4095, 4096, 4097, 100_000])
def test_write_any_length_reads_back(store: BlockStore, nbytes: int) -> None:
    data = pattern(nbytes)[:nbytes]
    info = store.write("a/b", [data[:10], data[10:]])
    assert (info.key, info.nbytes) == ("a/b", nbytes)
    assert store.stat("a/b") == info
    assert store.read("a/b") == data


@pytest.mark.parametrize("offset", [0, 1, 4096, 5000, 8192])
@pytest.mark.parametrize("nbytes", [0, 1, 4096, 8192, 9001])
@pytest.mark.parametrize("shift", [0, 1])
def test_read_into_any_alignment(store: BlockStore, offset: int, nbytes: int, shift: int) -> None:
    data = pattern(20_000)[:20_000]
    store.write("k", [data])
    area = aligned_buffer(16_384)
    area[:] = b"\xee" * len(area)
    store.read_into("k", offset, area[shift : shift + nbytes])
    assert area[shift : shift + nbytes] == data[offset : offset + nbytes]
    assert set(area[:shift]) | set(area[shift + nbytes :]) == {0xEE}


def test_read_into_more_than_one_bounce_buffer(tmp_path: Path) -> None:
    path = tmp_path / "big.img"
    nbytes = 2 * PIECE_BYTES + 5000
    format_volume(path, nbytes + (1 << 20))
    data = pattern(nbytes)[:nbytes]
    with BlockStore("blocks", path) as store:
        store.write("k", [data[: PIECE_BYTES + 3], bytearray(data[PIECE_BYTES + 3 :])])
        assert store.read("k") == data
        buffer = bytearray(PIECE_BYTES + 77)
        store.read_into("k", 4001, memoryview(buffer))
        assert buffer == data[4001 : 4001 + len(buffer)]
        assert store.check() == []


def test_read_into_past_the_end_is_corrupt(store: BlockStore) -> None:
    store.write("k", [b"12345"])
    with pytest.raises(Corrupt, match="truncated"):
        store.read_into("k", 3, memoryview(bytearray(3)))
    with pytest.raises(UsageError, match="negative"):
        store.read_into("k", -1, memoryview(bytearray(1)))


def test_missing_key_is_not_found(store: BlockStore) -> None:
    for call in (store.read, store.stat, store.locate):
        with pytest.raises(NotFound, match="'blocks', key 'no'"):
            call("no")
    store.delete("no")
    assert not store.exists("no")


def test_longest_key_fits_its_header(store: BlockStore, path: Path) -> None:
    key = "/".join(["é" * 127] * 4)[:512]
    store.write(key, [b"x"])
    store.close()
    path.with_name("volume.img.index").unlink()
    with BlockStore("blocks", path) as again:
        assert [info.key for info in again.list()] == [key]


def test_list_is_ordered_by_utf8_bytes_below_a_folder(store: BlockStore) -> None:
    keys = ["a/b/c", "a/b0", "a/b-", "a", "ab/x", "a/\U00010000", "a/\uffff", "a/b/d"]
    for key in keys:
        store.write(key, [key.encode()])
    assert [info.key for info in store.list()] == sorted(keys, key=str.encode)
    expected = ["a/b-", "a/b/c", "a/b/d", "a/b0", "a/\uffff", "a/\U00010000"]
    assert [info.key for info in store.list("a")] == expected
    assert list(store.children("a")) == sorted(["b-", "b", "b0", "\uffff", "\U00010000"])
    assert list(store.children()) == ["a", "ab"]
    assert list(store.list("nothing")) == []


def test_overwrite_changes_bytes_and_etag_and_frees_the_old(store: BlockStore) -> None:
    first = store.write("k", [pattern(9000)])
    free_bytes = store.free_bytes()
    second = store.write("k", [pattern(9000, seed=2)])
    assert first.etag != second.etag
    assert store.read("k") == pattern(9000, seed=2)
    assert store.free_bytes() == free_bytes
    assert store.info().objects == 1


def test_delete_frees_all_space_in_one_run(store: BlockStore) -> None:
    for number in range(6):
        store.write(f"k{number}", [bytes(number * 5000)])
    for number in (3, 0, 5, 1, 4, 2):
        store.delete(f"k{number}")
    info = store.info()
    assert (info.free_bytes, info.largest_free_bytes, info.objects) == (DATA_BYTES, DATA_BYTES, 0)
    assert store.kept_bytes == 7 * PAGE_BYTES
    assert store.free_bytes() == DATA_BYTES - store.kept_bytes
    store.write("all", [bytes(store.free_bytes() - PAGE_BYTES)])
    assert store.free_bytes() == 0


def test_full_volume_has_room_for_claims_and_for_nothing_else(store: BlockStore) -> None:
    store.write("c/data", [bytes(store.free_bytes() - PAGE_BYTES)])
    with pytest.raises(CapacityExceeded, match=r"8192 bytes do not fit: 0 are free, 0 of them in one run"):
        store.write("c/more", [b"x"])
    for number in range(store.kept_bytes // span_of(1)):
        store.write(f"c/{INTERNAL}/claims/{number:08d}.json", [b"{}"], if_absent=True)
    with pytest.raises(CapacityExceeded):
        store.write(f"c/{INTERNAL}/HEAD", [b"{}"])
    assert store.info().free_bytes == PAGE_BYTES


def test_full_volume_changes_nothing(store: BlockStore) -> None:
    store.write("k", [pattern(1_200_000)])
    before = store.info()
    with pytest.raises(CapacityExceeded, match=r"1204224 bytes do not fit: .* are free.*key 'k'"):
        store.write("k", [bytes(1_200_000)])
    with pytest.raises(CapacityExceeded):
        store.write("other", [bytes(DATA_BYTES)])
    assert store.info() == before
    assert store.read("k") == pattern(1_200_000)
    assert store.check() == []


def test_if_absent_existing_key_is_a_conflict(store: BlockStore) -> None:
    store.write("k", [b"old"])
    with pytest.raises(Conflict):
        store.write("k", [b"new"], if_absent=True)
    assert store.read("k") == b"old"


def test_if_absent_racing_threads_have_one_winner(store: BlockStore) -> None:
    start, won = threading.Barrier(8), []

    def race(number: int) -> None:
        start.wait()
        try:
            store.write("k", [bytes([number]) * 5000], if_absent=True)
        except Conflict:
            return
        won.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read("k") == bytes(won) * 5000
    assert store.info().free_bytes == DATA_BYTES - 3 * PAGE_BYTES


def test_threads_that_read_while_others_overwrite_see_whole_objects(store: BlockStore) -> None:
    sizes = {number: 3000 * (number + 1) for number in range(10)}
    store.write("k", [bytes([0]) * sizes[0]])
    done = threading.Event()
    mixed: list[bytes] = []

    def read() -> None:
        while not done.is_set():
            data = store.read("k")
            if set(data) != {data[0]} or len(data) != sizes[data[0]]:
                mixed.append(bytes(data))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in [*range(10), *range(10)]:
        store.write("k", [bytes([number]) * sizes[number]])
    done.set()
    for thread in threads:
        thread.join()
    assert not mixed
    assert store.info().free_bytes == DATA_BYTES - PAGE_BYTES - 8 * PAGE_BYTES


def test_locate_names_the_bytes_that_read_gives(store: BlockStore) -> None:
    store.write("first", [b"x"])
    store.write("k", [pattern(10_000)])
    extent = store.locate("k")
    assert extent.offset % PAGE_BYTES == 0
    with extent.path.open("rb") as file:
        file.seek(extent.offset)
        assert file.read(extent.nbytes) == store.read("k")


def test_locate_is_readable_past_the_page_cache_from_another_descriptor(store: BlockStore) -> None:
    data = pattern(10_000)[:10_000]
    store.write("k", [data])
    extent = store.locate("k")
    fd = os.open(extent.path, os.O_RDONLY | (os.O_DIRECT if store.direct else 0))
    try:
        area = aligned_buffer(3 * PAGE_BYTES)
        assert os.preadv(fd, [area], extent.offset) == len(area)
    finally:
        os.close(fd)
    assert area[: extent.nbytes] == data


def test_aligned_read_goes_straight_into_the_callers_buffer(
    store: BlockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("k", [pattern(8 * PAGE_BYTES)[: 8 * PAGE_BYTES]])
    store.stat("k")
    area = aligned_buffer(4 * PAGE_BYTES)

    def refuse(_nbytes: int) -> None:
        raise AssertionError("copied by way of another buffer")

    monkeypatch.setattr("tiering.stores.block_medium.borrowed", refuse)
    store.read_into("k", 2 * PAGE_BYTES, area)
    assert area == pattern(8 * PAGE_BYTES)[2 * PAGE_BYTES : 6 * PAGE_BYTES]


def test_hold_keeps_bytes_in_place_while_the_key_is_deleted(store: BlockStore) -> None:
    data = pattern(10_000)
    store.write("k", [data])
    with store.hold("k") as extent:
        store.delete("k")
        assert not store.exists("k")
        for number in range(3):
            store.write(f"other{number}", [b"\xff" * 10_000])
        with extent.path.open("rb") as file:
            assert os.pread(file.fileno(), extent.nbytes, extent.offset) == data
        held_bytes = store.free_bytes()
    assert store.free_bytes() == held_bytes + PAGE_BYTES + 3 * PAGE_BYTES


def test_hold_lets_errors_of_its_body_through(store: BlockStore) -> None:
    store.write("k", [b"x"])
    with pytest.raises(FileNotFoundError, match="mine"), store.hold("k"):
        raise FileNotFoundError("mine")


def test_write_of_a_changing_buffer_is_described_by_its_own_digest(store: BlockStore) -> None:
    data = bytearray(pattern(8192))
    store.write("k", [data])
    data[:] = bytes(len(data))
    assert store.check() == []


def test_write_of_known_digest_records_it_unhashed(store: BlockStore, path: Path) -> None:
    store.write("k", [b"the ", b"bytes"], digest=digest(b"the bytes"))
    assert store.check() == []
    store.write("k", [b"the bytes"], digest=digest(b"others"))
    assert store.read("k") == b"the bytes"
    assert [problem.key for problem in store.check()] == ["k"]  # what was not hashed is not sworn to
    store.close()
    with (
        BlockStore("blocks", path, scan=True) as again,
        pytest.raises(Corrupt, match="found its data damaged"),
    ):
        again.read("k")


def test_write_of_something_that_is_no_digest_changes_nothing(store: BlockStore) -> None:
    store.write("k", [b"old"])
    with pytest.raises(FormatError, match="the digest given is not a BLAKE3 digest: 'x'"):
        store.write("k", [b"new"], digest="x")
    assert store.read("k") == b"old"


def test_closed_store_says_so(store: BlockStore) -> None:
    store.write("k", [b"x"])
    store.close()
    store.close()
    for call in (lambda: store.read("k"), lambda: store.write("k", [b""]), store.info):
        with pytest.raises(UsageError, match="closed"):
            call()


def test_read_only_refuses_changes_and_shares(store: BlockStore, path: Path) -> None:
    store.write("k", [b"bytes"])
    store.close()
    with BlockStore("one", path, read_only=True) as one, BlockStore("two", path, read_only=True) as two:
        assert one.read("k") == two.read("k") == b"bytes"
        assert not one.rebuilt
        assert one.check() == []
        for call in (lambda: one.write("k", [b"x"]), lambda: one.delete("k")):
            with pytest.raises(UsageError, match="read-only"):
                call()
