"""Moves the bytes of one object, verified on both sides. Runs inside tasks.

Invariant: an object counts as present on a tier only after its bytes were read back from there and had the
digest that the manifest names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Literal

from tiering.digest import Buffer, Hasher, digest
from tiering.errors import Corrupt, NotFound
from tiering.stores.base import Store
from tiering.stores.pages import PIECE_BYTES, borrowed

_LARGE_BYTES: Final = 4 << 20
"""From here on the pages of a new buffer cost more than asking for the length first."""

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
    hasher = Hasher()
    with borrowed(min(nbytes, PIECE_BYTES)) as buffer:
        for offset in range(0, nbytes, PIECE_BYTES):
            piece = buffer[: min(PIECE_BYTES, nbytes - offset)]
            store.read_into(key, offset, piece)
            hasher.update(piece)
    return hasher.hexdigest()


def read_verified(store: Store, key: str, nbytes: int, expected: str) -> Buffer:
    """All bytes of `key`.

    Raises:
        NotFound: it is not there. Corrupt: it has another length or digest.
    """
    data = store.read(key)
    if len(data) != nbytes or digest(data) != expected:
        raise _other_bytes(store, key, len(data), nbytes, expected)
    return data


@contextmanager
def _fetched(store: Store, key: str, nbytes: int, expected: str) -> Iterator[Buffer]:
    """Like `read_verified`, but the bytes are there only during the block: a large buffer is used again."""
    if nbytes < _LARGE_BYTES or store.kind == "object":  # whose parts come in parallel into memory of its own
        yield read_verified(store, key, nbytes, expected)
        return
    found = store.stat(key).nbytes
    if found != nbytes:
        raise _other_bytes(store, key, found, nbytes, expected)
    with borrowed(nbytes) as data:
        store.read_into(key, 0, data)
        if digest(data) != expected:
            raise _other_bytes(store, key, nbytes, nbytes, expected)
        yield data


def _other_bytes(store: Store, key: str, found: int, nbytes: int, expected: str) -> Corrupt:
    return Corrupt(
        f"{found} bytes read, not the {nbytes} bytes that the manifest names {expected[:12]}",
        tier=store.name,
        key=key,
        hint="'tiering verify' lists all such objects; move the corpus here again from another tier",
    )


def put_verified(store: Store, key: str, buffers: Sequence[Buffer], nbytes: int, expected: str) -> Outcome:
    """Write an object and read it back, unless it is there and right.

    Raises:
        Corrupt: what was read back differs from what was written.
    """
    if is_verified(store, key, nbytes, expected):
        return "skipped"
    write_verified(store, key, buffers, nbytes, expected)
    return "moved"


def copy_verified(source: Store, target: Store, key: str, nbytes: int, expected: str) -> Outcome:
    """Copy one object from tier to tier; nothing is read from the source when the target has it."""
    if is_verified(target, key, nbytes, expected):
        return "skipped"
    with _fetched(source, key, nbytes, expected) as data:
        write_verified(target, key, [data], nbytes, expected)
    return "moved"


def write_verified(store: Store, key: str, buffers: Sequence[Buffer], nbytes: int, expected: str) -> None:
    """Write an object over whatever is there, and read it back.

    Raises:
        Corrupt: what was read back differs from what was written.
    """
    store.write(key, buffers)
    if not is_verified(store, key, nbytes, expected):
        raise Corrupt(
            "read back other bytes than were written",
            tier=store.name,
            key=key,
            hint="The medium or the path to it is damaged; look at its health",
        )
