from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.patterns import pattern
from tests.tiering.corpora import flip
from tiering import Tier
from tiering.digest import Buffer, Hasher, digest
from tiering.errors import Corrupt, NotFound, Unavailable
from tiering.stores.base import ObjectInfo
from tiering.stores.block import BlockStore, format_volume
from tiering.stores.file import FileStore
from tiering.stores.pages import PIECE_BYTES
from tiering.stores.wrappers import Wrapper
from tiering.transfer import copy_verified, is_verified, put_verified, read_verified

DATA = b"seven bytes and more"
NAME = digest(DATA)


class Lying(Wrapper):
    """Stores other bytes than it is given."""

    def write(
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        return super().write(key, [b"x" * sum(map(len, buffers))], if_absent=if_absent)


class Counting(Wrapper):
    reads = 0

    def read(self, key: str) -> bytearray:
        self.reads += 1
        return super().read(key)


def test_put_writes_once_and_skips_what_is_there(memory: Tier) -> None:
    assert put_verified(memory.store, "k", [DATA[:5], DATA[5:]], len(DATA), NAME) == "moved"
    assert put_verified(memory.store, "k", [DATA], len(DATA), NAME) == "skipped"
    assert memory.store.read("k") == DATA


@pytest.mark.parametrize("bad", [b"", DATA[:-1], DATA + b"x", b"X" + DATA[1:]])
def test_put_replaces_what_is_there_and_wrong(memory: Tier, bad: bytes) -> None:
    memory.store.write("k", [bad])
    assert not is_verified(memory.store, "k", len(DATA), NAME)
    with pytest.raises(
        Corrupt, match=f"not the {len(DATA)} bytes that the manifest names {NAME[:12]}"
    ) as caught:
        read_verified(memory.store, "k", len(DATA), NAME)
    assert (caught.value.tier, caught.value.key) == ("memory", "k")
    assert put_verified(memory.store, "k", [DATA], len(DATA), NAME) == "moved"
    assert read_verified(memory.store, "k", len(DATA), NAME) == DATA


def test_put_on_a_medium_that_damages_is_corrupt(memory: Tier) -> None:
    with pytest.raises(Corrupt, match="read back other bytes than were written") as caught:
        put_verified(Lying(memory.store), "k", [DATA], len(DATA), NAME)
    assert (caught.value.tier, caught.value.key) == ("memory", "k")


def test_put_and_copy_write_anew_what_cannot_be_read(memory: Tier, lake: Tier) -> None:
    class BadSector(Wrapper):
        """What was there lies on one; what is written lies elsewhere."""

        bad = True

        def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
            self._read(key)
            super().read_into(key, offset, buffer)

        def read(self, key: str) -> Buffer:
            self._read(key)
            return super().read(key)

        def write(self, key: str, buffers: Sequence[Buffer], **options: Any) -> ObjectInfo:
            self.bad = False
            return super().write(key, buffers, **options)

        def _read(self, key: str) -> None:
            if self.bad:
                raise Unavailable("Input/output error", tier=self.name, key=key)

    data = pattern(5000)
    memory.store.write("k", [data])
    for put in (True, False):
        lake.store.write("k", [data])
        store = BadSector(lake.store)
        if put:
            assert put_verified(store, "k", [data], len(data), digest(data)) == "moved"
        else:
            assert copy_verified(memory.store, store, "k", len(data), digest(data)) == "moved"
        assert store.read("k") == data


def test_put_on_a_tier_that_is_away_is_unavailable(lake: Tier) -> None:
    class Away(Wrapper):
        def stat(self, key: str) -> ObjectInfo:
            raise Unavailable("nobody answers")

        def write(self, key: str, buffers: Sequence[Buffer], **options: Any) -> ObjectInfo:
            raise Unavailable("nobody answers")

    with pytest.raises(Unavailable):
        put_verified(Away(lake.store), "k", [b"v"], 1, digest(b"v"))


def test_copy_reads_nothing_that_the_target_has(memory: Tier, lake: Tier) -> None:
    source = Counting(lake.store)
    source.write("k", [DATA])
    assert copy_verified(source, memory.store, "k", len(DATA), NAME) == "moved"
    assert copy_verified(source, memory.store, "k", len(DATA), NAME) == "skipped"
    assert source.reads == 1


def test_copy_of_a_damaged_or_missing_source_writes_nothing(memory: Tier, lake: Tier) -> None:
    lake.store.write("k", [DATA])
    flip(lake, "k")
    with pytest.raises(Corrupt) as caught:
        copy_verified(lake.store, memory.store, "k", len(DATA), NAME)
    assert (caught.value.tier, caught.value.key) == ("lake", "k")
    with pytest.raises(NotFound, match="lake"):
        copy_verified(lake.store, memory.store, "none", len(DATA), NAME)
    assert list(memory.store.list()) == []


LARGE = pattern(2 * PIECE_BYTES + 5)


def test_copy_hashes_each_byte_once_on_either_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    real = Hasher.update

    def update(self: Hasher, data: Buffer) -> None:
        hashed.append(len(data))
        real(self, data)

    format_volume(tmp_path / "a.img", 8 * PIECE_BYTES)
    name = digest(LARGE)
    monkeypatch.setattr(Hasher, "update", update)
    with BlockStore("block", tmp_path / "a.img") as block:
        file = FileStore("file", tmp_path / "b")
        assert put_verified(file, "k", [LARGE], len(LARGE), name) == "moved"
        assert sum(hashed) == len(LARGE)  # read back
        assert copy_verified(file, block, "k", len(LARGE), name) == "moved"
        assert sum(hashed) == 3 * len(LARGE)
        file.delete("k")
        assert copy_verified(block, file, "k", len(LARGE), name) == "moved"
        assert sum(hashed) == 5 * len(LARGE)
        assert block.check() == []


def test_copy_to_a_block_volume_that_changes_a_bit_is_corrupt(tmp_path: Path, memory: Tier) -> None:
    class Flipping(Wrapper):
        def write(
            self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
        ) -> ObjectInfo:
            data = bytearray().join(buffers)
            data[3] ^= 1
            return super().write(key, [data], if_absent=if_absent, digest=digest)

    memory.store.write("k", [DATA])
    format_volume(tmp_path / "a.img", 1 << 20)
    with BlockStore("block", tmp_path / "a.img") as block:
        with pytest.raises(Corrupt, match="read back other bytes than were written"):
            copy_verified(memory.store, Flipping(block), "k", len(DATA), NAME)
        assert [problem.key for problem in block.check()] == ["k"]
        assert copy_verified(memory.store, block, "k", len(DATA), NAME) == "moved"
        assert block.check() == []


def test_large_object_is_verified_piece_by_piece(tmp_path: Path) -> None:
    source, target = FileStore("source", tmp_path / "a"), FileStore("target", tmp_path / "b")
    source.write("k", [LARGE])
    assert copy_verified(source, target, "k", len(LARGE), digest(LARGE)) == "moved"
    assert read_verified(target, "k", len(LARGE), digest(LARGE)) == LARGE
    for place in (0, PIECE_BYTES, 2 * PIECE_BYTES + 4):
        target.write("k", [LARGE[:place], bytes([LARGE[place] ^ 1]), LARGE[place + 1 :]])
        assert not is_verified(target, "k", len(LARGE), digest(LARGE))
        with pytest.raises(Corrupt, match=f"{len(LARGE)} bytes read, not the {len(LARGE)} bytes"):
            read_verified(target, "k", len(LARGE), digest(LARGE))
    target.write("k", [LARGE[:-1]])
    with pytest.raises(Corrupt, match=f"{len(LARGE) - 1} bytes read"):
        read_verified(target, "k", len(LARGE), digest(LARGE))
    with pytest.raises(NotFound):
        read_verified(target, "none", len(LARGE), digest(LARGE))


def test_large_object_that_is_cut_off_while_it_is_read_is_corrupt(tmp_path: Path) -> None:
    class Shrinking(Wrapper):
        def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
            if offset:
                os.truncate(tmp_path / "k", PIECE_BYTES)
            super().read_into(key, offset, buffer)

    store = Shrinking(FileStore("file", tmp_path))
    store.write("k", [LARGE])
    with pytest.raises(Corrupt) as caught:
        read_verified(store, "k", len(LARGE), digest(LARGE))
    assert (caught.value.tier, caught.value.key) == ("file", "k")
