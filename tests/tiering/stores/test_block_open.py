"""Opening: foreign, damaged, newer and locked volumes, and indexes of others."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiering.stores.block_tools import patch_file
from tiering.errors import (
    Corrupt,
    FormatError,
    Locked,
    NotFound,
    TieringError,
    UnsupportedVersion,
)
from tiering.stores import block_layout
from tiering.stores.block import BlockStore, format_volume
from tiering.stores.block_layout import Superblock
from tiering.stores.block_medium import PAGE_BYTES

MIB = 1 << 20


def test_open_missing_volume_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(
        NotFound, match=r"tier 'blocks'\)\. Make it with: tiering block format .* --size 10GiB"
    ):
        BlockStore("blocks", tmp_path / "volume.img")
    assert list(tmp_path.iterdir()) == []


def test_open_foreign_file_is_a_format_error(tmp_path: Path) -> None:
    path = tmp_path / "volume.img"
    for data in (b"", b"#!/bin/sh\n", os.urandom(2 * MIB), bytes(2 * MIB)):
        path.write_bytes(data)
        with pytest.raises(FormatError, match="not a block volume"):
            BlockStore("blocks", path)
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_open_second_page_alone_is_no_volume(path: Path) -> None:
    patch_file(path, 0, b"XFSB" + bytes(508))
    with pytest.raises(FormatError, match="not a block volume"):
        BlockStore("blocks", path)


@pytest.mark.parametrize("page", [0, 1])
def test_open_one_damaged_superblock_is_repaired_from_the_other(path: Path, page: int) -> None:
    patch_file(path, page * PAGE_BYTES + 30, b"\xff\xff\xff")
    with BlockStore("blocks", path) as store:
        store.write("k", [b"x"])
    patch_file(path, (1 - page) * PAGE_BYTES + 30, b"\xff\xff\xff")
    with BlockStore("blocks", path) as store:
        assert store.read("k") == b"x"
        assert not store.rebuilt


def test_open_both_superblocks_damaged_is_corrupt(path: Path) -> None:
    for page in (0, 1):
        patch_file(path, page * PAGE_BYTES + 30, b"\xff\xff\xff")
    with pytest.raises(Corrupt, match="both superblocks"):
        BlockStore("blocks", path)


def test_open_truncated_image_is_corrupt(path: Path) -> None:
    os.truncate(path, 2 * MIB - 1)
    with pytest.raises(Corrupt, match="2097151 bytes, not 2097152"):
        BlockStore("blocks", path)


def test_open_newer_version_is_unsupported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "volume.img"
    monkeypatch.setattr(block_layout, "VERSION", 2)
    format_volume(path, MIB)
    monkeypatch.undo()
    with pytest.raises(UnsupportedVersion, match="version 2, newer than 1"):
        BlockStore("blocks", path)
    for page in (0, 1):  # a newer layout may keep its checksum elsewhere
        patch_file(path, (page + 1) * PAGE_BYTES - 4, b"\xff\xff\xff\xff")
    with pytest.raises(UnsupportedVersion):
        BlockStore("blocks", path)


def test_superblock_layout_is_fixed(path: Path) -> None:
    """Golden: volumes written today must still open in every later version."""
    raw = path.read_bytes()[:PAGE_BYTES]
    magic, version, _uuid, nbytes, page_bytes, session = struct.unpack_from("<16sI16sQIQ", raw)
    assert (magic, version, nbytes, page_bytes) == (b"CORPUSTIERINGVOL", 1, 2 * MIB, PAGE_BYTES)
    assert session == 0
    assert struct.calcsize("<16sI16sQIQ16s") == 72


def test_second_opener_in_this_process_is_locked(path: Path) -> None:
    with BlockStore("blocks", path):
        for read_only in (False, True):
            with pytest.raises(Locked, match="open in this process"):
                BlockStore("again", path, read_only=read_only)
    with BlockStore("reader", path, read_only=True), pytest.raises(Locked):
        BlockStore("writer", path)
    BlockStore("blocks", path).close()


def test_second_opener_in_another_process_is_locked_and_told_who(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tiering.stores.block import BlockStore\n"
        "try: BlockStore('child', Path(sys.argv[1]))\n"
        "except BlockingIOError as error: print(type(error).__name__, error)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with BlockStore("blocks", path):
        run = subprocess.run(
            [sys.executable, "-c", code, str(path)], env=env, capture_output=True, text=True, timeout=120
        )
    assert run.stdout.startswith(f"Locked {path} is open in process {os.getpid()} (tier 'child'). Stop"), run


def test_lock_outlives_no_forked_child(path: Path) -> None:
    store = BlockStore("blocks", path)
    copy = os.dup(store._medium._fd)  # what a forked child would keep
    try:
        store.close()
        BlockStore("again", path).close()
    finally:
        os.close(copy)


def test_index_of_another_program_is_left_alone(path: Path, tmp_path: Path) -> None:
    text, database = tmp_path / "notes.txt", tmp_path / "other.db"
    text.write_bytes(b"precious notes " * 100)
    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE precious (x)")
    connection.commit()
    connection.close()
    for file in (text, database):
        before = file.read_bytes()
        with pytest.raises(FormatError, match="not the index"):
            BlockStore("blocks", path, index_path=file)
        with pytest.raises(FormatError, match="not the index"):
            format_volume(path, None, index_path=file, force=True)
        assert file.read_bytes() == before


def test_index_in_use_by_another_volume_is_locked(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.img"
    format_volume(other, MIB)
    with BlockStore("blocks", path) as store:
        store.write("k", [b"x"])
        with pytest.raises(Locked, match="in use"):
            BlockStore("other", other, index_path=tmp_path / "volume.img.index")
        store.write("k", [b"y"])
    with BlockStore("blocks", path) as store:
        assert store.read("k") == b"y"


def test_superblock_token_changes_with_every_session(path: Path) -> None:
    tokens = set()
    for _ in range(3):
        with BlockStore("blocks", path) as store:
            tokens |= store._index.tokens()
            assert store._index.tokens() == {Superblock.read(store._medium)[0].token}
    assert len(tokens) == 3


def test_failed_opening_gives_the_lock_back(tmp_path: Path) -> None:
    path = tmp_path / "volume.img"
    path.write_bytes(bytes(MIB))
    with pytest.raises(TieringError):
        BlockStore("blocks", path)
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
