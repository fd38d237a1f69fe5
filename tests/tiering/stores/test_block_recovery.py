"""Old or new, whole: through the index and through a scan, after lost indexes and flipped bits."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tiering.errors import Corrupt
from tiering.stores.block import BlockStore, format_volume
from tiering.stores.block_index import BlockIndex
from tiering.stores.block_medium import PAGE_BYTES, Medium

MIB = 1 << 20


def index_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.index")


def lose_index(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{index_of(path)}{suffix}").unlink(missing_ok=True)


def contents(store: BlockStore) -> dict[str, bytes]:
    return {info.key: bytes(store.read(info.key)) for info in store.list()}


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        byte = os.pread(file.fileno(), 1, offset)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 1]), offset)


def fill(path: Path) -> dict[str, bytes]:
    with BlockStore("blocks", path) as store:
        for number in range(12):
            store.write(f"dir/k{number % 5}", [bytes([number]) * (number * 3001)])
        store.delete("dir/k3")
        store.write("empty", [])
        return contents(store)


def test_lost_index_is_rebuilt(path: Path) -> None:
    held = fill(path)
    with BlockStore("blocks", path) as store:
        before = store.info()
        infos = list(store.list())
    lose_index(path)
    with BlockStore("blocks", path) as store:
        assert store.rebuilt
        assert contents(store) == held
        assert store.info() == before
        assert list(store.list()) == infos
        assert store.check() == []
    with BlockStore("blocks", path) as store:
        assert not store.rebuilt


def test_lost_index_of_a_reader_is_rebuilt_in_memory(path: Path) -> None:
    held = fill(path)
    lose_index(path)
    before = path.read_bytes()
    with BlockStore("blocks", path, read_only=True) as store:
        assert contents(store) == held
    assert path.read_bytes() == before
    assert not index_of(path).exists()


def test_rebuild_after_delete_brings_nothing_back(path: Path) -> None:
    fill(path)
    with BlockStore("blocks", path) as store:
        for info in store.list():
            store.delete(info.key)
    lose_index(path)
    with BlockStore("blocks", path) as store:
        assert contents(store) == {}


def test_generations_grow_over_a_rebuild(path: Path) -> None:
    with BlockStore("blocks", path) as store:
        store.write("k", [b"1"])
        etag = store.write("k", [b"2"]).etag
        store.delete("k")
    lose_index(path)
    with BlockStore("blocks", path) as store:
        assert int(store.write("k", [b"3"]).etag or "") > int(etag or "")


def test_index_of_an_earlier_session_is_not_believed(path: Path, tmp_path: Path) -> None:
    fill(path)
    shutil.copy(index_of(path), tmp_path / "old")
    with BlockStore("blocks", path) as store:
        store.write("later", [b"x" * 9000])
        held = contents(store)
    shutil.copy(tmp_path / "old", index_of(path))
    with BlockStore("blocks", path) as store:
        assert store.rebuilt
        assert contents(store) == held


def test_index_of_another_volume_is_not_believed(path: Path, tmp_path: Path) -> None:
    held = fill(path)
    other = tmp_path / "other.img"
    format_volume(other, MIB)
    shutil.copy(index_of(other), index_of(path))
    with BlockStore("blocks", path) as store:
        assert store.rebuilt
        assert contents(store) == held


def test_damaged_index_is_replaced(path: Path) -> None:
    held = fill(path)
    raw = bytearray(index_of(path).read_bytes())
    raw[4096:] = b"\xa5" * (len(raw) - 4096)
    index_of(path).write_bytes(raw)
    with BlockStore("blocks", path) as store:
        assert store.rebuilt
        assert contents(store) == held


def test_opening_survives_a_kill_between_the_index_and_the_superblock(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = fill(path)

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    real_set, real_write = BlockIndex.set_tokens, Medium.write
    with monkeypatch.context() as patch:  # the index knows of the next session, the superblock does not
        patch.setattr(Medium, "write", die)
        with pytest.raises(Killed):
            BlockStore("blocks", path)
    with monkeypatch.context() as patch:  # the superblock has begun it, the index was not told so
        patch.setattr(Medium, "write", real_write)
        calls = iter([real_set, die])
        patch.setattr(BlockIndex, "set_tokens", lambda *args: next(calls)(*args))
        with pytest.raises(Killed):
            BlockStore("blocks", path)
    with BlockStore("blocks", path) as store:
        assert not store.rebuilt
        assert contents(store) == held


def test_check_finds_a_flipped_bit_in_data(path: Path) -> None:
    fill(path)
    with BlockStore("blocks", path) as store:
        extent = store.locate("dir/k4")
        assert store.check() == []
        flip(path, extent.offset + 5000)
        (problem,) = store.check()
    assert (problem.key, problem.offset) == ("dir/k4", extent.offset - PAGE_BYTES)
    assert "data differ" in problem.what


def test_check_finds_a_damaged_header(path: Path) -> None:
    fill(path)
    with BlockStore("blocks", path) as store:
        flip(path, store.locate("dir/k4").offset - PAGE_BYTES + 60)
        (problem,) = store.check()
    assert "header is damaged" in problem.what


def test_rebuild_keeps_rotten_data_as_evidence_and_never_hands_it_out(path: Path) -> None:
    held = fill(path)
    with BlockStore("blocks", path) as store:
        extent = store.locate("dir/k4")
    flip(path, extent.offset)
    lose_index(path)
    with BlockStore("blocks", path) as store:
        assert {info.key for info in store.list()} == set(held)
        for call in (store.read, store.locate):
            with pytest.raises(Corrupt, match="key 'dir/k4'"):
                call("dir/k4")
        assert [problem.key for problem in store.check()] == ["dir/k4"]
        store.write("dir/k4", [held["dir/k4"]])
        assert contents(store) == held
        assert store.check() == []


def test_rebuild_passes_over_a_torn_header(path: Path) -> None:
    held = fill(path)
    with BlockStore("blocks", path) as store:
        offset = store.locate("dir/k4").offset - PAGE_BYTES
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), bytes(PAGE_BYTES - 512), offset + 512)
    lose_index(path)
    del held["dir/k4"]
    with BlockStore("blocks", path) as store:
        assert contents(store) == held
        assert store.check() == []


def test_rebuild_passes_over_headers_inside_of_objects(path: Path, tmp_path: Path) -> None:
    """An image of a volume, stored as an object in that same volume, adds nothing to it."""
    with BlockStore("blocks", path) as store:
        store.write("inner", [b"x" * 5000])
    with BlockStore("blocks", path) as store:
        store.write("image", [path.read_bytes()[: MIB // 2]])
        store.delete("inner")
        store.delete("image")
        store.write("outer", [b"y"])
    lose_index(path)
    with BlockStore("blocks", path) as store:
        assert contents(store) == {"outer": b"y"}


@pytest.mark.parametrize("hole_bytes", [0, 20_000])
def test_rebuild_takes_the_newer_of_two_headers_and_zeroes_the_older(
    path: Path, monkeypatch: pytest.MonkeyPatch, hole_bytes: int
) -> None:
    with BlockStore("blocks", path) as store, monkeypatch.context() as patch:
        store.write("hole", [bytes(hole_bytes)])
        store.write("k", [b"old" * 3000])
        store.delete("hole")  # where it is large enough the newer lies before the older
        patch.setattr(BlockStore, "_bury", lambda *_: None)  # as killed just after the commit
        store.write("k", [b"new" * 1000])
    lose_index(path)
    with BlockStore("blocks", path) as store:
        assert contents(store) == {"k": b"new" * 1000}
        store.delete("k")
    lose_index(path)
    with BlockStore("blocks", path) as store:
        assert contents(store) == {}


def test_rebuild_reads_around_bad_sectors(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = fill(path)
    with BlockStore("blocks", path) as store:
        bad = store.locate("dir/k4").offset + PAGE_BYTES
    lose_index(path)
    real = Medium._fill

    def fail(self: Medium, fd: int, offset: int, view: memoryview) -> None:
        if offset <= bad < offset + view.nbytes:
            raise OSError(5, "Input/output error")
        real(self, fd, offset, view)

    monkeypatch.setattr(Medium, "_fill", fail)
    with BlockStore("blocks", path) as store:
        with pytest.raises(Corrupt):
            store.read("dir/k4")
        assert {key: bytes(store.read(key)) for key in set(held) - {"dir/k4"}} == {
            key: data for key, data in held.items() if key != "dir/k4"
        }
