"""The key that a user brings (key encryption key): found by its reference, used to wrap corpus keys.

A reference is ``file:/path`` or ``env:NAME`` of a key of 256 random bits, or ``kms:NAME/KEY-ID``.

Invariant: a key is resolved where it is used and kept nowhere; what is shown and stored of it is its id, a
digest from which nobody finds a random key. A key that could be guessed is refused.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from blake3 import blake3

from tiering.encryption.aead import KEY_BYTES, Cipher, Unauthentic, random_bytes
from tiering.encryption.kms import find_kms
from tiering.errors import ConfigError, TieringError, Unavailable

_ID_CONTEXT: Final = "corpus-tiering 2026-11-24 id of a key encryption key"
_ID_BYTES: Final = 16
_MAX_FILE_BYTES: Final = 4096
_MIN_DISTINCT_BYTES: Final = 16  # of 32 random ones about 30 are; fewer than 16 never happen
_KMS: Final = re.compile(r"kms:([A-Za-z0-9._-]+)/(\S+)")


class KeyEncryptionKey(Protocol):
    """What wraps a corpus key."""

    @property
    def id(self) -> str:
        """Names the key and tells nothing of it."""

    def wrap(self, key: bytes, aad: bytes) -> bytes:
        """Seal a corpus key."""

    def unwrap(self, wrapped: bytes, aad: bytes) -> bytes:
        """The opposite; `Unauthentic` when it was not sealed so."""


class LocalKey:
    """A key that this process holds."""

    __slots__ = ("_cipher", "id")

    def __init__(self, key: bytes) -> None:
        self.id = key_id(key)
        self._cipher = Cipher(key)

    def wrap(self, key: bytes, aad: bytes) -> bytes:
        """See `KeyEncryptionKey`."""
        return self._cipher.wrap(key, aad)

    def unwrap(self, wrapped: bytes, aad: bytes) -> bytes:
        """See `KeyEncryptionKey`."""
        return self._cipher.unwrap(wrapped, aad)

    def __repr__(self) -> str:
        return f"<LocalKey {self.id}>"


@dataclass(frozen=True, slots=True)
class KmsKey:
    """A key that a key management service holds."""

    service: str
    key: str
    where: str

    @property
    def id(self) -> str:
        """The reference itself."""
        return f"kms:{self.service}/{self.key}"

    def wrap(self, key: bytes, aad: bytes) -> bytes:
        """See `KeyEncryptionKey`."""
        provider = find_kms(self.service, self.where)
        try:
            return bytes(provider.wrap(self.key, key, aad))
        except TieringError:
            raise
        except Exception as error:  # noqa: BLE001  # foreign code, which may raise anything
            raise self._unavailable(error) from None  # its traceback could show the corpus key

    def unwrap(self, wrapped: bytes, aad: bytes) -> bytes:
        """See `KeyEncryptionKey`."""
        provider = find_kms(self.service, self.where)
        try:
            key = bytes(provider.unwrap(self.key, wrapped, aad))
        except TieringError:
            raise
        except Exception as error:  # noqa: BLE001
            raise self._unavailable(error) from None
        if len(key) != KEY_BYTES:
            raise Unauthentic
        return key

    def _unavailable(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"{self.id} of {self.where} refused or did not answer: {type(error).__name__}",
            hint="Look at the service's own log, and whether this user may use that key",
        )


def key_id(key: bytes) -> str:
    """The id of a key: 128 bits of a digest of its own kind."""
    return f"blake3:{blake3(key, derive_key_context=_ID_CONTEXT).digest(_ID_BYTES).hex()}"


def make_key_file(path: Path) -> str:
    """Write a new random key to a new file that only its owner can read; returns the key's id.

    Raises:
        ConfigError: the file is there, or cannot be written.
    """
    key = random_bytes(KEY_BYTES)
    made = False
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        made = True
        with open(descriptor, "w") as file:  # noqa: PTH123
            file.write(key.hex() + "\n")
            file.flush()
            os.fsync(descriptor)
    except FileExistsError:
        hint = "A key is never written over: choose another name"
        raise ConfigError(f"the file {str(path)!r} is there already", hint=hint) from None
    except OSError as error:
        if made:  # half a key is none
            path.unlink(missing_ok=True)
        raise ConfigError(f"no key can be written to {str(path)!r}: {error.strerror}") from error
    return key_id(key)


def find_kek(reference: str, option: str, where: str) -> KeyEncryptionKey:
    """The key that a reference names.

    Args:
        reference: ``file:/path``, ``env:NAME`` or ``kms:NAME/KEY-ID``.
        option: the option that holds it, for messages.
        where: what the option belongs to, such as ``tier 'lake'``.

    Raises:
        ConfigError: it is missing, readable by others, of the wrong size or could be guessed. Never shows it.
    """
    where = f"option {option!r} of {where}"
    kind, _, name = reference.partition(":")
    if kind == "kms":
        found = _KMS.fullmatch(reference)
        if not found:
            raise ConfigError(
                f"{where} is not of the form kms:NAME/KEY-ID", hint=f'{option} = "kms:vault/lake"'
            )
        return KmsKey(found[1], found[2], where)
    if kind == "env":
        what, data = f"environment variable {name!r}", os.environ.get(name, "").encode(errors="replace")
    else:
        what, data = f"key file {name!r}", _read_private(os.path.expanduser(name), where)  # noqa: PTH111  # never fails
    if not data:
        raise ConfigError(
            f"{what}, which {where} refers to, is missing or empty", hint="Make one: tiering keygen PATH"
        )
    return LocalKey(_check(_decode(data), f"{what}, which {where} refers to,"))


def _read_private(path: str, where: str) -> bytes:
    """A key file's bytes, ``b""`` where it cannot be read; refused when others can read it too."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would keep us waiting
    except (OSError, ValueError):
        return b""
    try:  # what is looked at is what is read
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            return b""
        if mode & 0o077:
            raise ConfigError(
                f"key file {path!r}, which {where} refers to, is open to others (mode {mode & 0o777:04o})",
                hint=f"chmod 600 {path}; as a Kubernetes secret, say defaultMode: 0400",
            )
        return os.read(descriptor, _MAX_FILE_BYTES)
    finally:
        os.close(descriptor)


def _decode(data: bytes) -> bytes:
    """The key in a file or variable: raw, or as hexadecimal digits or base64 with white space around."""
    if len(data) == KEY_BYTES:
        return data
    text = data.strip()
    try:
        if len(text) == 2 * KEY_BYTES:
            return binascii.unhexlify(text)
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""


def _check(key: bytes, what: str) -> bytes:
    hint = "Make one: tiering keygen PATH"
    if len(key) != KEY_BYTES:
        raise ConfigError(
            f"{what} is not a key of {KEY_BYTES} bytes, raw, in hexadecimal or base64", hint=hint
        )
    if len(set(key)) < _MIN_DISTINCT_BYTES or all(0x20 <= byte < 0x7F for byte in key):
        raise ConfigError(f"{what} is no random key: it could be guessed", hint=hint)
    return key
