"""Encryption at rest around any store: what lies on the tier is ciphertext; names and sizes are not hidden.

Below each corpus folder one small object, ``.tiering/encryption.json``, holds the corpus key, wrapped by
the user's key; the wrapper never shows it. See `tiering.encryption.frames` for the format, and
docs/encryption.md for what this guards against and what not.

Invariant: bytes are handed out only after they were authenticated as written to that very key under the
corpus key that lies there. A plaintext is never taken for a ciphertext, nor written where ciphertext is
expected.

A write encrypts once, so a retry inside of this wrapper sends the same bytes. Headers of objects are
remembered by key: an object that was overwritten since does not open by its old header, and the new one is
read.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from tiering.digest import Buffer
from tiering.encryption import frames
from tiering.encryption.buffers import BufferPool
from tiering.encryption.corpus_keys import CorpusKeys, is_reserved, placed, scope_of
from tiering.encryption.frames import FRAME_BYTES, HEADER_BYTES, Sealed
from tiering.encryption.keyring import Keyring
from tiering.errors import Corrupt, NotFound, TieringError, Unavailable, UsageError
from tiering.keys import validate
from tiering.stores.base import Extent, ObjectInfo, Store, check_range, total_bytes
from tiering.stores.pages import new_buffer
from tiering.stores.wrappers import Wrapper

MAX_HEADERS: Final = 4096
"""Headers remembered, of about 1 KiB each."""
_WHOLE_BYTES: Final = 1 << 20  # up to here an object is read in one request
_LOCAL_FRAMES: Final = 16  # 4 MiB stay in the processor's cache between reading and decrypting
_REMOTE_FRAMES: Final = 256  # requests cost more than memory
_ATTEMPTS: Final = 16  # each of them fails only if the object was overwritten meanwhile


class Encrypted(Wrapper):
    """Encrypts what goes into `inner` and decrypts what comes out; `keyring` opens its corpus keys."""

    def __init__(self, inner: Store, keyring: Keyring) -> None:
        super().__init__(inner)
        self.keyring = keyring
        self.keys = CorpusKeys(inner, keyring)
        self._headers: OrderedDict[str, Sealed] = OrderedDict()
        self._pool = BufferPool()
        self._lock = threading.Lock()
        self._step = _REMOTE_FRAMES if inner.kind == "object" else _LOCAL_FRAMES

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        self._refuse_reserved(key)
        for _ in range(_ATTEMPTS):
            sealed = self._sealed(key, remembered=buffer.nbytes > 0 <= offset)
            try:
                check_range(self.name, key, offset, buffer.nbytes, sealed.nbytes)
                self._fill(key, sealed, offset, buffer)
            except Corrupt as error:
                self._check_replaced(key, sealed, error)
            else:
                return
        raise self._overwritten(key)

    def read(self, key: str) -> Buffer:
        self._refuse_reserved(key)
        for _ in range(_ATTEMPTS):
            info = self.inner.stat(key)
            if HEADER_BYTES <= info.nbytes <= _WHOLE_BYTES:
                try:
                    return self._read_whole(key, info.nbytes)
                except Corrupt:
                    if self.inner.stat(key) == info:
                        raise
                    continue
            sealed = self._sealed(key, remembered=False)
            data = new_buffer(sealed.nbytes)
            try:
                self._fill(key, sealed, 0, memoryview(data))
            except Corrupt as error:
                self._check_replaced(key, sealed, error)
            else:
                return data
        raise self._overwritten(key)

    def write(
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        self._refuse_reserved(key)
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        nbytes = total_bytes(views)
        corpus_key = self.keys.for_writing(scope_of(key))
        with self._pool.lend(frames.stored_bytes(nbytes)) as out:
            sealed = frames.seal(key, corpus_key, views, out)
            # Without `digest`, which is the plaintext's: the store below makes its own of what it gets.
            info = self.inner.write(key, [out], if_absent=if_absent)
        self._remember(key, sealed)
        self.keys.written(key)
        return replace(info, nbytes=nbytes)

    def delete(self, key: str) -> None:
        self._refuse_reserved(key)
        self.inner.delete(key)
        with self._lock:
            self._headers.pop(key, None)
        self.keys.deleted(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for info in self.inner.list(prefix):
            if not is_reserved(info.key):
                yield _plain(info)

    def children(self, prefix: str = "") -> Sequence[str]:
        folder = f"{prefix}/" if prefix else ""
        return [name for name in self.inner.children(prefix) if not self.keys.is_hidden(f"{folder}{name}")]

    def stat(self, key: str) -> ObjectInfo:
        if is_reserved(validate(key)):
            raise NotFound("no such object", tier=self.name, key=key)
        return _plain(self.inner.stat(key))

    def exists(self, key: str) -> bool:
        return Store.exists(self, key)  # by our `stat`: the key objects are not there

    def locate(self, key: str) -> Extent | None:
        """None: what has an address is ciphertext."""
        self.stat(key)
        return None

    def close(self) -> None:
        self.keys.clear()
        with self._lock:
            self._headers.clear()
        self._pool.clear()
        super().close()

    def forget(self, scope: str) -> None:
        """Forget the corpus key of a folder and what was read by it."""
        self.keys.forget(scope)
        with self._lock:
            self._headers.clear()

    def _sealed(self, key: str, *, remembered: bool) -> Sealed:
        """The header of an object, read now unless it is `remembered`."""
        if remembered:
            with self._lock:
                if key in self._headers:
                    self._headers.move_to_end(key)
                    return self._headers[key]
        for _ in range(_ATTEMPTS):
            info = self.inner.stat(key)
            header = memoryview(bytearray(min(info.nbytes, HEADER_BYTES)))
            try:
                self.inner.read_into(key, 0, header)
                return self._open_header(key, header, info.nbytes)
            except Corrupt:
                if self.inner.stat(key) == info:  # else it was overwritten between the two calls
                    raise
        raise self._overwritten(key)

    def _open_header(self, key: str, header: memoryview, stored_bytes: int) -> Sealed:
        if header.nbytes < HEADER_BYTES or not frames.is_ciphertext(header):
            self.keys.refuse_plain(key)
        try:
            corpus_key = self.keys.for_reading(scope_of(key), frames.check_header(header, stored_bytes))
            sealed = frames.open_header(key, corpus_key, header)
        except TieringError as error:
            raise placed(error, self, key) from None
        self._remember(key, sealed)
        return sealed

    def _read_whole(self, key: str, stored_bytes: int) -> bytearray:
        """A small object, by one request."""
        whole = memoryview(bytearray(stored_bytes))
        self.inner.read_into(key, 0, whole)
        sealed = self._open_header(key, whole[:HEADER_BYTES], stored_bytes)
        data = bytearray(sealed.nbytes)
        self._open_frames(key, sealed, 0, whole[HEADER_BYTES:], 0, memoryview(data))
        return data

    def _fill(self, key: str, sealed: Sealed, offset: int, buffer: memoryview) -> None:
        """Read and decrypt the frames that cover the buffer, in pieces of bounded size."""
        if not buffer.nbytes:
            return
        end = (offset + buffer.nbytes - 1) // FRAME_BYTES + 1
        for first in range(offset // FRAME_BYTES, end, self._step):
            start, stop = frames.frame_range(first, min(first + self._step, end), sealed.nbytes)
            with self._pool.lend(stop - start) as stored:
                self.inner.read_into(key, start, stored)
                self._open_frames(key, sealed, first, stored, offset, buffer)

    def _open_frames(
        self, key: str, sealed: Sealed, first: int, stored: memoryview, offset: int, buffer: memoryview
    ) -> None:
        try:
            sealed.open_frames(first, stored, offset, buffer)
        except Corrupt as error:
            raise placed(error, self, key) from None

    def _check_replaced(self, key: str, sealed: Sealed, error: Corrupt) -> None:
        """Raise `error` unless the object was overwritten since that header was read."""
        if self._sealed(key, remembered=False).header == sealed.header:
            raise error

    def _overwritten(self, key: str) -> Unavailable:
        return Unavailable("the object was overwritten each time it was read", tier=self.name, key=key)

    def _remember(self, key: str, sealed: Sealed) -> None:
        with self._lock:
            self._headers[key] = sealed
            self._headers.move_to_end(key)
            while len(self._headers) > MAX_HEADERS:
                self._headers.popitem(last=False)

    def _refuse_reserved(self, key: str) -> None:
        if is_reserved(validate(key)):
            raise UsageError("this key is kept for the wrapped corpus key", tier=self.name, key=key)


def overwrite(store: Store, key: str) -> None:
    """Put zeros in the place of an object: in its very bytes where they have an address, then anew."""
    extent = store.locate(key)
    if extent is not None:
        descriptor = os.open(extent.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(descriptor, bytes(extent.nbytes), extent.offset)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    store.write(key, [bytes(store.stat(key).nbytes)])


def _plain(info: ObjectInfo) -> ObjectInfo:
    """With the size of the plaintext, or that as stored where no plaintext has it: reading refuses it."""
    nbytes = frames.plain_bytes(info.nbytes)
    return info if nbytes is None else replace(info, nbytes=nbytes)
