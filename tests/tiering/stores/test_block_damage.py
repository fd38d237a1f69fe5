"""Bad sectors, flipped bits and an index of another time: never wrong bytes, and what can be mended is."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from tests.tiering.stores.block_tools import loop_device, patch_file
from tiering.errors import CapacityExceeded, Conflict, TieringError, Unavailable, UsageError
from tiering.stores import block_medium, block_stream
from tiering.stores.block import BlockStore, format_volume
from tiering.stores.block_check import rebuild_index
from tiering.stores.block_index import span_of
from tiering.stores.block_layout import DATA_START, SUPERBLOCKS, pack_header
from tiering.stores.block_medium import PAGE_BYTES

MIB = 1 << 20
FLIPS = int(os.environ.get("TIERING_BLOCK_FLIPS", "400"))


def index_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.index")


def contents(store: BlockStore) -> dict[str, bytes]:
    return {info.key: bytes(store.read(info.key)) for info in store.list()}


def fill(path: Path) -> dict[str, bytes]:
    with BlockStore("blocks", path) as store:
        for number in range(6):
            store.write(f"k{number}", [bytes([number + 1]) * (number * 3001)])
        store.delete("k3")
        return contents(store)


def bad_writes(monkeypatch: pytest.MonkeyPatch, bad: set[int]) -> None:
    """The medium refuses to write these pages."""
    real = os.pwrite

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        if any(offset <= page < offset + len(data) for page in bad):
            raise OSError(5, "Input/output error")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)


@pytest.mark.parametrize("page", [0, 1, 3])
def test_bad_page_is_retired_and_the_write_goes_elsewhere(
    path: Path, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    bad = DATA_START + page * PAGE_BYTES
    with monkeypatch.context() as patch, BlockStore("blocks", path) as store:
        bad_writes(patch, {bad})
        store.write("k", [b"x" * 12_000])
        assert store.read("k") == b"x" * 12_000
        assert store.info().retired_bytes == PAGE_BYTES
    for lost in (False, True):
        if lost:
            index_of(path).unlink()
        with BlockStore("blocks", path) as store:
            assert store.rebuilt == lost
            assert contents(store) == {"k": b"x" * 12_000}
            info = store.info()
            assert (info.retired_bytes, info.used_bytes) == (
                PAGE_BYTES,
                DATA_START + PAGE_BYTES + span_of(12_000),
            )
            store.write("fill", [bytes(info.largest_free_bytes - store.kept_bytes - PAGE_BYTES)])
            store.delete("fill")


def test_medium_that_refuses_every_extent_is_unavailable_after_three(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, BlockStore("blocks", path) as store:
        store.write("old", [b"o"])
        bad_writes(patch, set(range(DATA_START + 2 * PAGE_BYTES, 2 * MIB, PAGE_BYTES)))
        with pytest.raises((Unavailable, CapacityExceeded), match="key 'k'"):
            store.write("k", [b"x"])
        assert contents(store) == {"old": b"o"}


def test_delete_whose_header_cannot_be_zeroed_is_final(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with BlockStore("blocks", path) as store:
        store.write("k", [b"x" * 5000])
        with monkeypatch.context() as patch:
            bad_writes(patch, {DATA_START})
            store.delete("k")
        assert store.info().retired_bytes == span_of(5000)
    index_of(path).unlink()
    with BlockStore("blocks", path) as store:
        assert contents(store) == {}


def test_unreadable_sector_of_a_device_names_key_and_place(tmp_path: Path) -> None:
    image, index_path = tmp_path / "device.img", tmp_path / "index"
    with loop_device(image, 4 * MIB) as device:
        format_volume(device, None, index_path=index_path)
        with BlockStore("blocks", device, index_path=index_path) as store:
            store.write("first", [b"f" * 5000])
            store.write("k", [b"x" * MIB])
            store.write("last", [b"l" * 5000])
            offset = store.locate("k").offset
            os.truncate(image, offset + MIB // 2)  # from here on the device answers with EIO
            with pytest.raises(Unavailable, match=r"Input/output error reading .* from byte \d+ on.*key 'k'"):
                store.read("k")
            assert store.read("first") == b"f" * 5000
            assert {problem.key for problem in store.check()} == {"k", "last"}


def test_index_put_back_from_mid_session_is_not_believed(path: Path, tmp_path: Path) -> None:
    with BlockStore("blocks", path) as store:
        store.write("a", [b"a"])
        store.delete("a")
        store._index._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        shutil.copy(index_of(path), tmp_path / "aside")
        store.write("b", [b"b" * 9000])
        store.write("c", [b"c"])
    shutil.copy(tmp_path / "aside", index_of(path))
    with BlockStore("blocks", path) as store:
        assert store.rebuilt
        assert contents(store) == {"b": b"b" * 9000, "c": b"c"}


def test_index_that_lacks_only_the_last_commit_is_completed(path: Path) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    store = BlockStore("blocks", path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockStore, "_abandon", lambda *_: None)  # as a kill leaves it
        patch.setattr(type(store._index), "publish", die)
        with pytest.raises(Killed):
            store.write("k", [b"x" * 5000])
    store.close()
    with BlockStore("blocks", path) as store:
        assert not store.rebuilt
        assert contents(store) == {"k": b"x" * 5000}


def test_row_with_a_wrong_offset_is_found_by_its_checksum(path: Path) -> None:
    held = fill(path)
    with BlockStore("blocks", path) as store:
        store._index._db.execute("UPDATE extents SET nbytes = nbytes - 1 WHERE key = 'k5'")
        with pytest.raises(Unavailable, match="checksum"):
            store.read("k5")
    with BlockStore("blocks", path) as store:
        assert store.rebuilt
        assert contents(store) == held


def test_right_row_over_another_header_is_corrupt_unless_the_data_are_its_own(path: Path) -> None:
    held = fill(path)
    with BlockStore("blocks", path) as store:
        entry = store._index.get("k5")
        assert entry
    patch_file(path, entry.offset, bytes(PAGE_BYTES))
    with BlockStore("blocks", path) as store:
        assert store.read("k5") == held["k5"]
        (problem,) = store.check()
        assert problem.what == "its header is damaged"
    patch_file(path, entry.data_offset, b"?")
    with BlockStore("blocks", path) as store, pytest.raises(TieringError, match="k5"):
        store.read("k5")


def test_rebuild_mends_headers_first_and_names_what_is_lost(path: Path) -> None:
    held = fill(path)
    with BlockStore("blocks", path) as store:
        rows = {key: store._index.get(key) for key in ("k1", "k5")}
    for key, row in rows.items():
        assert row
        patch_file(path, row.offset + 20, b"\xff\xff")
        if key == "k1":
            patch_file(path, row.data_offset, b"?")
    rebuilt = rebuild_index(path)
    assert (rebuilt.lost, rebuilt.damaged, rebuilt.unreadable) == (["k1"], [], [])
    del held["k1"]
    with BlockStore("blocks", path) as store:
        assert contents(store) == held
        assert store.check() == []


def test_damaged_superblock_is_told_and_repaired_worst_first(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_file(path, SUPERBLOCKS[1] + 30, b"\xff")
    with BlockStore("blocks", path, read_only=True) as store:
        assert [(problem.offset, problem.repaired) for problem in store.check()] == [(PAGE_BYTES, False)]
    written: list[int] = []
    real = block_stream._put

    def put(fd: int, offset: int, view: memoryview) -> None:
        written.append(offset)
        real(fd, offset, view)

    monkeypatch.setattr(block_stream, "_put", put)
    BlockStore("blocks", path).close()
    assert written == [PAGE_BYTES, 0], "the good copy is touched last"
    with BlockStore("blocks", path, read_only=True) as store:
        assert store.check() == []


def test_rotten_magic_of_the_first_superblock_is_no_foreign_volume(path: Path) -> None:
    held = fill(path)
    patch_file(path, 0, b"?")
    with BlockStore("blocks", path) as store:
        assert contents(store) == held


def test_grow_keeps_objects_and_uses_the_room(path: Path) -> None:
    held = fill(path)
    with BlockStore("blocks", path) as store:
        free_bytes = store.info().free_bytes
        assert store.grow(4 * MIB).free_bytes == free_bytes + 2 * MIB
        store.write("large", [b"z" * (2 * MIB + 5)])
        assert store.grow(4 * MIB).nbytes == 4 * MIB
        with pytest.raises(UsageError, match="cannot shrink"):
            store.grow(3 * MIB)
    index_of(path).unlink()
    with BlockStore("blocks", path) as store:
        assert contents(store) == {**held, "large": b"z" * (2 * MIB + 5)}
        assert store.info().nbytes == path.stat().st_size == 4 * MIB


def test_grow_without_room_leaves_the_volume_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = fill(path)

    def full(_fd: int, _start: int, _nbytes: int) -> None:
        raise OSError(28, "No space left on device")

    with BlockStore("blocks", path) as store, monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(CapacityExceeded):
            store.grow(4 * MIB)
    assert path.stat().st_size == 2 * MIB
    with BlockStore("blocks", path) as store:
        assert contents(store) == held


def test_grow_of_a_device_takes_its_new_end_and_refuses_foreign_bytes(tmp_path: Path) -> None:
    index_path = tmp_path / "index"
    with loop_device(tmp_path / "device.img", 4 * MIB) as device:
        format_volume(device, 2 * MIB, index_path=index_path)
        patch_file(device, 3 * MIB, b"somebody")
        with BlockStore("blocks", device, index_path=index_path) as store:
            with pytest.raises(Conflict, match="behind the volume"):
                store.grow()
            assert store.info().nbytes == 2 * MIB
            assert store.grow(force=True).nbytes == 4 * MIB
            with pytest.raises(UsageError, match="smaller size"):
                store.grow(5 * MIB)


def test_sectors_of_4_kib_are_used_and_larger_ones_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_path = tmp_path / "index"
    with loop_device(tmp_path / "device.img", 4 * MIB, sector_bytes=4096) as device:
        assert format_volume(device, None, index_path=index_path).sector_bytes == 4096
        with BlockStore("blocks", device, index_path=index_path) as store:
            store.write("k", [b"x" * 4097])
            assert store.read("k") == b"x" * 4097
            assert store.direct
        monkeypatch.setattr(block_medium, "sector_bytes", lambda _fd: 8192)
        with pytest.raises(UsageError, match="sectors of 8192"):
            BlockStore("blocks", device, index_path=index_path)


def test_any_flipped_bit_gives_right_bytes_or_a_typed_error(tmp_path: Path) -> None:
    path = tmp_path / "volume.img"
    format_volume(path, MIB)
    held = fill(path)
    pristine = {file: file.read_bytes() for file in (path, index_of(path))}
    used = max(data.rfind(b"\6") for data in pristine.values()) + 1
    dice = random.Random(3)
    told = 0
    for _ in range(FLIPS):
        for file, data in pristine.items():
            file.write_bytes(data)
        victim = dice.choice(list(pristine))
        bit = dice.randrange(8 * min(used, len(pristine[victim])))
        patch_file(victim, bit // 8, bytes([pristine[victim][bit // 8] ^ 1 << bit % 8]))
        try:
            with BlockStore("blocks", path, read_only=dice.random() < 0.5) as store:
                found = {info.key: info.nbytes for info in store.list()}
                assert found == {key: len(data) for key, data in held.items()}
                damaged = {problem.key for problem in store.check() if problem.key}
                for key in found:
                    try:
                        right = store.read(key) == held[key]
                    except TieringError:
                        right = False
                    assert right or key in damaged, "wrong bytes that no check finds"
                told += bool(damaged)
        except TieringError:
            told += 1
    assert told


def test_header_page_is_that_of_the_format(path: Path) -> None:
    with BlockStore("blocks", path) as store:
        store.write("a", [b"x"])
        entry = store._index.get("a")
        assert entry
        volume = store.superblock.volume
    assert path.read_bytes()[entry.offset : entry.data_offset] == pack_header(volume, entry)
