from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.tiering.corpora import flip
from tiering import Tier
from tiering.digest import Buffer, digest
from tiering.errors import Corrupt, NotFound
from tiering.stores.base import ObjectInfo
from tiering.stores.wrappers import Wrapper
from tiering.transfer import copy_verified, is_verified, put_verified, read_verified

DATA = b"seven bytes and more"
NAME = digest(DATA)


class Lying(Wrapper):
    """Stores other bytes than it is given."""

    def write(self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False) -> ObjectInfo:
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
