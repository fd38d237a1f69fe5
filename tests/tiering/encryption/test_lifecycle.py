"""Corpus keys told, rotated and shredded; also by processes that are killed at any instant."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tiering.corpora import KilledHere, dead, objects, small
from tests.tiering.encryption.tools import Stops, encrypted, key_bytes, key_file
from tiering import Tier, open_corpus, open_tier, verify
from tiering import process as process_module
from tiering import tier as tier_module
from tiering.claim import claimed
from tiering.encryption import kms, lifecycle
from tiering.encryption.kek import key_id
from tiering.encryption.keyring import KeyDocument, Keyring
from tiering.encryption.lifecycle import encryption_of, rotate_key, shred
from tiering.errors import ConfigError, Conflict, Corrupt, NotFound, TieringError, UsageError
from tiering.gc import gc
from tiering.probe import probe
from tiering.reservation import reservations
from tiering.stores.base import Store
from tiering.stores.block import BlockStore, format_volume
from tiering.stores.memory import MemoryStore

KEY_OBJECT = "web/.tiering/encryption.json"
MakeTier = Callable[..., Tier]


@contextlib.contextmanager
def using(tier: Tier, store: Store) -> Iterator[Tier]:
    """Let this process use `store` for the tier while the block runs."""
    place = (tier, os.getpid())
    before = tier_module._open_stores.get(place)
    tier_module._open_stores[place] = store
    try:
        yield tier
    finally:
        del tier_module._open_stores[place]
        if before is not None:
            tier_module._open_stores[place] = before


@contextlib.contextmanager
def killed_inside(tier: Tier, raw: Store, changes: int, folder: Path, *numbers: int) -> Iterator[Stops]:
    """Run the block as a process that is killed after so many changes to the bytes that lie on the tier."""
    real = process_module.current
    process_module.current = dead
    stops = Stops(raw, changes)
    try:
        with using(tier, encrypted(stops, folder, *numbers)), contextlib.suppress(KilledHere):
            yield stops
    finally:
        process_module.current = real


def whole(tier: Tier, raw: Store, folder: Path, *numbers: int) -> bool:
    """Whether the corpus can be read with these keys."""
    with using(tier, encrypted(raw, folder, *numbers)):
        try:
            return verify(open_corpus(tier, "web"), progress=False).ok
        except TieringError:
            return False


def test_encryption_of_tells_without_a_key(make_encrypted: MakeTier, make_tier: MakeTier) -> None:
    small(make_encrypted("lake"))
    small(make_tier("disk"))
    for tier in (make_encrypted("lake"), make_tier("lake"), make_encrypted("lake", 2)):
        info = encryption_of(tier, "web")
        assert info is not None
        assert (info.algorithm, info.kek) == ("AES-256-GCM", key_id(key_bytes(1)))
    assert encryption_of(make_tier("disk"), "web") is None
    assert encryption_of(make_tier("disk"), "none") is None


def test_rotate_key_lets_the_new_key_open_and_the_old_one_not(
    make_encrypted: MakeTier, tmp_path: Path
) -> None:
    corpus = small(make_encrypted("lake"))
    shards = {info.key: info.etag for info in corpus.tier.store.list() if "/c/" in info.key}
    both = make_encrypted("lake", 2, 1)
    assert rotate_key(both, "web")
    assert not rotate_key(both, "web")
    assert verify(open_corpus(make_encrypted("lake", 2), "web"), progress=False).ok
    assert shards == {info.key: info.etag for info in both.store.list() if "/c/" in info.key}
    corpus.tier.close()
    with pytest.raises(ConfigError, match=key_id(key_bytes(2))):
        open_corpus(make_encrypted("lake", 1), "web")


def test_rotate_key_lets_the_new_key_alone_write_and_tidy_up(make_encrypted: MakeTier) -> None:
    small(make_encrypted("lake"))
    rotate_key(make_encrypted("lake", 2, 1), "web")
    new = make_encrypted("lake", 2)
    assert verify(small(new, "later"), progress=False).ok
    assert not gc(new).kept
    assert all(check.verdict == "ok" for check in probe(new))
    make_encrypted("lake").close()
    with pytest.raises(ConfigError):
        small(make_encrypted("lake"), "other")


def test_rotate_key_killed_at_any_instant_leaves_the_corpus_readable(tmp_path: Path) -> None:
    tier = open_tier(f"memory://{tmp_path.name}-rotate", "lake", capacity="1GB")
    seen = set()
    for changes in range(40):
        raw = MemoryStore("lake")
        with using(tier, encrypted(raw, tmp_path, 1)):
            small(tier)
        with killed_inside(tier, raw, changes, tmp_path, 2, 1) as stops:
            rotate_key(tier, "web")
        old, new = whole(tier, raw, tmp_path, 1), whole(tier, raw, tmp_path, 2)
        assert old != new
        assert whole(tier, raw, tmp_path, 2, 1)
        with using(tier, encrypted(raw, tmp_path, 2, 1)):
            assert rotate_key(tier, "web") == old
        assert whole(tier, raw, tmp_path, 2)
        with using(tier, encrypted(raw, tmp_path, 2)):
            assert not any(one.counts for one in reservations(tier.store).all())
        seen.add((old, new))
        if stops.left >= 0:
            break
    assert stops.left >= 0
    assert len(seen) == 2


def test_shred_killed_at_any_instant_is_whole_or_gone_and_is_finished_by_the_next(tmp_path: Path) -> None:
    tier = open_tier(f"memory://{tmp_path.name}-shred", "lake")
    seen = set()
    for changes in range(40):
        raw = MemoryStore("lake")
        with using(tier, encrypted(raw, tmp_path)):
            small(tier)
        copy = bytes(raw.read("web/tokens/c/0/0"))
        with killed_inside(tier, raw, changes, tmp_path) as stops:
            shred(tier, "web")
        there = whole(tier, raw, tmp_path)
        seen.add(there)
        with using(tier, encrypted(raw, tmp_path)):
            if there:
                assert objects(tier)
            else:
                with pytest.raises(TieringError):
                    small(tier, rows=8) if raw.exists("web/tokens/c/0/0") else open_corpus(tier, "web")
            shred(tier, "web")
            assert list(raw.list()) == []
            assert verify(small(tier), progress=False).ok
            raw.write("web/tokens/c/0/0", [copy])
            with pytest.raises(Corrupt):
                tier.store.read("web/tokens/c/0/0")
        if stops.left >= 0:
            break
    assert stops.left >= 0
    assert seen == {True, False}


def test_shred_overwrites_the_key_in_its_file(make_encrypted: MakeTier, tmp_path: Path) -> None:
    lake = make_encrypted("lake")
    small(lake)
    small(lake, "other")
    os.link(tmp_path / "lake" / KEY_OBJECT, tmp_path / "inode")
    nbytes = (tmp_path / "inode").stat().st_size
    (tmp_path / "lake/web/mine.txt").write_bytes(b"not of this engine")
    assert shred(lake, "web") > 0
    assert (tmp_path / "inode").read_bytes() == bytes(nbytes)
    left = [path.name for path in (tmp_path / "lake/web").rglob("*") if path.is_file()]
    assert left == ["mine.txt"]
    assert verify(open_corpus(lake, "other"), progress=False).ok


def test_shred_overwrites_the_key_on_a_block_volume(tmp_path: Path) -> None:
    path = tmp_path / "volume"
    format_volume(path, 16 << 20)
    tier = open_tier(f"block://{path}", "lake")
    with BlockStore("lake", path) as raw, using(tier, encrypted(raw, tmp_path)):
        small(tier, rows=8)
        secret = bytes(raw.read(KEY_OBJECT))
        assert secret in path.read_bytes()
        shred(tier, "web")
        assert secret not in path.read_bytes()
        assert raw.check() == []


def test_shred_leaves_no_key_in_this_process(tmp_path: Path) -> None:
    raw = MemoryStore("lake")
    tier = open_tier(f"memory://{tmp_path.name}-here", "lake")
    with using(tier, encrypted(raw, tmp_path)):
        small(tier)
        copy = bytes(raw.read("web/tokens/c/0/0"))
        shred(tier, "web")
        raw.write("web/tokens/c/0/0", [copy])
        for read in (lambda: tier.store.read("web/tokens/c/0/0"), lambda: tier.store.write("web/x", [b"x"])):
            with pytest.raises(Corrupt, match="key"):
                read()
        raw.delete("web/tokens/c/0/0")
        tier.store.write("web/x", [b"x"])
    with using(tier, encrypted(raw, tmp_path)):
        assert tier.store.read("web/x") == b"x"


def test_shred_is_refused_while_somebody_writes(make_encrypted: MakeTier) -> None:
    lake = make_encrypted("lake")
    small(lake)
    with claimed(lake.store, "web", "0" * 64, shared=True):
        for call in (shred, rotate_key):
            with pytest.raises(Conflict, match="being written"):
                call(lake, "web")
    assert verify(open_corpus(lake, "web"), progress=False).ok


def test_shred_tells_when_a_key_came_back(tmp_path: Path) -> None:
    class Restoring(MemoryStore):
        """A late rotation puts its key object in place as the last object goes."""

        def delete(self, key: str) -> None:
            super().delete(key)
            if key == KEY_OBJECT:
                self.write(key, [b"{}"])

    tier = open_tier(f"memory://{tmp_path.name}-back", "lake")
    with using(tier, encrypted(Restoring("lake"), tmp_path)):
        small(tier)
        with pytest.raises(Conflict, match="put back"):
            shred(tier, "web")


def test_rotate_and_shred_refuse_what_they_cannot_do(make_encrypted: MakeTier, make_tier: MakeTier) -> None:
    small(make_encrypted("lake"))
    calls: list[Callable[[Tier, str], Any]] = [rotate_key, shred]
    for call in calls:
        with pytest.raises(UsageError, match="not encrypted"):
            call(make_tier("lake"), "web")
        with pytest.raises(UsageError, match="read-only"):
            call(make_encrypted("lake", read_only=True), "web")
        with pytest.raises(UsageError, match="corpus name"):
            call(make_encrypted("lake"), "../web")
        with pytest.raises(ConfigError, match="encrypted under the key"):
            call(make_encrypted("lake", 2), "web")
    with pytest.raises(NotFound, match="no encrypted corpus 'none'"):
        rotate_key(make_encrypted("lake"), "none")
    assert shred(make_encrypted("lake"), "none") == 0
    assert verify(open_corpus(make_encrypted("lake"), "web"), progress=False).ok


def test_nothing_is_written_under_a_key_that_others_destroyed(make_encrypted: MakeTier) -> None:
    """Another process shreds while this one still has the key in memory."""
    lake = make_encrypted("lake")
    lake.store.write("web/s", [b"x"])
    other = make_encrypted("lake", prices={"get_1000": 1.0})
    assert other != lake
    shred(other, "web")
    lake.store.write("web/s", [b"of another corpus"])
    assert other.store.read("web/s") == b"of another corpus"
    assert make_encrypted("lake", prices={"put_1000": 1.0}).store.read("web/s") == b"of another corpus"


def test_rotation_takes_the_key_of_objects_at_the_root_too(make_encrypted: MakeTier) -> None:
    lake = make_encrypted("lake")
    small(lake)
    lake.store.write("note.txt", [b"hello"])
    assert rotate_key(make_encrypted("lake", 2, 1), "web")
    assert make_encrypted("lake", 2).store.read("note.txt") == b"hello"


class OneWay:
    """A key service that lets its caller encrypt and not decrypt, or that breaks what it wraps."""

    def __init__(self, unwrapped: bytes | None) -> None:
        self.unwrapped = unwrapped

    def wrap(self, key_id: str, plaintext: bytes, aad: bytes) -> bytes:
        return plaintext[::-1]

    def unwrap(self, key_id: str, ciphertext: bytes, aad: bytes) -> bytes:
        if self.unwrapped is None:
            raise PermissionError("AccessDenied")
        return self.unwrapped


@pytest.mark.parametrize(("unwrapped", "kind"), [(None, TieringError), (bytes(32), ConfigError)])
def test_rotation_to_a_key_that_does_not_unwrap_changes_nothing(
    make_encrypted: MakeTier,
    make_tier: MakeTier,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unwrapped: bytes | None,
    kind: type[Exception],
) -> None:
    small(make_encrypted("lake"))
    monkeypatch.setitem(kms._registered, "oneway", OneWay(unwrapped))
    keys = {"encryption_key": "kms:oneway/k", "encryption_previous_key": key_file(tmp_path, 1)}
    with pytest.raises(kind, match=r"PermissionError|does not unwrap"):
        rotate_key(make_tier("lake", options=keys), "web")
    assert verify(open_corpus(make_encrypted("lake"), "web"), progress=False).ok


def test_rotation_beside_a_shred_puts_no_key_back(
    make_encrypted: MakeTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(make_encrypted("lake"))
    both = make_encrypted("lake", 2, 1)
    before = encryption_of(both, "web")
    assert before is not None
    real = Keyring.rewrap

    def rewrap(self: Keyring, document: KeyDocument, corpus: str) -> KeyDocument | None:
        made = real(self, document, corpus)
        if corpus == "web":  # another process shreds between the claim of this one and its write
            with monkeypatch.context() as patch:
                patch.setattr(lifecycle, "claimed", lambda *_, **__: contextlib.nullcontext())
                shred(both, "web")
        return made

    monkeypatch.setattr(Keyring, "rewrap", rewrap)
    with pytest.raises(Conflict, match="shredded meanwhile"):
        rotate_key(both, "web")
    after = encryption_of(make_encrypted("lake", 2), "web")  # one made anew, for the claim that is given back
    assert after is None or after.key_id != before.key_id


_KILLED_ROTATION = """
import os, signal, sys
from tiering import open_tier
from tiering.encryption.lifecycle import rotate_key
real = os.rename
def rename(source, target, **where):
    if target == "encryption.json":
        os.kill(os.getpid(), signal.SIGKILL)
    return real(source, target, **where)
os.rename = rename
keys = {"encryption_key": sys.argv[2], "encryption_previous_key": sys.argv[3]}
rotate_key(open_tier(sys.argv[1], "lake", options=keys), "web")
"""


def test_shred_takes_what_a_killed_rotation_left(make_encrypted: MakeTier, tmp_path: Path) -> None:
    lake = make_encrypted("lake")
    small(lake)
    keys = key_file(tmp_path, 2), key_file(tmp_path, 1)
    run = subprocess.run([sys.executable, "-c", _KILLED_ROTATION, lake.url, *keys], check=False)
    assert run.returncode == -signal.SIGKILL
    folder = tmp_path / "lake/web"
    assert list(folder.rglob(".tmp-*"))
    shred(lake, "web")
    assert [path for path in folder.rglob("*") if path.is_file()] == []
