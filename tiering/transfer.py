"""Moves the bytes of one object, verified on both sides. Runs inside tasks.

Invariant: an object counts as present on a tier only after its bytes were read back from there and had the
digest that the manifest names.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final, Literal

from tiering.digest import Buffer, Hasher, digest
from tiering.errors import Corrupt, NotFound, Unavailable
from tiering.stores.base import Store
from tiering.stores.helpers import Helpers
from tiering.stores.pages import PIECE_BYTES, borrowed, new_buffer

_STREAMED: Final = ("file", "block")
"""Kinds of tiers that are read in order; a request to an object store brings its parts in parallel."""

log = logging.getLogger("tiering.transfer")

Outcome = Literal["moved", "skipped"]


def is_verified(store: Store, key: str, nbytes: int, expected: str) -> bool:
    """Whether `key` is there, whole and right, by reading all of it."""
    try:
        if store.stat(key).nbytes != nbytes:
            return False
        return _digest_there(store, key, nbytes) == expected
    except (NotFound, Corrupt):
        return False


def _digest_there(store: Store, key: str, nbytes: int) -> str:
    """Digest of the bytes of `key` as they are read back, without holding all of them."""
    if store.kind == "object":  # its requests cost more than the memory: all at once, in parallel
        return digest(store.read(key))
    with borrowed(PIECE_BYTES) as one, borrowed(PIECE_BYTES) as other:
        return _read_and_digest(store, key, nbytes, [one, other])


def read_verified(store: Store, key: str, nbytes: int, expected: str) -> Buffer:
    """All bytes of `key`.

    Raises:
        NotFound: it is not there. Corrupt: it has another length or digest.
    """
    if store.kind not in _STREAMED or nbytes <= PIECE_BYTES:
        data = store.read(key)
        found, name = len(data), digest(data)
    elif (found := store.stat(key).nbytes) == nbytes:
        data = new_buffer(nbytes)
        view = memoryview(data)
        pieces = [view[start : start + PIECE_BYTES] for start in range(0, nbytes, PIECE_BYTES)]
        name = _read_and_digest(store, key, nbytes, pieces)
    if found == nbytes and name == expected:
        return data
    raise Corrupt(
        f"{found} bytes read, not the {nbytes} bytes that the manifest names {expected[:12]}",
        tier=store.name,
        key=key,
        hint="'tiering verify' lists all such objects; move the corpus here again from another tier",
    )


def _read_and_digest(store: Store, key: str, nbytes: int, buffers: Sequence[memoryview]) -> str:
    """Digest of `key`, read in pieces into `buffers` in turns: one is hashed while the next is filled."""

    def read(number: int) -> memoryview:
        offset = number * PIECE_BYTES
        view = buffers[number % len(buffers)][: nbytes - offset]
        store.read_into(key, offset, view)
        return view

    hasher = Hasher()
    pieces = -(-nbytes // PIECE_BYTES)
    if pieces <= 1:
        hasher.update(read(0))
        return hasher.hexdigest()
    with Helpers("digest", threads=1) as helpers:
        reading = helpers.start(read, 0)
        for following in range(1, pieces + 1):
            view = reading.result()
            if following < pieces:
                reading = helpers.start(read, following)
            hasher.update(view)
    return hasher.hexdigest()


def put_verified(store: Store, key: str, buffers: Sequence[Buffer], nbytes: int, expected: str) -> Outcome:
    """Write an object and read it back, unless it is there and right.

    Raises:
        Corrupt: what was read back differs from what was written.
    """
    if _has_verified(store, key, nbytes, expected):
        return "skipped"
    write_verified(store, key, buffers, nbytes, expected)
    return "moved"


def copy_verified(
    source: Store,
    target: Store,
    key: str,
    nbytes: int,
    expected: str,
    *,
    before_write: Callable[[], None] | None = None,
) -> Outcome:
    """Copy one object from tier to tier; nothing is read from the source when the target has it.

    What `before_write` raises, when the bytes are here and right, prevents it.
    """
    if _has_verified(target, key, nbytes, expected):
        return "skipped"
    data = memoryview(read_verified(source, key, nbytes, expected)).toreadonly()  # so nobody need copy it
    if before_write is not None:
        before_write()
    write_verified(target, key, [data], nbytes, expected)
    return "moved"


def _has_verified(store: Store, key: str, nbytes: int, expected: str) -> bool:
    """The same of what is there before a write: what lies on a bad sector, say, is to be written anew."""
    try:
        return is_verified(store, key, nbytes, expected)
    except Unavailable as error:  # if the whole tier is, the write says so
        log.warning("%s on tier %s cannot be read, and is written anew: %s", key, store.name, error)
        return False


def write_verified(store: Store, key: str, buffers: Sequence[Buffer], nbytes: int, expected: str) -> None:
    """Write an object over whatever is there, and read it back.

    Raises:
        Corrupt: what was read back differs from what was written.
    """
    store.write(key, buffers, digest=expected)
    if not is_verified(store, key, nbytes, expected):
        raise Corrupt(
            "read back other bytes than were written",
            tier=store.name,
            key=key,
            hint="The medium or the path to it is damaged; look at its health",
        )
