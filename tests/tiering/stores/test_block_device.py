"""A raw device, here a loop device: sizes, signatures, exclusive opening."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiering.stores.block_tools import loop_device
from tiering.errors import (
    Conflict,
    Locked,
    UsageError,
)
from tiering.stores import block_medium
from tiering.stores.block import BlockStore, format_volume

MIB = 1 << 20


@pytest.fixture
def loop_image(tmp_path: Path) -> Path:
    image = tmp_path / "loop.img"
    image.write_bytes(bytes(4 * MIB + 512))  # as real devices, no multiple of 4 KiB
    return image


@pytest.fixture
def device(loop_image: Path) -> Iterator[Path]:
    if os.geteuid() != 0 or not shutil.which("losetup"):
        pytest.skip("loop devices need root and losetup")
    run = subprocess.run(
        ["losetup", "--direct-io=on", "-f", "--show", str(loop_image)], capture_output=True, text=True
    )
    if run.returncode:
        pytest.skip(f"no loop device: {run.stderr.strip()}")
    name = run.stdout.strip()
    try:
        yield Path(name)
    finally:
        subprocess.run(["losetup", "-d", name], check=True)


def test_device_holds_objects(device: Path, tmp_path: Path) -> None:
    index_path = tmp_path / "index"
    with pytest.raises(UsageError, match="index_path"):
        format_volume(device, None)
    info = format_volume(device, None, index_path=index_path)
    assert info.nbytes == 4 * MIB
    data = bytes(range(256)) * 40
    with BlockStore("blocks", device, index_path=index_path) as store:
        assert store.info() == info
        store.write("k", [data])
        assert store.read("k") == data
        extent = store.locate("k")
        assert extent.path == device
    index_path.unlink()
    with BlockStore("blocks", device, index_path=index_path) as store:
        assert store.rebuilt
        assert store.check() == []
        assert store.read("k") == data
    with pytest.raises(UsageError, match="index_path"):
        BlockStore("blocks", device)


def test_device_larger_than_it_is_is_refused(device: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="smaller"):
        format_volume(device, 5 * MIB, index_path=tmp_path / "index")


def test_device_signature_in_its_last_sector_is_seen_and_wiped(device: Path, tmp_path: Path) -> None:
    with device.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"EFI PART" + bytes(504), 4 * MIB)
        os.fsync(file.fileno())
    with pytest.raises(Conflict, match=f"byte {4 * MIB}"):
        format_volume(device, None, index_path=tmp_path / "index")
    format_volume(device, None, index_path=tmp_path / "index", force=True)
    with device.open("rb") as file:
        assert os.pread(file.fileno(), 512, 4 * MIB) == bytes(512)


def test_device_in_use_is_locked_even_when_forced(device: Path, tmp_path: Path) -> None:
    index_path = tmp_path / "index"
    format_volume(device, None, index_path=index_path)
    held = os.open(device, os.O_RDONLY | os.O_EXCL)  # as a mount, LVM, md or swap does
    try:
        with pytest.raises(Locked, match="mounted"):
            format_volume(device, None, index_path=index_path, force=True)
        with pytest.raises(Locked, match="mounted"):
            BlockStore("blocks", device, index_path=index_path)
    finally:
        os.close(held)
    with BlockStore("blocks", device, index_path=index_path):
        with pytest.raises(Locked):
            BlockStore("again", device, index_path=index_path)
        with pytest.raises(Locked):
            BlockStore("reader", device, index_path=index_path, read_only=True)


@pytest.mark.parametrize("number", [errno.ENODEV, errno.ENXIO, errno.EACCES, errno.ENOENT])
def test_image_opens_while_a_loop_device_of_another_is_detached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path, asked = tmp_path / "volume.img", []

    def gone(device: Path) -> str:
        asked.append(device)
        raise OSError(number, os.strerror(number), str(device))

    monkeypatch.setattr(block_medium, "_backing_file", gone)
    format_volume(path, 1 << 20)
    with BlockStore("blocks", path) as store:
        store.write("k", [b"v"])
        assert store.read("k") == b"v"
    if not asked:
        pytest.skip("there are no loop devices here")


def test_image_attached_to_a_loop_device_is_locked(device: Path, loop_image: Path) -> None:
    for call in (
        lambda: format_volume(loop_image, None, force=True),
        lambda: BlockStore("blocks", loop_image),
    ):
        with pytest.raises(Locked, match=f"attached to {device}"):
            call()


def test_loop_device_of_an_image_that_is_open_is_locked(tmp_path: Path) -> None:
    image = tmp_path / "volume.img"
    format_volume(image, 4 * MIB)
    with BlockStore("image", image) as store:
        with loop_device(image, 4 * MIB) as device, pytest.raises(Locked, match="this process"):
            BlockStore("device", device, index_path=tmp_path / "other.index")
        store.write("k", [b"x"])
        assert store.read("k") == b"x"
