"""Users' keys: where they are found, what is refused, and that nothing shows them."""

from __future__ import annotations

import base64
import errno
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiering.corpora import small
from tests.tiering.encryption.tools import key_bytes, key_file
from tiering import Tier, open_corpus
from tiering.encryption.aead import Unauthentic
from tiering.encryption.kek import LocalKey, find_kek, key_id, make_key_file
from tiering.encryption.kms import register_kms
from tiering.encryption.lifecycle import rotate_key
from tiering.errors import ConfigError, TieringError, Unavailable

KEY = key_bytes(1)


def find(reference: str) -> str:
    return find_kek(reference, "encryption_key", "tier 'lake'").id


@pytest.mark.parametrize(
    "data",
    [KEY, KEY.hex().encode(), KEY.hex().upper().encode() + b"\n", base64.b64encode(KEY) + b"\n"],
    ids=["raw", "hex", "HEX", "base64"],
)
def test_find_kek_reads_each_form_of_a_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_bytes(data)
    assert find(f"file:{path}") == key_id(KEY)


def test_find_kek_reads_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKE_KEK", KEY.hex())
    assert find("env:LAKE_KEK") == key_id(KEY)


@pytest.mark.parametrize(
    "data",
    [
        KEY[:31],
        KEY + b"\n",  # raw, and one byte too many: nobody can tell which
        KEY[:16].hex().encode(),  # 32 letters: a key of 128 bits
        b"correct horse battery staple 123",
        bytes(32),
        b"\x01\x02\x03\x04" * 8,
        bytes(64),
        b"zz" * 32,
        base64.b64encode(KEY[:24]),
        KEY.hex().encode() * 100,
    ],
)
def test_find_kek_weak_or_wrong_key_is_refused_and_not_shown(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"not a key of 32 bytes|could be guessed") as caught:
        find(f"file:{path}")
    assert "encryption_key" in str(caught.value)
    assert "tiering keygen" in str(caught.value)
    for shown in (data.hex(), data.decode(errors="replace")):
        assert shown not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_find_kek_file_open_to_others_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = Path(key_file(tmp_path).removeprefix("file:"))
    path.chmod(mode)
    with pytest.raises(ConfigError, match=rf"mode {mode:04o}.*chmod 600"):
        find(f"file:{path}")


def test_find_kek_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LAKE_KEK", raising=False)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for reference in ("env:LAKE_KEK", f"file:{tmp_path}/none", f"file:{tmp_path}", f"file:{tmp_path}/pipe"):
        with pytest.raises(ConfigError, match="missing or empty"):
            find(reference)


def test_make_key_file_is_private_new_and_usable(tmp_path: Path) -> None:
    name = make_key_file(tmp_path / "key")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert find(f"file:{tmp_path}/key") == name
    before = (tmp_path / "key").read_bytes()
    with pytest.raises(ConfigError, match="there already"):
        make_key_file(tmp_path / "key")
    assert (tmp_path / "key").read_bytes() == before
    with pytest.raises(ConfigError, match="no key can be written"):
        make_key_file(tmp_path / "none" / "key")


def test_a_key_is_never_shown_or_pickled() -> None:
    key = LocalKey(KEY)
    assert KEY.hex() not in repr(key) + key.id
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(key)


class Vault:
    """A key management service that keeps one key and says whom it served."""

    def __init__(self, number: int = 9) -> None:
        self.calls: list[tuple[str, str]] = []
        self._key = LocalKey(key_bytes(number))

    def wrap(self, key_id: str, plaintext: bytes, aad: bytes) -> bytes:
        self.calls.append(("wrap", key_id))
        return self._key.wrap(plaintext, aad)

    def unwrap(self, key_id: str, ciphertext: bytes, aad: bytes) -> bytes:
        self.calls.append(("unwrap", key_id))
        return self._key.unwrap(ciphertext, aad)


class Sick:
    def wrap(self, key_id: str, plaintext: bytes, aad: bytes) -> bytes:
        raise RuntimeError(plaintext.hex())

    def unwrap(self, key_id: str, ciphertext: bytes, aad: bytes) -> bytes:
        return b"short"


def test_kms_key_wraps_elsewhere() -> None:
    vault = Vault()
    register_kms("vault", vault)
    kek = find_kek("kms:vault/lake/2026", "encryption_key", "tier 'lake'")
    assert kek.id == "kms:vault/lake/2026"
    assert kek.unwrap(kek.wrap(KEY, b"aad"), b"aad") == KEY
    assert vault.calls == [("wrap", "lake/2026"), ("unwrap", "lake/2026")]


def test_kms_failure_is_typed_and_shows_no_key() -> None:
    register_kms("sick", Sick())
    kek = find_kek("kms:sick/k", "encryption_key", "tier 'lake'")
    with pytest.raises(Unavailable, match="RuntimeError") as caught:
        kek.wrap(KEY, b"")
    assert KEY.hex() not in str(caught.value)
    assert caught.value.__cause__ is None  # a traceback would show the message of the service
    assert caught.value.__suppress_context__
    with pytest.raises(Unauthentic):
        kek.unwrap(b"wrapped", b"")


@pytest.mark.parametrize("reference", ["kms:", "kms:vault", "kms:vault/", "kms:/k", "kms:no-such-service/k"])
def test_kms_reference_that_names_nothing_is_refused(reference: str) -> None:
    with pytest.raises(TieringError) as caught:
        find_kek(reference, "encryption_key", "tier 'lake'").wrap(KEY, b"")
    assert isinstance(caught.value, ConfigError)


def test_kms_comes_by_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "hsm-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hsm\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[tiering.kms]\nhsm = hsm_of_a_test:box\n")
    (tmp_path / "hsm_of_a_test.py").write_text(
        "class Box:\n"
        "    wrap = staticmethod(lambda key_id, plaintext, aad: plaintext[::-1])\n"
        "    unwrap = staticmethod(lambda key_id, ciphertext, aad: ciphertext[::-1])\n"
        "box = Box()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    kek = find_kek("kms:hsm/k", "encryption_key", "tier 'lake'")
    assert kek.unwrap(kek.wrap(KEY, b""), b"") == KEY


def test_a_tier_under_a_kms_key_rotates_to_a_file(make_tier: Callable[..., Tier], tmp_path: Path) -> None:
    vault = Vault()
    register_kms("vault", vault)
    reference = "kms:vault/lake"
    small(make_tier("lake", options={"encryption_key": reference}))
    calls = len(vault.calls)
    lake = make_tier(
        "lake", options={"encryption_key": key_file(tmp_path), "encryption_previous_key": reference}
    )
    open_corpus(lake, "web")
    assert vault.calls[calls:] == [("unwrap", "lake")]  # once a process and corpus, not once an object
    assert rotate_key(lake, "web")
    assert open_corpus(make_tier("lake", options={"encryption_key": key_file(tmp_path)}), "web").rows == 22


def test_find_kek_below_the_home_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    made = make_key_file(tmp_path / "key")
    assert find("file:~/key") == made


def test_key_file_that_cannot_be_written_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tiering.encryption.kek.os.fsync", full)
        with pytest.raises(ConfigError, match="No space left"):
            make_key_file(tmp_path / "key")
    assert not list(tmp_path.iterdir())
    assert make_key_file(tmp_path / "key")
