"""Streams bytes to the medium of a block tier: gathered, hashed and written at the same time.

Invariant: a digest made here is that of the bytes that were handed to the medium, and when a call ends, with
an error too, nothing of it is still running.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import Final

from tiering.digest import Buffer, Hasher, digest
from tiering.stores.helpers import Helpers
from tiering.stores.pages import (
    HUGE_PAGE_BYTES,
    PAGE_BYTES,
    PIECE_BYTES,
    address_of,
    borrowed,
    copy,
    round_up,
)

_BOUNCES: Final = 3  # one is filled while the medium takes two, the later of which is hashed
_HASHERS: Final = 2  # one core hashes more slowly than a good medium writes


def write_hashed(
    helpers: Helpers, fd: int, offset: int, buffers: Iterable[Buffer], known: str | None = None
) -> str:
    """Write the concatenation of `buffers` from page `offset` on, the last page padded with zeros.

    Returns the BLAKE3 digest of exactly the bytes handed to the medium, even when another thread changes
    `buffers` meanwhile: only what is read-only, and on huge pages, is written from where it lies. With a
    `known` digest nothing is hashed, that one is returned, and any memory on huge pages is written so.

    Raises:
        OSError: the medium failed; the message says where.
    """
    pieces = _pieces(buffers)
    piece, following = next(pieces, []), next(pieces, None)
    with contextlib.ExitStack() as stack:
        if following is None:
            view, nbytes = _gather(piece, stack.enter_context(borrowed(PIECE_BYTES)), known is not None)
            _put(fd, offset, view)
            return digest(view[:nbytes]) if known is None else known
        bounces = [stack.enter_context(borrowed(PIECE_BYTES)) for _ in range(_BOUNCES)]
        hasher = Hasher(threads=_HASHERS)
        running: list[Future[None]] = []
        gathering = helpers.start(_gather, piece, bounces[0], known is not None)
        try:
            for turn in itertools.count(1):
                view, nbytes = gathering.result()
                running.append(helpers.start(_put, fd, offset, view))
                offset += view.nbytes
                if following:
                    if len(running) == _BOUNCES:
                        running.pop(0).result()  # its bounce is the next to be filled
                    bounce = bounces[turn % _BOUNCES]
                    gathering = helpers.start(_gather, following, bounce, known is not None)
                if known is None:
                    hasher.update(view[:nbytes])
                if not following:
                    break
                following = next(pieces, None)
            for put in running:
                put.result()
        finally:
            wait([gathering])
            wait(running)
        return hasher.hexdigest() if known is None else known


def placed(error: OSError, doing: str, offset: int, nbytes: int) -> OSError:
    """The error, saying also which bytes it is about."""
    where = f"{error.strerror} {doing} {nbytes} bytes from byte {offset} on"
    return OSError(error.errno, where, error.filename)


def _pieces(buffers: Iterable[Buffer]) -> Iterator[list[memoryview]]:
    """The concatenation of `buffers` in views of `PIECE_BYTES` together, the last ones less."""
    piece: list[memoryview] = []
    room = PIECE_BYTES
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        while view.nbytes:
            piece.append(view[:room])
            view, room = view[room:], room - piece[-1].nbytes
            if not room:
                yield piece
                piece, room = [], PIECE_BYTES
    if piece:
        yield piece


def _gather(piece: Sequence[memoryview], bounce: memoryview, unhashed: bool) -> tuple[memoryview, int]:
    """The bytes of `piece` in whole pages, the last padded with zeros, and how many they are.

    In `bounce`, unless they lie in memory that the medium takes as is, and cannot change or are `unhashed`.
    """
    if len(piece) == 1 and (unhashed or piece[0].readonly) and _is_ready(piece[0]):
        return piece[0], piece[0].nbytes
    filled = 0
    for view in piece:
        copy(bounce[filled : filled + view.nbytes], view)
        filled += view.nbytes
    end = round_up(filled)
    bounce[filled:end] = bytes(end - filled)
    return bounce[:end], filled


def _is_ready(view: memoryview) -> bool:
    """Whether direct I/O takes it from where it lies, and is fast."""
    return view.nbytes % PAGE_BYTES == 0 and address_of(view) % HUGE_PAGE_BYTES == 0


def _put(fd: int, offset: int, view: memoryview) -> None:
    while view.nbytes:
        try:
            put = os.pwrite(fd, view, offset)
        except OSError as error:
            raise placed(error, "writing", offset, view.nbytes) from error
        view, offset = view[put:], offset + put
