"""What an encrypted store guards against: whoever can change what lies on the tier."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiering.encryption.tools import encrypted, key_bytes
from tiering.digest import digest
from tiering.encryption.frames import FRAME_BYTES, HEADER_BYTES, MAGIC, STORED_FRAME_BYTES, stored_bytes
from tiering.encryption.kek import key_id
from tiering.errors import (
    ConfigError,
    Conflict,
    Corrupt,
    NotFound,
    TieringError,
    UnsupportedVersion,
    UsageError,
)
from tiering.stores.base import ObjectInfo, Store
from tiering.stores.block import BlockStore, format_volume
from tiering.stores.encrypted import Encrypted
from tiering.stores.file import FileStore
from tiering.stores.memory import MemoryStore
from tiering.stores.pages import PIECE_BYTES, address_of
from tiering.stores.shared_memory import SharedMemoryStore
from tiering.stores.wrappers import Wrapper

DATA = random.Random(1).randbytes(2 * FRAME_BYTES + 100)
KEY_OBJECT = "web/.tiering/encryption.json"


@pytest.fixture
def inner() -> MemoryStore:
    return MemoryStore("lake")


@pytest.fixture
def store(inner: MemoryStore, tmp_path: Path) -> Encrypted:
    return encrypted(inner, tmp_path)


def reads(store: Store, key: str, offset: int, nbytes: int) -> bytes:
    buffer = bytearray(nbytes)
    store.read_into(key, offset, memoryview(buffer))
    return bytes(buffer)


def change(inner: Store, key: str, edit: Callable[[bytearray], bytearray]) -> None:
    inner.write(key, [edit(inner.read(key))])


def assert_corrupt(store: Store, key: str) -> None:
    for call in (lambda: store.read(key), lambda: reads(store, key, 0, 1)):
        with pytest.raises(Corrupt) as caught:
            call()
        assert (caught.value.tier, caught.value.key) == ("lake", key)


def test_nothing_but_names_and_sizes_is_plain(inner: MemoryStore, store: Encrypted) -> None:
    text = b"a sentence that nobody else shall read, " * 100
    store.write("web/zarr.json", [text])
    store.write("web/.tiering/HEAD", [text])
    for info in inner.list():
        raw = bytes(inner.read(info.key))
        assert text[:20] not in raw
        assert key_bytes(1) not in raw
        assert raw.startswith(MAGIC) == (info.key != KEY_OBJECT)
    assert inner.stat("web/zarr.json").nbytes == stored_bytes(len(text))


def test_a_range_reads_its_frames_alone(tmp_path: Path) -> None:
    class Ranges(Wrapper):
        def __init__(self, inner: Store) -> None:
            super().__init__(inner)
            self.asked: list[tuple[int, int]] = []

        def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
            self.asked.append((offset, buffer.nbytes))
            super().read_into(key, offset, buffer)

    ranges = Ranges(MemoryStore("lake"))
    encrypted(ranges, tmp_path).write("web/s", [DATA])
    store = encrypted(ranges, tmp_path)
    ranges.asked.clear()
    assert reads(store, "web/s", FRAME_BYTES + 7, 1000) == DATA[FRAME_BYTES + 7 : FRAME_BYTES + 1007]
    assert reads(store, "web/s", FRAME_BYTES - 1, 2) == DATA[FRAME_BYTES - 1 : FRAME_BYTES + 1]
    second = HEADER_BYTES + STORED_FRAME_BYTES
    assert ranges.asked == [
        (0, HEADER_BYTES),
        (second, STORED_FRAME_BYTES),
        (HEADER_BYTES, 2 * STORED_FRAME_BYTES),
    ]


def test_an_object_overwritten_by_another_process_is_read_anew(inner: MemoryStore, tmp_path: Path) -> None:
    mine, theirs = encrypted(inner, tmp_path), encrypted(inner, tmp_path)
    for data in (DATA, DATA[::-1], b"short", DATA * 2, b""):
        theirs.write("web/s", [data])
        assert mine.read("web/s") == data
        if data:
            assert reads(mine, "web/s", len(data) - 1, 1) == data[-1:]
        theirs.write("web/s", [data[1:], b"!"])
        assert reads(mine, "web/s", len(data[1:]), 1) == b"!"
    theirs.delete("web/s")
    with pytest.raises(NotFound):
        reads(mine, "web/s", 0, 0)
    with pytest.raises(NotFound):
        reads(mine, "web/s", 0, 1)


@pytest.mark.parametrize("where", [3, HEADER_BYTES - 1, 60, HEADER_BYTES + 5, -1])
@pytest.mark.parametrize("warm", [True, False])
def test_damage_is_corrupt_whether_or_not_the_header_is_known(
    inner: MemoryStore, store: Encrypted, tmp_path: Path, where: int, warm: bool
) -> None:
    store.write("web/s", [b"0123456789"])

    def flip(data: bytearray) -> bytearray:
        data[where] ^= 4
        return data

    change(inner, "web/s", flip)
    reader = store if warm else encrypted(inner, tmp_path)
    with pytest.raises(Corrupt):
        reader.read("web/s")
    if where not in (3, HEADER_BYTES - 1, 60) or not warm:  # a known header is not read again for a range
        assert_corrupt(reader, "web/s")


def test_truncation_and_extension_are_corrupt(inner: MemoryStore, store: Encrypted, tmp_path: Path) -> None:
    store.write("web/s", [DATA])
    whole = bytes(inner.read("web/s"))
    ends = [0, 1, HEADER_BYTES - 1, HEADER_BYTES, *(HEADER_BYTES + i * STORED_FRAME_BYTES for i in (1, 2))]
    for end in [*ends, len(whole) - 1]:
        inner.write("web/s", [whole[:end]])
        assert_corrupt(encrypted(inner, tmp_path), "web/s")
        assert [info.key for info in store.list("web")] == ["web/s"]
        assert store.stat("web/s") == next(iter(store.list("web")))
    inner.write("web/s", [whole, bytes(20)])
    assert_corrupt(encrypted(inner, tmp_path), "web/s")


def test_swapped_objects_are_corrupt(inner: MemoryStore, store: Encrypted) -> None:
    store.write("web/a", [b"a" * 100])
    store.write("web/b", [b"b" * 100])
    store.write("other/a", [b"c" * 100])
    raw = {key: bytes(inner.read(key)) for key in ("web/a", "web/b", "other/a")}
    for target, source in (("web/a", "web/b"), ("web/b", "web/a"), ("web/a", "other/a")):
        inner.write(target, [raw[source]])
        assert_corrupt(store, target)
        inner.write(target, [raw[target]])
        assert store.read(target)


def test_an_object_of_an_earlier_corpus_of_that_name_is_corrupt(
    inner: MemoryStore, store: Encrypted, tmp_path: Path
) -> None:
    store.write("web/s", [b"old"])
    old = bytes(inner.read("web/s"))
    store.delete("web/s")
    assert list(inner.list()) == []
    store.write("web/s", [b"new"])
    inner.write("web/s", [old])
    for reader in (store, encrypted(inner, tmp_path)):
        with pytest.raises(Corrupt, match="another corpus key"):
            reader.read("web/s")


def test_another_corpus_key_object_in_its_place_is_corrupt(
    inner: MemoryStore, store: Encrypted, tmp_path: Path
) -> None:
    store.write("web/s", [b"x"])
    store.write("other/s", [b"x"])
    document = bytes(inner.read("other/.tiering/encryption.json"))
    inner.write(KEY_OBJECT, [document])
    with pytest.raises(Corrupt, match="that of 'other', not of 'web'"):
        encrypted(inner, tmp_path).read("web/s")
    inner.write(KEY_OBJECT, [document.replace(b'"other"', b'"web"')])
    with pytest.raises(Corrupt, match="damaged or forged"):
        encrypted(inner, tmp_path).read("web/s")


def test_each_changed_byte_of_the_key_object_is_refused(
    inner: MemoryStore, store: Encrypted, tmp_path: Path
) -> None:
    store.write("web/s", [b"x"])
    document = bytes(inner.read(KEY_OBJECT))
    blank = {i for i, byte in enumerate(document) if bytes([byte]) in b" \n,"}
    for position in set(range(len(document))) - blank:
        changed = bytearray(document)
        changed[position] ^= 1
        inner.write(KEY_OBJECT, [changed])
        with pytest.raises(TieringError, match="web"):
            encrypted(inner, tmp_path).read("web/s")


@pytest.mark.parametrize("junk", [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 5000, b"1" * 20_000])
def test_a_key_object_that_is_none_is_corrupt(
    inner: MemoryStore, store: Encrypted, tmp_path: Path, junk: bytes
) -> None:
    store.write("web/s", [b"x"])
    inner.write(KEY_OBJECT, [junk])
    other = encrypted(inner, tmp_path)
    for call in (lambda: other.read("web/s"), lambda: other.write("web/t", [b"y"])):
        with pytest.raises(Corrupt) as caught:
            call()
        assert caught.value.tier == "lake"
    assert [info.key for info in store.list()] == ["web/s"]


def test_a_key_object_of_the_future_is_refused_by_name(
    inner: MemoryStore, store: Encrypted, tmp_path: Path
) -> None:
    store.write("web/s", [b"x"])
    inner.write(KEY_OBJECT, [b'{"format": "tiering-encryption", "format_version": 2, "algorithm": "X"}'])
    with pytest.raises(UnsupportedVersion):
        encrypted(inner, tmp_path).read("web/s")


def test_the_wrong_key_is_told_from_damage(inner: MemoryStore, store: Encrypted, tmp_path: Path) -> None:
    store.write("web/s", [b"x"])
    with pytest.raises(ConfigError) as caught:
        encrypted(inner, tmp_path, 2).read("web/s")
    assert key_id(key_bytes(1)) in caught.value.message
    assert key_id(key_bytes(2)) in caught.value.message
    with pytest.raises(ConfigError):
        encrypted(inner, tmp_path, 2).write("web/t", [b"y"])
    assert encrypted(inner, tmp_path, 2, 1).read("web/s") == b"x"


def test_plain_objects_are_refused(inner: MemoryStore, store: Encrypted) -> None:
    inner.write("web/s", [b"plain"])
    inner.write("web/long", [bytes(10_000)])
    for key in ("web/s", "web/long"):
        with pytest.raises(ConfigError, match="not encrypted"):
            store.read(key)
    with pytest.raises(ConfigError, match="not encrypted"):
        store.write("web/t", [b"x"])
    assert not inner.exists(KEY_OBJECT)
    assert len(list(store.list("web"))) == 2


def test_a_folder_whose_key_is_gone_gets_no_other(
    inner: MemoryStore, store: Encrypted, tmp_path: Path
) -> None:
    store.write("web/s", [b"x"])
    document = bytes(inner.read(KEY_OBJECT))
    inner.delete(KEY_OBJECT)
    other = encrypted(inner, tmp_path)
    with pytest.raises(Corrupt, match="key of this encrypted object is gone"):
        other.read("web/s")
    for writer in (other, store):  # the one that has it in memory would write what nobody else can read
        with pytest.raises(Corrupt, match="their corpus key is gone"):
            writer.write("web/claim", [b"y"], if_absent=True)
    inner.write(KEY_OBJECT, [document])
    assert other.read("web/s") == b"x"


def test_the_key_object_is_hidden_and_cannot_be_written(inner: MemoryStore, store: Encrypted) -> None:
    store.write("web/.tiering/HEAD", [b"x"])
    store.write("loose", [b"x"])
    assert inner.exists(KEY_OBJECT)
    for key in (KEY_OBJECT, ".tiering/encryption.json"):
        assert inner.exists(key)
        assert not store.exists(key)
        for call in (
            lambda key=key: store.write(key, [b"x"]),
            lambda key=key: store.delete(key),
            lambda key=key: store.read(key),
        ):
            with pytest.raises(UsageError, match="corpus key"):
                call()
    assert list(store.children()) == ["loose", "web"]
    assert list(store.children("web")) == [".tiering"]
    assert list(store.children("web/.tiering")) == ["HEAD"]
    assert [info.key for info in store.list()] == ["loose", "web/.tiering/HEAD"]


def test_a_killed_first_write_leaves_nothing_to_be_seen(inner: MemoryStore, store: Encrypted) -> None:
    store.keys.for_writing("web")
    assert inner.exists(KEY_OBJECT)
    assert (list(store.children()), list(store.list())) == ([], [])
    store.write("web/s", [b"x"])
    assert store.read("web/s") == b"x"


def test_the_key_goes_with_the_last_object_and_not_before(inner: MemoryStore, store: Encrypted) -> None:
    for name in "abc":
        store.write(f"web/{name}", [b"x"])
    for name in "cab":
        assert inner.exists(KEY_OBJECT)
        store.delete(f"web/{name}")
    assert list(inner.list()) == []


def test_a_key_dropped_while_another_writes_is_put_back(inner: MemoryStore, tmp_path: Path) -> None:
    class Racing(Wrapper):
        """Another writer's object comes as the key is deleted."""

        def delete(self, key: str) -> None:
            super().delete(key)
            if key == KEY_OBJECT:
                self.inner.write("web/new", [ciphertext])

    other = encrypted(inner, tmp_path)
    other.write("web/new", [b"new"])
    ciphertext = bytes(inner.read("web/new"))
    inner.delete("web/new")
    racing = encrypted(Racing(inner), tmp_path)
    racing.write("web/old", [b"old"])
    racing.delete("web/old")
    assert encrypted(inner, tmp_path).read("web/new") == b"new"


def test_a_retry_inside_sends_the_same_ciphertext(inner: MemoryStore, tmp_path: Path) -> None:
    sent: list[bytes] = []

    class Twice(Wrapper):
        def write(
            self, key: str, buffers: object, *, if_absent: bool = False, digest: str | None = None
        ) -> ObjectInfo:
            sent.extend(b"".join(buffers) for _ in range(2))  # type: ignore[call-overload]
            return super().write(key, buffers, if_absent=if_absent, digest=digest)  # type: ignore[arg-type]

    encrypted(Twice(inner), tmp_path).write("web/s", [DATA])
    assert sent[-1] == sent[-2]


def test_digest_of_the_plaintext_is_not_told_to_the_tier(tmp_path: Path) -> None:
    format_volume(tmp_path / "image", 1 << 20)
    with BlockStore("lake", tmp_path / "image") as blocks:
        encrypted(blocks, tmp_path).write("web/s", [DATA], digest=digest(DATA))
        assert blocks.check() == []  # it has recorded that of the ciphertext


def test_large_reads_use_memory_again_that_nobody_refers_to(store: Encrypted, tmp_path: Path) -> None:
    with SharedMemoryStore("shared", f"pages-{os.getpid()}", 4 * PIECE_BYTES) as shared:
        for each in (store, shared):
            data = bytes(PIECE_BYTES + 1)
            each.write("web/s", [data])
            first = each.read("web/s")
            second = each.read("web/s")
            assert first == second == data
            assert address_of(first) != address_of(second)
            place = address_of(second)
            del second
            assert address_of(each.read("web/s")) == place


def test_objects_are_as_old_as_what_is_stored(tmp_path: Path) -> None:
    files = FileStore("lake", tmp_path / "lake")
    store = encrypted(files, tmp_path)
    written = store.write("web/k", [b"x" * 5000])
    os.utime(tmp_path / "lake/web/k", (1e9, 1e9))
    assert written.modified_seconds
    assert store.stat("web/k").modified_seconds == 1e9
    assert [(info.nbytes, info.modified_seconds) for info in store.list("web")] == [(5000, 1e9)]


def test_locate_is_none_even_on_files(tmp_path: Path) -> None:
    store = encrypted(FileStore("lake", tmp_path / "lake"), tmp_path)
    store.write("web/s", [b"x"])
    assert store.inner.locate("web/s") is not None
    assert store.locate("web/s") is None


def test_write_if_absent_conflicts_as_without_encryption(store: Encrypted) -> None:
    store.write("web/s", [b"x"])
    with pytest.raises(Conflict):
        store.write("web/s", [b"x"], if_absent=True)


def test_a_missing_library_is_told(
    inner: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(ConfigError, match=r"pip install 'corpus-tiering\[crypto\]'"):
        encrypted(inner, tmp_path).write("web/s", [b"x"])
    assert list(inner.list()) == []
