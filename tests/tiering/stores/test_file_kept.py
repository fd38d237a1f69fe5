"""Readers of a file tier: what stays open, and what tells its bytes from others."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Hashable
from pathlib import Path

import pytest

from tests.corpora import open_below
from tiering.errors import Corrupt, NotFound
from tiering.stores import file_kept
from tiering.stores.base import Reader
from tiering.stores.direct import READ_BYTES
from tiering.stores.file import FileStore


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore("disk", tmp_path)


def read(reader: Reader, offset: int = 0, nbytes: int = 4) -> tuple[bytes, Hashable | None]:
    buffer = bytearray(nbytes)
    identity = reader(offset, memoryview(buffer))
    return bytes(buffer), identity


def test_reader_keeps_a_file_open_until_it_goes_away(store: FileStore, tmp_path: Path) -> None:
    store.write("a/b", [b"0123456789"])
    reader = store.reader("a/b")
    assert open_below(tmp_path) == 0
    assert read(reader, 2)[0] == b"2345"
    assert read(reader, 6)[0] == b"6789"
    assert open_below(tmp_path) == 1
    del reader
    gc.collect()
    assert open_below(tmp_path) == 0


def test_reader_reads_what_replaced_the_file(store: FileStore) -> None:
    store.write("k", [b"old!"])
    reader = store.reader("k")
    assert read(reader)[0] == b"old!"
    store.write("k", [b"new!!"])
    assert read(reader, 0, 5)[0] == b"new!!"


def test_reader_of_a_removed_file_says_not_found_and_finds_a_new_one(store: FileStore) -> None:
    store.write("k", [b"old!"])
    reader = store.reader("k")
    read(reader)
    store.delete("k")
    with pytest.raises(NotFound):
        read(reader)
    store.write("k", [b"new!"])
    assert read(reader)[0] == b"new!"


def test_reader_of_a_file_cut_short_says_corrupt(store: FileStore, tmp_path: Path) -> None:
    store.write("k", [b"0123456789"])
    reader = store.reader("k")
    read(reader)
    os.truncate(tmp_path / "k", 3)
    with pytest.raises(Corrupt, match="object of 3 bytes"):
        read(reader)


def test_reader_closes_the_files_opened_first(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_kept, "KEPT_FILES", 3)
    readers = []
    for number in range(8):
        store.write(str(number), [b"%04d" % number])
        readers.append(store.reader(str(number)))
    for _ in range(2):
        for number, reader in enumerate(readers):
            assert read(reader)[0] == b"%04d" % number
            assert open_below(tmp_path) <= 3


def test_reader_closes_others_where_no_more_files_can_be_open(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("a", "b"):
        store.write(key, [b"0123"])
    first, second = store.reader("a"), store.reader("b")
    read(first)
    opened = store._tree.open

    def limited(segments: list[str]) -> int:
        if open_below(tmp_path):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(segments)

    monkeypatch.setattr(store._tree, "open", limited)
    assert read(second)[0] == b"0123"
    assert open_below(tmp_path) == 1


def test_reader_opens_a_stale_file_again(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write("k", [b"0123"])
    reader = store.reader("k")
    read(reader)
    true, stale = os.fstat, [True]

    def fstat(fd: int) -> os.stat_result:
        if stale.pop() if stale else False:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return true(fd)

    monkeypatch.setattr(os, "fstat", fstat)
    assert read(reader)[0] == b"0123"
    assert not stale


def test_identity_of_a_file_stays_until_it_is_changed(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_kept, "_SETTLED_NS", 0)
    store.write("k", [b"0123"])
    reader = store.reader("k")
    identity = read(reader)[1]
    assert identity is not None
    assert read(reader)[1] == identity == read(store.reader("k"))[1]
    os.utime(tmp_path / "k", ns=(1, 1))
    assert read(reader)[1] not in (None, identity)


def test_identity_of_a_file_changed_a_moment_ago_is_none(store: FileStore) -> None:
    store.write("k", [b"0123"])
    assert read(store.reader("k"))[1] is None


def test_large_reads_leave_kept_files_alone(store: FileStore, tmp_path: Path) -> None:
    store.write("k", [bytes(READ_BYTES)])
    data, identity = read(store.reader("k"), 0, READ_BYTES)
    assert data == bytes(READ_BYTES)
    assert identity is None
    assert open_below(tmp_path) == 0
