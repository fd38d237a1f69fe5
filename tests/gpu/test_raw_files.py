"""Files read around the reader are proven right first, and closed."""

import itertools
import os
import threading
from pathlib import Path

import pytest

from loaders import gpu_device
from loaders.gpu import CudaSlots
from loaders.gpu_device import RawFiles, prove
from tests.gpu.host_device import HostDevice, HostFile, flip, make, shard_file
from tiering import open_tier
from tiering.digest import Hasher
from tiering.errors import Corrupt
from tiering.reader import BlockReader
from tiering.shard_state import RawBlock


def test_a_damaged_shard_is_found_before_any_of_its_bytes_are_read(tmp_path: Path) -> None:
    corpus = make(open_tier(tmp_path / "lake", name="lake"))
    flip(shard_file(corpus, tmp_path / "lake"), 4096 + 3)  # in block 1
    device = HostDevice()
    slots = CudaSlots(BlockReader(corpus, ["tokens"]), 2, device)
    with pytest.raises(Corrupt, match="no good copy"):
        slots.read(0, 0, 0)
    assert device.preads == 0
    slots.read(1, 0, 1)  # the next shard is good
    assert device.preads == 1
    slots.close()


def test_raw_files_stay_below_their_limit_and_are_closed_after_use(tmp_path: Path) -> None:
    corpus = make(open_tier(tmp_path / "lake", name="lake"))
    reader = BlockReader(corpus, ["tokens"])
    raws = [raw for shard in range(3) if (raw := reader.raw_block("tokens", shard, 0))]
    opened: list[HostFile] = []

    def open_file(path: Path) -> HostFile:
        opened.append(HostFile(path))
        return opened[-1]

    files = RawFiles(open_file, 2)
    for raw in (raws[0], raws[1], raws[0], raws[2]):
        with files.proven(raw):
            pass
    assert [file.closed for file in opened] == [False, True, False]
    with files.proven(raws[0]) as used:
        files.close()
        assert not opened[0].closed
        assert used is opened[0]
    assert all(file.closed for file in opened)


def test_raw_files_that_were_deleted_are_closed(tmp_path: Path) -> None:
    corpus = make(open_tier(tmp_path / "lake", name="lake"))
    raw = BlockReader(corpus, ["tokens"]).raw_block("tokens", 0, 0)
    assert raw is not None
    files = RawFiles(HostFile, 9)
    with files.proven(raw) as file:
        raw.file.path.unlink()
    assert isinstance(file, HostFile)
    assert file.closed


def test_a_replaced_file_is_opened_anew_while_the_bad_one_is_still_read(tmp_path: Path) -> None:
    corpus = make(open_tier(tmp_path / "lake", name="lake"))
    raw = BlockReader(corpus, ["tokens"]).raw_block("tokens", 0, 0)
    assert raw is not None
    files, path = RawFiles(HostFile, 4), raw.file.path
    good = path.read_bytes()
    with files.proven(raw) as reading:
        flip(path, 0)
        os.utime(path, ns=(1, 1))
        with pytest.raises(Corrupt), files.proven(raw):
            pass
        path.with_name("new").write_bytes(good)
        path.with_name("new").rename(path)
        with files.proven(raw) as other:
            assert other is not reading
    files.close()
    assert isinstance(reading, HostFile)
    assert reading.closed


def test_a_shard_is_proven_by_one_thread_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = make(open_tier(tmp_path / "lake", name="lake"))
    raw = BlockReader(corpus, ["tokens"]).raw_block("tokens", 0, 0)
    assert raw is not None
    inside, most = itertools.count(1), []
    barrier = threading.Lock()

    def alone(raw: RawBlock, descriptor: int) -> None:
        assert barrier.acquire(blocking=False)
        most.append(next(inside))
        prove(raw, descriptor)
        barrier.release()

    monkeypatch.setattr(gpu_device, "prove", alone)
    files = RawFiles(HostFile, 4)

    def use() -> None:
        with files.proven(raw):
            pass

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 8
    files.close()


def test_a_shard_is_hashed_once_and_again_after_its_file_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[object] = []

    class Counted(Hasher):
        def hexdigest(self) -> str:
            hashed.append(self)
            return super().hexdigest()

    monkeypatch.setattr(gpu_device, "Hasher", Counted)
    corpus = make(open_tier(tmp_path / "lake", name="lake"))
    reader = BlockReader(corpus, ["tokens"])
    for _ in range(2):
        slots = CudaSlots(reader, 2, HostDevice())
        slots.read(0, 0, 0)
        slots.read(0, 1, 1)
        slots.close()
    assert len(hashed) == 1
    slots = CudaSlots(reader, 2, HostDevice())
    slots.read(0, 0, 0)
    file = shard_file(corpus, tmp_path / "lake")
    flip(file, 1)
    os.utime(file, ns=(1, 1))
    with pytest.raises(Corrupt):
        slots.read(0, 0, 0)
    assert len(hashed) == 2
    slots.close()
