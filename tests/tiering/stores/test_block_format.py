"""Formatting: what is refused and what is erased."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.tiering.stores.block_tools import patch_file
from tiering.errors import (
    CapacityExceeded,
    Conflict,
    Locked,
    NotFound,
    UsageError,
)
from tiering.stores.block import BlockStore, format_volume
from tiering.stores.block_layout import DATA_START

MIB = 1 << 20


def test_format_makes_a_private_fully_written_image(tmp_path: Path) -> None:
    path = tmp_path / "volume.img"
    info = format_volume(path, 3 * MIB + 5000)
    stats = path.stat()
    assert info.nbytes == stats.st_size == 3 * MIB + 4096
    assert stats.st_mode & 0o777 == 0o600
    assert stats.st_blocks * 512 >= info.nbytes
    assert (info.objects, info.used_bytes) == (0, DATA_START)
    with BlockStore("blocks", path) as store:
        assert store.info() == info
        assert not store.rebuilt


@pytest.mark.parametrize("nbytes", [0, -1, MIB - 1])
def test_format_too_small_is_refused(tmp_path: Path, nbytes: int) -> None:
    with pytest.raises(UsageError, match="1MiB"):
        format_volume(tmp_path / "volume.img", nbytes)
    assert list(tmp_path.iterdir()) == []


def test_format_missing_path_without_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no size"):
        format_volume(tmp_path / "volume.img", None)
    with pytest.raises(NotFound):
        format_volume(tmp_path / "no" / "volume.img", MIB)


def test_format_missing_device_makes_no_file_for_it() -> None:
    with pytest.raises(NotFound, match="no device"):
        format_volume(Path("/dev/no-such-device-here"), MIB)


def test_format_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither"):
        format_volume(tmp_path, MIB, index_path=tmp_path / "index")


def test_format_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _data: memoryview, _offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(CapacityExceeded, match="No space left"):
        format_volume(tmp_path / "volume.img", 2 * MIB)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("offset", "data", "what"),
    [
        (0, b"x", "byte 0"),
        (MIB - 1, b"x", f"byte {MIB - 1}"),
        (4 * MIB - 1, b"x", f"byte {4 * MIB - 1}"),
        (2 * MIB + 5, b"x", f"byte {2 * MIB + 5}"),
        (3 * MIB + 7, b"x", f"byte {3 * MIB + 7}"),
        (1080, b"\x53\xef", "ext"),
        (0, b"XFSB", "XFS"),
        (512, b"EFI PART", "GPT"),
        (510, b"\x55\xaa", "MBR"),
        (0, b"LUKS\xba\xbe", "LUKS"),
        (536, b"LVM2 001", "LVM"),
    ],
)
def test_format_foreign_content_is_refused_unless_forced(
    tmp_path: Path, offset: int, data: bytes, what: str
) -> None:
    path = tmp_path / "volume.img"
    path.write_bytes(bytes(4 * MIB))
    patch_file(path, offset, data)
    before = path.read_bytes()
    with pytest.raises(Conflict, match=what) as caught:
        format_volume(path, None)
    assert "--force" in str(caught.value)
    assert path.read_bytes() == before
    assert format_volume(path, None, force=True).nbytes == 4 * MIB
    with BlockStore("blocks", path) as store:
        assert list(store.list()) == []


def test_format_own_volume_is_refused_and_forced_forgets_it(path: Path) -> None:
    with BlockStore("blocks", path) as store:
        store.write("k", [b"old"])
        uuid = store.info().uuid
    with pytest.raises(Conflict, match="a block volume of this engine"):
        format_volume(path, None)
    assert format_volume(path, 3 * MIB, force=True).uuid != uuid
    with BlockStore("blocks", path) as store:
        assert store.info().nbytes == 3 * MIB
        assert not store.exists("k")


def test_format_open_volume_is_locked_even_when_forced(path: Path) -> None:
    with BlockStore("blocks", path) as store:
        store.write("k", [b"bytes"])
        with pytest.raises(Locked, match="this process"):
            format_volume(path, None, force=True)
        assert store.read("k") == b"bytes"


def test_grow_sees_what_lies_anywhere_behind_the_volume(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(16 * MIB)
        file.seek(12 * MIB)
        file.write(b"PRECIOUS")
    with BlockStore("blocks", path) as store:
        with pytest.raises(Conflict, match=f"byte {12 * MIB} is not zero"):
            store.grow(8 * MIB)
        assert path.stat().st_size == 16 * MIB
        assert store.grow(8 * MIB, force=True).nbytes == 8 * MIB


def test_volume_is_not_its_own_index(tmp_path: Path) -> None:
    path = tmp_path / "volume.img"
    with pytest.raises(UsageError, match="cannot be its own index"):
        format_volume(path, 4 * MIB, index_path=path)
    assert not path.exists()
