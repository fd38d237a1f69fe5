"""What is done with corpus keys: told, wrapped by another key, destroyed.

Invariant: a rotation replaces one small object by one write, so at any instant the key opens by the old
user's key or by the new one; nothing else is rewritten. What was shredded stays so: when `shred` returns,
no corpus key is there.
"""

from __future__ import annotations

from dataclasses import dataclass

from tiering import process
from tiering.claim import claimed, claims
from tiering.digest import digest
from tiering.encryption.corpus_keys import read_document
from tiering.encryption.frames import MAGIC, is_ciphertext
from tiering.encryption.keyring import ALGORITHM, KeyDocument, key_object
from tiering.errors import Conflict, Corrupt, NotFound, UsageError
from tiering.keys import INTERNAL, validate_name
from tiering.reservation import Reservation, reservations
from tiering.stores.base import Store
from tiering.stores.encrypted import Encrypted, overwrite
from tiering.stores.wrappers import Wrapper
from tiering.tier import Tier


@dataclass(frozen=True, slots=True)
class EncryptionInfo:
    """How a corpus is encrypted on a tier."""

    algorithm: str
    kek: str
    """Id of the user's key, or the reference of a key management service's."""
    key_id: str
    """Of the corpus key; another after the corpus was forgotten and ingested anew."""


def encryption_of(tier: Tier, name: str) -> EncryptionInfo | None:
    """How corpus `name` is encrypted on `tier`; None where it is not. Needs no key.

    Raises:
        Corrupt: the object that says so is damaged or shredded.
    """
    layer = _layer(tier.store)
    document = read_document(layer.inner if layer else tier.store, validate_name(name))
    return None if document is None else EncryptionInfo(ALGORITHM, document.kek, document.key_id)


def rotate_key(tier: Tier, name: str) -> bool:
    """Wrap the key of corpus `name` by the `encryption_key` of the tier, from its `encryption_previous_key`.

    So is the key of the tier's own objects, without which nothing could be written by the new key alone. No
    data is rewritten. Killed at any instant, it leaves the corpus readable by one of the two; again finishes
    it.

    Returns:
        Whether the corpus's key was another's.

    Raises:
        ConfigError: neither key opens it. NotFound: no such corpus key. UsageError: read-only or not
        encrypted. Conflict: somebody writes the corpus right now.
    """
    layer = _writable(tier)
    _document(layer.inner, validate_name(name))
    with claimed(tier.store, name, digest(b"rotate"), shared=False) as claim:
        rotated = _rewrap(layer, name)
        if not layer.inner.exists(claims(tier.store, name).key(claim.number)):
            _destroy(layer.inner, key_object(name))
            raise Conflict("the corpus was shredded meanwhile", tier=tier.name, key=key_object(name))
    if read_document(layer.inner, INTERNAL) is not None:
        line = reservations(tier.store)
        # Of no bytes: while it is there, the folder is not empty and its key not dropped and made anew.
        mine = line.take(lambda number, token, _: Reservation(number, name, 0, process.current(), token))
        try:
            _rewrap(layer, INTERNAL)
        finally:
            line.give_back(mine)
    if read_document(layer.inner, "") is not None:  # of objects that a user of the store put at its root
        _rewrap(layer, "")
    return rotated


def _rewrap(layer: Encrypted, scope: str) -> bool:
    """Wrap the key of a folder by the current key; whether anything was to be done."""
    document = layer.keyring.rewrap(_document(layer.inner, scope), scope)
    if document is None:
        return False
    layer.inner.write(key_object(scope), [document.encode()])
    written = _document(layer.inner, scope)
    layer.keyring.open(written, scope)
    if written != document:
        raise Conflict("the corpus key was replaced meanwhile", tier=layer.name, key=key_object(scope))
    return True


def shred(tier: Tier, name: str) -> int:
    """Destroy the key of corpus `name` on `tier`, and delete the ciphertexts that nobody can read any more.

    The key is overwritten with zeros, in place where its bytes have an address, and deleted. A store that
    keeps old versions or snapshots keeps the wrapped key in them: then destroy the user's key too, or let
    them expire. A process that has the corpus open keeps the key until it closes the tier.

    Returns:
        Bytes of ciphertext deleted.

    Raises:
        Conflict: somebody writes the corpus right now, or made a key anew meanwhile.
        UsageError: the tier is read-only or not encrypted.
    """
    layer = _writable(tier)
    store, key = layer.inner, key_object(validate_name(name))
    try:
        there = read_document(store, name) is not None
    except Corrupt:  # damaged, or zeros that a killed shred left: no claim can be read or made
        there = False
    if there:
        with claimed(tier.store, name, digest(b"shred"), shared=False):
            pass  # nobody else is at work; a claim taken from here on fails at what it creates
    _destroy(store, key)
    store.sweep(name)  # of a rotation that was killed, say
    layer.forget(name)
    freed = _delete_ciphertexts(store, name)
    if store.exists(key):
        hint = "Shred it again once that writer has ended"
        raise Conflict("a corpus key was made or put back meanwhile", tier=tier.name, key=key, hint=hint)
    return freed


def _destroy(store: Store, key: str) -> None:
    """Overwrite the object of a corpus key with zeros, and delete it."""
    if store.exists(key):
        overwrite(store, key)
        store.delete(key)


def _delete_ciphertexts(store: Store, name: str) -> int:
    """Delete every object of a folder that is a ciphertext of this engine; first what makes it visible."""
    freed = 0
    head = memoryview(bytearray(len(MAGIC)))
    for prefix in (f"{name}/{INTERNAL}", name):
        for info in list(store.list(prefix)):
            if info.nbytes < len(MAGIC):
                continue
            store.read_into(info.key, 0, head)
            if is_ciphertext(head):
                store.delete(info.key)
                freed += info.nbytes
    return freed


def _document(store: Store, name: str) -> KeyDocument:
    document = read_document(store, name)
    if document is None:
        raise NotFound(
            f"no encrypted corpus {name!r}", tier=store.name, hint="'tiering ls' lists what is there"
        )
    return document


def _writable(tier: Tier) -> Encrypted:
    if tier.read_only:
        raise UsageError("the tier is read-only", tier=tier.name, hint="Open it without read_only")
    layer = _layer(tier.store)
    if layer is None:
        hint = 'Open it with options = {encryption_key = "file:/path/to/key"}'
        raise UsageError("the tier is not encrypted", tier=tier.name, hint=hint)
    return layer


def _layer(store: Store) -> Encrypted | None:
    """The wrapper that encrypts, among those of a store."""
    while not isinstance(store, Encrypted):
        if not isinstance(store, Wrapper):
            return None
        store = store.inner
    return store
