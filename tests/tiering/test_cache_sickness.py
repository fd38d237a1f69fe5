"""The node cache on what is broken: leftovers of crashes and of people, and sickness that stops nobody."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loaders import Loader
from tests.corpora import make_corpus, memory_corpus, promised, run_python, seen, start_python
from tests.tiering.cache_tools import NBYTES, Make, caches_in, files_below, held, name_of, on_disk, put, shard
from tiering import NodeCache, open_tier
from tiering.cache import content
from tiering.errors import Unavailable
from tiering.keys import TEMP_PREFIX
from tiering.stores.file import FileStore


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with caches_in(tmp_path / "cache") as make_cache:
        yield make_cache


# What a crash or a person leaves behind.


def test_cache_sweeps_unfinished_files(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "objects" / "ab"
    folder.mkdir(parents=True)
    (folder / f"{TEMP_PREFIX}dead").write_bytes(bytes(5000))
    nodes = make(1)
    assert put(nodes, 1)
    assert len(files_below(nodes.path)) == 1


@pytest.mark.parametrize("shards", [2, 5])
def test_cache_whose_index_is_lost_takes_over_the_files_that_fit(make: Make, shards: int) -> None:
    nodes, fetched = make(4), list[int]()
    for number in range(4):
        put(nodes, number)
    nodes.close()
    for file in nodes.path.glob("index.sqlite*"):
        file.unlink()
    (nodes.path / "objects" / "README").write_text("not a shard")
    after = make(shards)
    kept = held(after) if after.status() else []
    assert len(kept) == min(shards, 4)
    assert all(put(after, number, fetched) for number in kept)
    assert not fetched
    assert after.status().used_bytes == len(kept) * NBYTES
    assert (nodes.path / "objects" / "README").exists()


@pytest.mark.parametrize("damage", ["deleted", "truncated"])
@pytest.mark.parametrize("reopened", [True, False])
def test_cache_file_that_was_changed_by_hand_is_fetched_anew(
    make: Make, damage: str, *, reopened: bool
) -> None:
    nodes, fetched = make(1), list[int]()
    put(nodes, 1)
    (file,) = files_below(nodes.path)
    if damage == "deleted":
        file.unlink()
    else:
        os.truncate(file, 10)
    if reopened:
        nodes.close()
    assert put(nodes, 1, fetched)
    assert fetched == [1]
    assert held(nodes) == [1]
    assert nodes.status().used_bytes == NBYTES


def not_a_database(file: Path) -> None:
    file.write_bytes(b"not a database" * 1000)


def other_tables(file: Path) -> None:
    file.unlink()
    with contextlib.closing(sqlite3.connect(file)) as db:
        db.execute("CREATE TABLE entries (something_else TEXT)")


def cut_short(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 5000)


def a_page_of_zeros(file: Path) -> None:
    with file.open("r+b") as handle:
        handle.seek(4096)
        handle.write(bytes(4096))


BREAKS = [not_a_database, other_tables, cut_short, a_page_of_zeros]


@pytest.mark.parametrize("harm", BREAKS)
def test_cache_whose_index_is_damaged_says_so_once_and_makes_it_anew(
    make: Make, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None]
) -> None:
    nodes, fetched = make(4), list[int]()
    for number in range(3):
        put(nodes, number)
    nodes.close()
    harm(nodes.path / "index.sqlite")
    for _ in range(2):
        after = make(4)
        assert [put(after, number, fetched) for number in range(4)] == [True] * 4
        assert after.status().used_bytes == on_disk(after) == 4 * NBYTES
        after.close()
    assert fetched == [3]
    assert len(caplog.records) == 1
    assert "made anew" in caplog.text
    assert (nodes.path / "index.sqlite.bad").exists()


@pytest.mark.parametrize("harm", BREAKS)
def test_cache_whose_index_is_damaged_while_it_is_open_goes_on(
    make: Make, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None]
) -> None:
    nodes, other = make(5), make(5)
    for number in range(3):
        put(nodes, number)
    assert put(other, 0)
    with contextlib.closing(sqlite3.connect(nodes.path / "index.sqlite")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    harm(nodes.path / "index.sqlite")
    for _ in range(2):
        for number in range(5):
            for each in (nodes, other):
                put(each, number)
    assert held(nodes) == list(range(5))
    assert nodes.status().used_bytes == on_disk(nodes) == 5 * NBYTES
    assert other.status().used_bytes == 5 * NBYTES
    assert "takes no more" not in caplog.text


def test_cache_whose_index_has_other_numbers_corrects_them(make: Make) -> None:
    nodes = make(3)
    for number in range(3):
        put(nodes, number)
    with nodes._content.transaction() as db:
        db.execute("UPDATE entries SET nbytes = 1")
        db.execute("INSERT INTO entries VALUES ('ab/../../nonsense', 'x', 7, 0.5)")
    nodes.close()
    after = make(3)
    status = after.status()
    assert (status.used_bytes, status.shards, status.filling) == (3 * NBYTES, 3, 0)
    assert not put(after, 4)
    assert after.status().used_bytes == on_disk(after) == 3 * NBYTES


def test_cache_fill_that_the_new_index_does_not_know_is_not_kept(make: Make) -> None:
    nodes = make(3)

    def fetch() -> list[bytes]:
        with nodes._content.transaction() as db:  # by a process that made the index anew meanwhile
            db.execute("DELETE FROM entries")
        return [shard(1)]

    assert not nodes.get(name_of(1), NBYTES, fetch)
    assert files_below(nodes.path) == []
    assert put(nodes, 1)


# Sickness.


def put_a_file_in_its_place(path: Path) -> None:
    path.write_text("")


def put_a_file_in_place_of_its_objects(path: Path) -> None:
    path.mkdir()
    (path / "objects").write_text("")


def put_a_file_in_place_of_its_locks(path: Path) -> None:
    path.mkdir()
    (path / "locks").write_text("")


def put_a_file_in_place_of_its_readers(path: Path) -> None:
    path.mkdir()
    (path / "readers").write_text("")


@pytest.mark.parametrize("policy", ["pin", "auto"])
@pytest.mark.parametrize(
    "harm",
    [
        put_a_file_in_its_place,
        put_a_file_in_place_of_its_objects,
        put_a_file_in_place_of_its_locks,
        put_a_file_in_place_of_its_readers,
    ],
)
def test_cache_that_is_sick_changes_no_row_and_says_so_once(
    tmp_path: Path, make: Make, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None], policy: str
) -> None:
    harm(tmp_path / "cache")
    with memory_corpus(640, 16, 4) as corpus, caplog.at_level(logging.WARNING):
        nodes = make(1000, policy)
        loader = Loader(corpus, 64, cache=nodes)
        assert [seen(loader) for _ in range(2)] == [
            promised(loader.order, 64, epoch=epoch) for epoch in range(2)
        ]
        assert loader.stats.hit_ratio <= loader.stats.bound
        nodes.discard(name_of(1))
    assert [record.name for record in caplog.records] == ["tiering.cache"]
    assert "takes no more shards" in caplog.text
    assert str(nodes.path) in caplog.text


def test_cache_status_of_a_sick_one_is_an_error_that_names_it(tmp_path: Path, make: Make) -> None:
    put_a_file_in_its_place(tmp_path / "cache")
    nodes = make(1)
    assert not put(nodes, 1)
    with pytest.raises(Unavailable, match=str(nodes.path)):
        nodes.status()


def test_cache_that_falls_sick_gives_what_it_has(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = make(5)
    put(nodes, 1)
    put(nodes, 2)
    monkeypatch.setattr(FileStore, "_write_temp", Breaks(OSError(28, "No space left on device")))
    assert not put(nodes, 3)
    monkeypatch.undo()
    fetched: list[int] = []
    assert [put(nodes, number, fetched) for number in (1, 2, 3)] == [True, True, False]
    assert not fetched
    nodes.discard(name_of(1))
    assert not put(nodes, 1, fetched)
    assert len(caplog.records) == 1
    healthy = make(5)
    assert put(healthy, 3)
    assert healthy.status().used_bytes == 2 * NBYTES


def test_too_many_open_files_are_no_sickness(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = make(5)
    with monkeypatch.context() as patch:
        patch.setattr(FileStore, "_write_temp", Breaks(OSError(24, "Too many open files")))
        assert not put(nodes, 1)
    assert put(nodes, 1)
    assert not caplog.records


@pytest.mark.parametrize("number", [1, 13, 30])
def test_cache_folder_that_may_not_be_written_is_a_sickness(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    nodes = make(5)
    monkeypatch.setattr(FileStore, "_write_temp", Breaks(OSError(number, os.strerror(number))))
    assert not put(nodes, 1)
    assert not put(nodes, 2)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("call", ["pwrite", "preadv", "pread", "write"])
def test_cache_on_a_disk_that_dies_under_it_changes_no_row_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with memory_corpus(640, 16, 4, format="arrow") as corpus:
        nodes = NodeCache(tmp_path / "cache", corpus.nbytes // 2, "clairvoyant")
        loader = Loader(corpus, 64, cache=nodes)
        batches = iter(loader)
        found = [next(batches)["row"].tolist()]
        monkeypatch.setattr(os, call, Breaks(OSError(5, "Input/output error")))
        found += [batch["row"].tolist() for batch in batches]
        assert found == promised(loader.order, 64)
        assert seen(loader) == promised(loader.order, 64, epoch=1)
        monkeypatch.undo()
        nodes.close()
    told = [record.name for record in caplog.records if "takes no more" in record.message]
    assert len(told) <= 1


class Breaks:
    """A function that only raises."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise self._error


def test_cache_whose_index_is_locked_for_ever_is_a_sickness(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(content, "BUSY_SECONDS", 0.0)
    nodes, other = make(5), make(5)
    put(nodes, 1)
    with other._content.transaction():
        assert put(nodes, 1)
        assert not put(nodes, 2)
    assert len(caplog.records) == 1


TRAINING = """
import resource, sys
from pathlib import Path
from loaders import Loader
from tests.corpora import promised, seen
from tiering import NodeCache, open_corpus, open_tier

corpus = open_corpus(open_tier(sys.argv[1], "disk"), "c")
if sys.argv[3] != "-":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
nodes = NodeCache(Path(sys.argv[2]), "1GB")
loader = Loader(corpus, 64, cache=nodes)
for epoch in range(2):
    assert seen(loader) == promised(loader.order, 64, epoch=epoch)
print(loader.stats.hit_ratio > 0)
nodes.close()
"""


@pytest.mark.parametrize("limit_bytes", [1, 10_000, 100_000])
def test_cache_that_may_write_no_large_files_slows_training_only(tmp_path: Path, limit_bytes: int) -> None:
    make_corpus(open_tier(tmp_path / "tier", "disk"), 640, 16, 4)
    with start_python(TRAINING, tmp_path / "tier", tmp_path / "cache", limit_bytes) as process:
        out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert out.strip() == str(limit_bytes == 100_000)
    assert errors.count("takes no more shards") <= 1


@contextlib.contextmanager
def small_disk(path: Path, nbytes: int) -> Iterator[None]:
    path.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() or mount is None:
        pytest.skip("only root mounts a disk")
    command = [mount, "-t", "tmpfs", "-o", f"size={nbytes}", "tmpfs", str(path)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("this root may not mount")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("read_only", [True, False])
def test_cache_on_a_full_or_read_only_disk_slows_training_only(tmp_path: Path, *, read_only: bool) -> None:
    make_corpus(open_tier(tmp_path / "tier", "disk"), 640, 16, 4)
    with small_disk(tmp_path / "cache", 160 << 10):
        if read_only:
            run_python(TRAINING, tmp_path / "tier", tmp_path / "cache", "-")
            subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "cache")], check=True)
        with start_python(TRAINING, tmp_path / "tier", tmp_path / "cache", "-") as process:
            out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert out == "True\n"
    assert errors.count("takes no more shards") == 1
