"""The corpus key: one random key a corpus, wrapped by the user's key in one small object beside it.

Invariant: the object holds no secret, and a wrapped key opens only for the corpus, id and user's key that it
was sealed for: another corpus's object in its place is found out.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Final

from tiering.credentials import ENCRYPTION_OPTIONS
from tiering.digest import Buffer
from tiering.encryption import aead
from tiering.encryption.aead import KEY_BYTES, Cipher, Unauthentic
from tiering.encryption.kek import KeyEncryptionKey, find_kek
from tiering.errors import ConfigError, Corrupt, UnsupportedVersion
from tiering.keys import INTERNAL

FORMAT: Final = "tiering-encryption"
FORMAT_VERSION: Final = 1
ALGORITHM: Final = "AES-256-GCM"
KEY_NAME: Final = "encryption.json"
KEY_ID_BYTES: Final = 16
_KINDS: Final = {"format": FORMAT, "format_version": FORMAT_VERSION, "algorithm": ALGORITHM}
_FIELDS: Final = ("corpus", "key_id", "kek", "wrapped_key")
MAX_DOCUMENT_BYTES: Final = 1 << 14


def key_object(corpus: str) -> str:
    """Where a corpus's key lies; that of objects outside of any folder for ``""``."""
    return f"{corpus}/{INTERNAL}/{KEY_NAME}" if corpus else f"{INTERNAL}/{KEY_NAME}"


@dataclass(frozen=True, slots=True)
class KeyDocument:
    """What the object says."""

    corpus: str
    key_id: str
    """Of the corpus key: 32 hexadecimal digits, random."""
    kek: str
    """Id of the key that wraps it."""
    wrapped: bytes = field(repr=False)

    @property
    def aad(self) -> bytes:
        """What the wrapped key is bound to."""
        return _aad(self.corpus, self.key_id, self.kek)

    def encode(self) -> bytes:
        """The JSON document."""
        wrapped = base64.b64encode(self.wrapped).decode()
        values = dict(zip(_FIELDS, (self.corpus, self.key_id, self.kek, wrapped), strict=True))
        return json.dumps({**_KINDS, **values}, indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, data: Buffer) -> KeyDocument:
        """The opposite of `encode`.

        Raises:
            Corrupt: it is damaged or shredded. UnsupportedVersion: a newer engine wrote it.
        """
        data = bytes(data)
        if not any(data):
            raise Corrupt(
                "the corpus key was shredded", hint="What it encrypted is lost for good, as was wished"
            )
        try:
            fields = json.loads(data)
            kinds = {name: fields[name] for name in ("format", "format_version", "algorithm")}
            newer = kinds["format"] == FORMAT and kinds != _KINDS
            corpus, key_id, kek, wrapped = ("", "", "", "") if newer else (fields[name] for name in _FIELDS)
            texts = all(isinstance(value, str) for value in (corpus, key_id, kek))
            whole = newer or (kinds == _KINDS and texts and len(bytes.fromhex(key_id)) == KEY_ID_BYTES)
            secret = base64.b64decode(wrapped, validate=True)
        except (KeyError, TypeError, ValueError, RecursionError):
            whole = False
        if not whole:
            raise Corrupt("the object that holds the corpus key is damaged", hint=_RESTORE)
        if newer:
            raise UnsupportedVersion("the corpus key is of a newer format", hint="Read it by a newer engine")
        return cls(corpus, key_id, kek, secret)


_RESTORE: Final = "Restore it from a copy; without it nothing of the corpus can be read here"


def _aad(corpus: str, key_id: str, kek: str) -> bytes:
    return json.dumps([FORMAT, FORMAT_VERSION, ALGORITHM, corpus, key_id, kek]).encode()


@dataclass(frozen=True, slots=True)
class CorpusKey:
    """An unwrapped corpus key, ready to wrap and unwrap the keys of objects."""

    id: bytes
    cipher: Cipher = field(repr=False)


class Keyring:
    """Opens corpus keys by the keys that a tier's options refer to. It holds references only.

    Args:
        where: what they belong to, such as ``tier 'lake'``, for messages.
        current: reference of the key to wrap by.
        previous: of one that may still wrap corpus keys, during a rotation.
    """

    def __init__(self, where: str, current: str, previous: str | None = None) -> None:
        self._references = {ENCRYPTION_OPTIONS[0]: current} | (
            {ENCRYPTION_OPTIONS[1]: previous} if previous else {}
        )
        self._where = where

    def create(self, corpus: str) -> KeyDocument:
        """A new random key for a corpus."""
        return self._wrap(corpus, aead.random_bytes(KEY_ID_BYTES).hex(), aead.random_bytes(KEY_BYTES))

    def open(self, document: KeyDocument, corpus: str) -> CorpusKey:
        """The key that `document`, found in the folder of `corpus`, holds.

        Raises:
            ConfigError: another key wraps it. Corrupt: it was not wrapped so, or for another corpus.
        """
        return CorpusKey(bytes.fromhex(document.key_id), Cipher(self._unwrap(document, corpus)))

    def rewrap(self, document: KeyDocument, corpus: str) -> KeyDocument | None:
        """The same corpus key wrapped by the current key; None where it is."""
        key = self._unwrap(document, corpus)
        if document.kek == self._find(ENCRYPTION_OPTIONS[0]).id:
            return None
        return self._wrap(corpus, document.key_id, key)

    def _wrap(self, corpus: str, key_id: str, key: bytes) -> KeyDocument:
        kek = self._find(ENCRYPTION_OPTIONS[0])
        document = KeyDocument(corpus, key_id, kek.id, kek.wrap(key, _aad(corpus, key_id, kek.id)))
        # Before it takes the place of one that can be opened: who may encrypt perhaps may not decrypt.
        try:
            unwrapped = kek.unwrap(document.wrapped, document.aad)
        except Unauthentic:
            unwrapped = None
        if unwrapped != key:
            raise ConfigError(
                f"{self._where}: {kek.id} does not unwrap the corpus key that it has just wrapped",
                hint="Nothing was changed; look at that key, or at what wraps by it",
            )
        return document

    def _unwrap(self, document: KeyDocument, corpus: str) -> bytes:
        if document.corpus != corpus:
            raise Corrupt(
                f"the corpus key is that of {document.corpus!r}, not of {corpus!r}",
                hint="An encrypted corpus keeps its name. " + _RESTORE,
            )
        given = []
        for option in self._references:
            kek = self._find(option)
            if kek.id == document.kek:
                try:
                    return kek.unwrap(document.wrapped, document.aad)
                except Unauthentic:
                    raise Corrupt("the wrapped corpus key is damaged or forged", hint=_RESTORE) from None
            given.append(kek.id)
        raise ConfigError(
            f"the corpus is encrypted under the key {document.kek}, and given was {' and '.join(given)}",
            hint=f"Let {ENCRYPTION_OPTIONS[0]} or {ENCRYPTION_OPTIONS[1]} of the tier refer to that key",
        )

    def _find(self, option: str) -> KeyEncryptionKey:
        return find_kek(self._references[option], option, self._where)

    def __repr__(self) -> str:
        return f"<Keyring of {self._where}>"
