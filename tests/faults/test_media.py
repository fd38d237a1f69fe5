"""Full, read-only, rotten and exhausted media: typed failures, nothing half done, nothing wrong silent."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders import Loader
from tests.faults import work
from tests.faults.zygote import Zygote
from tiering import Corpus, Tier, TieringError, ingest, open_corpus, open_tier, plan_move, release, verify
from tiering.errors import CapacityExceeded, Corrupt, UsageError
from tiering.stores.block import format_volume
from tiering.stores.file import FileStore

COUNT = 40
FORMS = ("zarr", "arrow")
NAME = work.NAME
FLIPS = 200


class Mount:
    """A small tmpfs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, spare_bytes: int) -> None:
        """Leave so much room."""
        stats = os.statvfs(self.folder)
        self._ballast.write_bytes(b"x" * max(0, stats.f_bavail * stats.f_frsize - spare_bytes))

    def empty(self) -> None:
        self._ballast.unlink()

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder], check=True)


def mounted(folder: Path, options: str) -> contextlib.AbstractContextManager[Mount]:
    """A tmpfs at `folder` while the block runs."""

    @contextlib.contextmanager
    def manage() -> Iterator[Mount]:
        folder.mkdir()
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True
        )
        if made.returncode:
            pytest.skip(f"cannot mount a tmpfs: {made.stderr.strip()}")
        try:
            yield Mount(folder)
        finally:
            subprocess.run(["umount", folder], check=True)

    if os.geteuid() != 0:
        pytest.skip("only root may mount a tmpfs")
    return manage()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Mount]:
    with mounted(tmp_path / "mount", "size=1m") as mount:
        yield mount


@pytest.fixture
def room_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a medium that does not tell its room: it is full in the middle of the work, not before."""
    monkeypatch.setattr(FileStore, "free_bytes", lambda _self: None)


def shards_at(tier: Tier) -> list[str]:
    return [info.key for info in tier.store.list(NAME) if "/.tiering/" not in info.key]


def temporary(folder: Path) -> list[Path]:
    return list(folder.rglob(".tmp-*"))


def test_ingest_to_a_full_disk_is_refused_before_it_begins(disk: Mount) -> None:
    disk.fill(16 << 10)
    tier = open_tier(disk.folder / "t", "nvme")
    with pytest.raises(CapacityExceeded) as caught:
        ingest(work.rows(1, COUNT), tier, NAME, shard_size="16KiB", block_rows=16)
    assert caught.value.tier == "nvme"
    assert not (disk.folder / "t").exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("spare_pages", [1, 3, 5, 7, 8, 9])
@pytest.mark.usefixtures("room_unknown")
def test_disk_that_fills_up_during_ingest(disk: Mount, form: str, spare_pages: int) -> None:
    disk.fill(spare_pages << 12)
    tier = open_tier(disk.folder / "t", "tier")
    error = None
    try:
        work.ingest_rows(tier.url, form, 1, COUNT)
    except CapacityExceeded as caught:
        error = caught
    found = work.look(tier.url, form, 1, COUNT)
    # Where room was lacking for HEAD alone, the corpus is whole without it.
    assert (error is None) == (found == "whole")
    if error is not None:
        assert error.tier == "tier"
        assert error.hint
    assert not temporary(disk.folder)
    disk.empty()
    assert work.ingest_again(tier.url, form, 1, COUNT) == found


@pytest.mark.parametrize("spare_pages", [0, 2, 6, 9])
@pytest.mark.usefixtures("room_unknown")
def test_disk_that_fills_up_during_move(disk: Mount, tmp_path: Path, spare_pages: int) -> None:
    source, target = str(tmp_path / "source"), str(disk.folder / "t")
    work.ingest_rows(source, "zarr", 1, COUNT)
    disk.fill(spare_pages << 12)
    with pytest.raises(CapacityExceeded) as caught:
        work.move_rows(source, target)
    assert caught.value.tier == "tier"
    assert work.look(target, "zarr", 1, COUNT) == "absent"
    assert not temporary(disk.folder)
    disk.empty()
    assert work.move_again(source, target, "zarr", 1, COUNT) == "absent"


@pytest.mark.parametrize("inodes", [3, 9, 11])
def test_disk_without_inodes(tmp_path: Path, inodes: int) -> None:
    with mounted(tmp_path / "mount", f"size=1m,nr_inodes={inodes}") as disk:
        place = str(disk.folder / "t")
        assert work.error_of("ingest_rows", place, "arrow", 1, COUNT) == "CapacityExceeded"
        assert work.look(place, "arrow", 1, COUNT) == "absent"
        disk.remount("nr_inodes=100")
        assert work.ingest_again(place, "arrow", 1, COUNT) == "absent"


def test_volume_whose_index_has_no_room(disk: Mount, tmp_path: Path) -> None:
    source = str(tmp_path / "source")
    work.ingest_rows(source, "arrow", 1, COUNT)
    disk.remount("size=2m")
    format_volume(disk.folder / "volume.img", 1 << 20)
    disk.fill(0)
    volume = f"block://{disk.folder}/volume.img"
    assert work.error_of("move_rows", source, volume) in ("CapacityExceeded", "Unavailable")
    work.tier_at(volume).close()
    disk.empty()
    assert work.move_again(source, volume, "arrow", 1, COUNT) == "absent"


def test_read_only_disk(disk: Mount, tmp_path: Path) -> None:
    other, place = str(tmp_path / "other"), str(disk.folder / "t")
    work.ingest_rows(place, "arrow", 1, COUNT)
    work.move_rows(place, other)
    corpus = open_corpus(work.tier_at(place), NAME)
    disk.remount("ro")
    with pytest.raises(UsageError) as caught:
        work.ingest_rows(str(disk.folder / "new"), "arrow", 1, COUNT)
    assert caught.value.tier == "tier"
    with pytest.raises(UsageError):
        release(corpus, corpus.tier, copies=[open_tier(other)])
    with pytest.raises(UsageError):
        work.move_rows(other, str(disk.folder / "new"))
    assert work.look(place, "arrow", 1, COUNT) == "whole"
    disk.remount("rw")
    assert release(corpus, corpus.tier, copies=[open_tier(other)]) > 0


@pytest.mark.parametrize("job", ["ingest", "move"])
def test_disk_that_writes_other_bytes_is_found_out_before_anything_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    source, target = str(tmp_path / "source"), str(tmp_path / "target")
    work.ingest_rows(source, "zarr", 1, COUNT)
    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda fd, data: write(fd, flip(data, 99) if len(data) > 4096 else data))
        with pytest.raises(Corrupt) as caught:
            work.move_rows(source, target) if job == "move" else work.ingest_rows(target, "zarr", 1, COUNT)
    assert caught.value.tier == "tier"
    assert str(caught.value.key).startswith(NAME)
    assert work.look(target, "zarr", 1, COUNT) == "absent"
    assert work.ingest_again(target, "zarr", 1, COUNT) == "absent"


@pytest.mark.parametrize("preallocate", [True, False])
def test_files_cut_short_are_never_taken_for_whole(zygote: Zygote, tmp_path: Path, preallocate: bool) -> None:
    told = set()
    for limit in (1, 100, 4095, 5000, 8191, 16_000, 1 << 20):
        place = str(tmp_path / str(limit))
        error = zygote.value("with_file_bytes", limit, preallocate, "ingest_rows", place, "zarr", 1, COUNT)
        told.add(error)
        found = zygote.value("ingest_again", place, "zarr", 1, COUNT)
        assert found == ("absent" if error else "whole")
    assert told == {"CapacityExceeded", ""}


@pytest.mark.parametrize("job", ["ingest_rows", "move_rows", "look"])
def test_process_without_file_descriptors(zygote: Zygote, tmp_path: Path, job: str) -> None:
    source = str(tmp_path / "source")
    zygote.value("ingest_rows", source, "arrow", 1, COUNT)
    seen: Counter[str] = Counter()
    for spare in range(0, 20, 2):
        place = str(tmp_path / str(spare))
        arguments = {
            "ingest_rows": [place, "arrow", 1, COUNT],
            "move_rows": [source, place],
            "look": [source, "arrow", 1, COUNT],
        }[job]
        error = zygote.value("with_descriptors", spare, job, *arguments)
        seen[error] += 1
        if job != "look":
            found = zygote.value("look", place, "arrow", 1, COUNT)
            assert found == "whole" if not error else found in ("whole", "absent")
    assert seen[""] > 0
    assert set(seen) - {""}
    assert set(seen) <= {"", "Unavailable"}, seen


@pytest.fixture(scope="module", params=FORMS)
def copied(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A corpus that was moved, so that it has all kinds of files; the tests put back what they break."""
    folder = tmp_path_factory.mktemp("media")
    work.ingest_rows(str(folder / "from"), request.param, 1, COUNT)
    work.move_rows(str(folder / "from"), str(folder / "to"))
    return open_corpus(open_tier(folder / "to", "tier"), NAME)


def files_of(corpus: Corpus) -> list[Path]:
    return sorted(path for path in Path(corpus.tier.url, NAME).rglob("*") if path.is_file())


def is_hint(path: Path) -> bool:
    """Whether a file says nothing about the corpus that is not said elsewhere."""
    return path.name == "HEAD" or path.parent.name == "claims"


def verdict(corpus: Corpus) -> str:
    """``reported`` when opening or verifying the copy tells of damage; else ``silent``."""
    try:
        found = open_corpus(corpus.tier, NAME)
        report = verify(found)
    except TieringError:
        return "reported"
    if not report.ok:
        return "reported"
    assert found.record == corpus.record
    assert found.contents == corpus.contents
    return "silent"


@contextlib.contextmanager
def damaged(path: Path, data: bytes | None) -> Iterator[None]:
    """The file with other bytes, or gone, while the block runs."""
    good = path.read_bytes()
    try:
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)
        yield
    finally:
        path.write_bytes(good)


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_bit_flips_are_all_reported(copied: Corpus) -> None:
    dice = random.Random("flips")
    files = files_of(copied)
    seen: Counter[str] = Counter()
    hints = [path for path in files if is_hint(path)]
    for lap in range(FLIPS // len(FORMS)):
        path = dice.choice(hints if lap % 8 == 0 else [path for path in files if path not in hints])
        data = path.read_bytes()
        bit = dice.randrange(8 * len(data))
        with damaged(path, flip(data, bit)):
            told = verdict(copied)
        assert told == "reported" or is_hint(path), f"bit {bit} of {path} is wrong and nobody says so"
        seen[told] += 1
    assert seen["reported"] > FLIPS // len(FORMS) // 3, seen
    assert verdict(copied) == "silent"


def test_bit_flips_never_reach_a_batch(copied: Corpus) -> None:
    if copied.format != "zarr":
        pytest.skip("rows of any length have no batches")
    dice = random.Random("batches")
    shards = [path for path in files_of(copied) if path.parent.name in ("c", "0") or path.name.isdecimal()]
    expected = work.rows(1, COUNT)
    seen: Counter[str] = Counter()
    for _ in range(50):
        path = dice.choice(shards)
        data = path.read_bytes()
        with damaged(path, flip(data, dice.randrange(8 * len(data)))):
            try:
                batches = list(Loader(copied, 8, shuffle="none", lanes=1))
            except Corrupt:
                seen["reported"] += 1
                continue
        for name, values in expected.items():
            np.testing.assert_array_equal(np.concatenate([batch[name] for batch in batches]), values)
        seen["padding"] += 1
    assert seen["reported"] > 10, seen


def test_truncated_grown_and_missing_files_are_all_reported(copied: Corpus) -> None:
    for path in files_of(copied):
        data = path.read_bytes()
        for broken in (None, b"", data[:-1], data[: len(data) // 2], data + b"\0", bytes(len(data))):
            with damaged(path, broken):
                told = verdict(copied)
            assert told == "reported" or is_hint(path), (path, broken and len(broken))
    assert verdict(copied) == "silent"


def test_damaged_copy_is_made_whole_by_the_next_move(copied: Corpus, tmp_path: Path) -> None:
    source = Path(copied.tier.url).with_name("from")
    for path in files_of(copied):
        if path.parent.name in ("versions", "claims"):
            continue  # what exists and who is at work: nobody guesses these
        place = tmp_path / "place"
        shutil.copytree(copied.tier.url, place)
        broken = place / path.relative_to(copied.tier.url)
        broken.write_bytes(flip(broken.read_bytes(), 77))
        plan_move(open_corpus(open_tier(source), NAME), open_tier(place)).run()
        assert verify(open_corpus(open_tier(place), NAME)).ok, path
        shutil.rmtree(place)
