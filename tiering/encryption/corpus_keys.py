"""The corpus keys of one store: found, made by the first write, hidden, and gone with the last object.

Invariant: a key is made only in a folder that holds nothing, by conditional create, and read back: racing
writers come to use one. A folder whose key is gone is never given another, under which the old objects
would be lost for good; what is there is plainly refused.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Final, NoReturn

from tiering.encryption.frames import MAGIC, is_ciphertext
from tiering.encryption.keyring import (
    KEY_NAME,
    MAX_DOCUMENT_BYTES,
    CorpusKey,
    KeyDocument,
    Keyring,
    key_object,
)
from tiering.errors import ConfigError, Corrupt, NotFound, TieringError, Unavailable
from tiering.keys import INTERNAL
from tiering.stores.base import Store

_NO_KEY: Final = f"Put {INTERNAL}/{KEY_NAME} back from a copy of this folder, or shred the corpus"


def scope_of(key: str) -> str:
    """The folder whose corpus key encrypts `key`; ``""`` for a key outside of any folder."""
    folder, slash, _ = key.partition("/")
    return folder if slash else ""


def is_reserved(key: str) -> bool:
    """Whether `key` is where a corpus key lies."""
    parts = key.split("/")
    return len(parts) in (2, 3) and parts[-2:] == [INTERNAL, KEY_NAME]


def read_document(store: Store, scope: str) -> KeyDocument | None:
    """What the key object of a folder on an unwrapped store says; None where there is none.

    Raises:
        Corrupt: it is damaged or shredded. UnsupportedVersion: a newer engine wrote it.
    """
    key = key_object(scope)
    try:
        if store.stat(key).nbytes > MAX_DOCUMENT_BYTES:
            raise Corrupt("the object that holds the corpus key is too large", tier=store.name, key=key)
        data = store.read(key)
    except NotFound:
        return None
    try:
        return KeyDocument.decode(data)
    except TieringError as error:
        raise placed(error, store, key) from None


def placed(error: TieringError, store: Store, key: str) -> TieringError:
    """The error, naming the tier and key where it names none."""
    error.tier, error.key = error.tier or store.name, error.key or key
    return error


class CorpusKeys:
    """The corpus keys on `store`, as `keyring` opens them; usable from many threads."""

    def __init__(self, store: Store, keyring: Keyring) -> None:
        self._store = store
        self._keyring = keyring
        self._known: dict[str, CorpusKey] = {}
        self._witness: dict[str, str] = {}  # for a folder, an object that was there and was not deleted here
        self._making = threading.Lock()

    def forget(self, scope: str) -> None:
        """Forget the key of a folder; the next use reads it again."""
        self._known.pop(scope, None)

    def clear(self) -> None:
        """Forget all keys."""
        self._known.clear()

    def for_reading(self, scope: str, key_id: bytes) -> CorpusKey:
        """The key of a folder, which must have this id.

        Raises:
            Corrupt: it is gone, damaged, or another. ConfigError: the user's key does not open it.
        """
        known = self._known.get(scope)
        if known is None or known.id != key_id:
            document = read_document(self._store, scope)
            if document is None:
                raise Corrupt("the corpus key of this encrypted object is gone", hint=_NO_KEY)
            known = self._open(document, scope)
        if known.id != key_id:
            raise Corrupt(
                "the object was encrypted under another corpus key: of another or an earlier corpus"
            )
        return known

    def for_writing(self, scope: str) -> CorpusKey:
        """The key of a folder, made where nothing is there yet.

        One that is known is looked at again: others may have destroyed it, and what it encrypts nobody reads.

        Raises:
            ConfigError: the user's key does not open it, or the folder is not encrypted.
            Corrupt: it is damaged, or gone and the folder is not empty.
        """
        known = self._known.get(scope)
        document = read_document(self._store, scope)
        if document is None:
            with self._making:
                document = self._make(scope)
        if known is None or known.id.hex() != document.key_id:
            known = self._open(document, scope)
        return known

    def refuse_plain(self, key: str) -> NoReturn:
        """Raise the error for an object that is read and is no ciphertext."""
        if read_document(self._store, scope_of(key)) is not None:
            what = "the encrypted object is damaged, or another was put in its place"
            raise Corrupt(what, tier=self._store.name, key=key)
        raise ConfigError(
            "the object is not encrypted, but the tier has an encryption_key",
            tier=self._store.name,
            key=key,
            hint="Open the tier without it; to encrypt the corpus, move it to an encrypted tier",
        )

    def is_hidden(self, name: str) -> bool:
        """Whether `name` is a key object, or a folder that holds nothing but one."""
        if is_reserved(name):
            return True
        depth = name.count("/")
        if depth > 1 or (depth == 1 and not name.endswith(f"/{INTERNAL}")):
            return False
        names = self._store.children(name)
        return len(names) == 1 and self.is_hidden(f"{name}/{names[0]}")

    def written(self, key: str) -> None:
        """Note that `key` is there."""
        self._witness[scope_of(key)] = key

    def deleted(self, key: str) -> None:
        """Drop the key of a folder whose last object this was; put it back if something came meanwhile.

        Objects are listed only when the one that was known to remain is deleted: the last one listed is the
        next.
        """
        scope = scope_of(key)
        if not scope or self._witness.get(scope, key) != key:
            return
        remaining = self._last_object(scope)
        if remaining is not None:
            self._witness[scope] = remaining
            return
        self._witness.pop(scope, None)
        try:
            document = self._store.read(key_object(scope))
        except NotFound:
            return
        self._store.delete(key_object(scope))
        if self._last_object(scope) is not None:
            with contextlib.suppress(FileExistsError):
                self._store.write(key_object(scope), [document], if_absent=True)
        self.forget(scope)

    def _open(self, document: KeyDocument, scope: str) -> CorpusKey:
        try:
            known = self._known[scope] = self._keyring.open(document, scope)
        except TieringError as error:
            raise placed(error, self._store, key_object(scope)) from None
        return known

    def _make(self, scope: str) -> KeyDocument:
        there = self._last_object(scope) if scope else None
        document = read_document(self._store, scope)  # whoever wrote what is there made its key before
        if document is not None:
            return document
        if there is not None:
            self._refuse_keyless(there)
        with contextlib.suppress(FileExistsError):
            made = self._keyring.create(scope).encode()
            self._store.write(key_object(scope), [made], if_absent=True)
        document = read_document(self._store, scope)
        if document is None:
            raise Unavailable("the corpus key was deleted as it was made", tier=self._store.name)
        return document

    def _refuse_keyless(self, key: str) -> NoReturn:
        head = memoryview(bytearray(min(self._store.stat(key).nbytes, len(MAGIC))))
        self._store.read_into(key, 0, head)
        if is_ciphertext(head):
            what = "the objects of this folder are encrypted, and their corpus key is gone"
            raise Corrupt(what, tier=self._store.name, key=key, hint=_NO_KEY)
        raise ConfigError(
            "the folder holds objects that are not encrypted, but the tier has an encryption_key",
            tier=self._store.name,
            key=key,
            hint="Choose another corpus name, or open the tier without that option",
        )

    def _last_object(self, scope: str) -> str | None:
        last = None
        for info in self._store.list(scope):
            last = last if is_reserved(info.key) else info.key
        return last
