"""The ciphertext of one object: a header of 4 KiB and sealed frames of 256 KiB.

Header, big-endian: magic (8 bytes), format version (2), algorithm (2), bytes of a sealed frame (4), bytes
of the plaintext (8), id of the corpus key (16), the object's own key wrapped by the corpus key (nonce 12,
key 32, tag 16), zeros, and CRC32C of all that in the last 4. Frame ``i``: up to `FRAME_BYTES` of plaintext,
sealed under the object's key with the nonce ``i``, and its tag. Every frame but the last is full, so frames
begin on 256 KiB boundaries behind the header, and either size follows from the other.

Invariant: every write has a fresh random key, so no nonce is used twice. The wrapped key is bound to the
header and the object's full key, each frame to both, its number and whether it is the last: what was moved,
swapped, cut, lengthened or put back from an older write does not open.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from tiering.digest import crc32c
from tiering.encryption import aead
from tiering.encryption.aead import KEY_BYTES, TAG_BYTES, WRAPPED_KEY_BYTES, Cipher, Unauthentic
from tiering.encryption.keyring import CorpusKey
from tiering.errors import Corrupt, UnsupportedVersion

MAGIC: Final = b"\x93TIERENC"  # no text, no JSON, no UTF-8
FORMAT_VERSION: Final = 1
HEADER_BYTES: Final = 4096
STORED_FRAME_BYTES: Final = 256 << 10
FRAME_BYTES: Final = STORED_FRAME_BYTES - TAG_BYTES
"""Plaintext of a full frame."""
MAX_PLAIN_BYTES: Final = 1 << 50

_AES_256_GCM: Final = 1
_FIELDS: Final = struct.Struct(">8sHHIQ16s")
_USED_BYTES: Final = _FIELDS.size + WRAPPED_KEY_BYTES
_CRC: Final = struct.Struct(">I")


def stored_bytes(plain_bytes: int) -> int:
    """Bytes of the ciphertext of an object of `plain_bytes`."""
    return HEADER_BYTES + plain_bytes + -(-plain_bytes // FRAME_BYTES) * TAG_BYTES


def plain_bytes(stored: int) -> int | None:
    """The opposite of `stored_bytes`; None for a size that no object has."""
    full, rest = divmod(stored - HEADER_BYTES, STORED_FRAME_BYTES)
    if full < 0 or 0 < rest <= TAG_BYTES:
        return None
    return full * FRAME_BYTES + max(0, rest - TAG_BYTES)


def frame_range(first: int, stop: int, nbytes: int) -> tuple[int, int]:
    """Where the sealed frames ``[first, stop)`` of an object of `nbytes` of plaintext lie: ``[from, to)``."""
    start = HEADER_BYTES + first * STORED_FRAME_BYTES
    return start, min(HEADER_BYTES + stop * STORED_FRAME_BYTES, stored_bytes(nbytes))


@dataclass(frozen=True, slots=True)
class Sealed:
    """The header of an object, with the key to its frames."""

    header: bytes
    """As stored, without its zeros; no two writes have the same."""
    nbytes: int
    """Of the plaintext."""
    _cipher: Cipher = field(repr=False)
    _aad: bytes = field(repr=False)

    @property
    def frames(self) -> int:
        """How many frames it has."""
        return -(-self.nbytes // FRAME_BYTES)

    def open_frames(self, first: int, stored: memoryview, offset: int, buffer: memoryview) -> None:
        """Put the plaintext of some frames, as far as it belongs there, into its place in `buffer`.

        Args:
            first: number of the first frame in `stored`.
            stored: sealed frames, whole.
            offset: of the first byte of `buffer` in the object's plaintext.
            buffer: to fill.

        Raises:
            Corrupt: a frame is not what was written there.
        """
        scratch: memoryview | None = None
        for number, at in enumerate(range(0, stored.nbytes, STORED_FRAME_BYTES), first):
            frame = stored[at : at + STORED_FRAME_BYTES]
            start = number * FRAME_BYTES - offset
            stop = start + frame.nbytes - TAG_BYTES
            try:
                if start >= 0 and stop <= buffer.nbytes:
                    self._open(number, frame, buffer[start:stop])
                    continue
                if scratch is None:
                    scratch = memoryview(bytearray(FRAME_BYTES))
                self._open(number, frame, scratch[: stop - start])
            except Unauthentic:
                raise Corrupt(f"encrypted frame {number} of {self.frames} is damaged or forged") from None
            low, high = max(start, 0), min(stop, buffer.nbytes)
            buffer[low:high] = scratch[low - start : high - start]

    def _open(self, number: int, frame: memoryview, out: memoryview) -> None:
        self._cipher.open_into(_nonce(number), frame, _frame_aad(self._aad, number, self.frames), out)


def seal(key: str, corpus_key: CorpusKey, buffers: Sequence[memoryview], out: memoryview) -> Sealed:
    """Encrypt the concatenation of `buffers`, an object to be called `key`, into `out` of `stored_bytes`."""
    nbytes = sum(buffer.nbytes for buffer in buffers)
    object_key = aead.random_bytes(KEY_BYTES)
    fields = _FIELDS.pack(MAGIC, FORMAT_VERSION, _AES_256_GCM, STORED_FRAME_BYTES, nbytes, corpus_key.id)
    aad = fields + key.encode()
    header = fields + corpus_key.cipher.wrap(object_key, aad)
    padded = header.ljust(HEADER_BYTES - _CRC.size, b"\0")
    out[:HEADER_BYTES] = padded + _CRC.pack(crc32c(padded))
    sealed = Sealed(header, nbytes, Cipher(object_key), aad)
    at = HEADER_BYTES
    for number, plain in enumerate(_frames(buffers)):
        stop = at + plain.nbytes + TAG_BYTES
        sealed._cipher.seal_into(_nonce(number), plain, _frame_aad(aad, number, sealed.frames), out[at:stop])
        at = stop
    return sealed


def is_ciphertext(head: memoryview) -> bool:
    """Whether an object that begins so is a ciphertext of this engine, of whatever version."""
    return bytes(head[: len(MAGIC)]) == MAGIC


def check_header(header: memoryview, stored: int) -> bytes:
    """The id of the corpus key that an object of `stored` bytes was written under.

    Raises:
        Corrupt: the header is damaged, or the object was cut or lengthened.
        UnsupportedVersion: a newer engine wrote it.
    """
    if not is_ciphertext(header) or _CRC.unpack(header[-_CRC.size :])[0] != crc32c(header[: -_CRC.size]):
        raise Corrupt("the header of the encrypted object is damaged")
    _magic, version, algorithm, frame_bytes, nbytes, key_id = _FIELDS.unpack_from(header)
    if (version, algorithm, frame_bytes) != (FORMAT_VERSION, _AES_256_GCM, STORED_FRAME_BYTES):
        raise UnsupportedVersion(f"encrypted in format {version}", hint="Read it by a newer engine")
    if nbytes > MAX_PLAIN_BYTES or stored_bytes(nbytes) != stored or any(header[_USED_BYTES : -_CRC.size]):
        raise Corrupt(f"the encrypted object has {stored} bytes, which its header does not say")
    return bytes(key_id)


def open_header(key: str, corpus_key: CorpusKey, header: memoryview) -> Sealed:
    """The object called `key`, by its checked header.

    Raises:
        Corrupt: it was not written there, or not under this corpus key.
    """
    aad = bytes(header[: _FIELDS.size]) + key.encode()
    try:
        object_key = corpus_key.cipher.unwrap(bytes(header[_FIELDS.size : _USED_BYTES]), aad)
    except Unauthentic:
        raise Corrupt("the header of the encrypted object is damaged, forged or another object's") from None
    return Sealed(bytes(header[:_USED_BYTES]), _FIELDS.unpack_from(header)[4], Cipher(object_key), aad)


def _nonce(number: int) -> bytes:
    return number.to_bytes(aead.NONCE_BYTES)


def _frame_aad(aad: bytes, number: int, frames: int) -> bytes:
    return aad + number.to_bytes(8) + (b"\1" if number == frames - 1 else b"\0")


def _frames(buffers: Sequence[memoryview]) -> Iterator[memoryview]:
    """The concatenation of `buffers` in pieces of `FRAME_BYTES`; only what lies in several is copied."""
    joined, filled = memoryview(b""), 0
    for buffer in buffers:
        at = 0
        while at < buffer.nbytes:
            if not filled and buffer.nbytes - at >= FRAME_BYTES:
                yield buffer[at : at + FRAME_BYTES]
                at += FRAME_BYTES
                continue
            if not joined.nbytes:
                joined = memoryview(bytearray(FRAME_BYTES))
            count = min(FRAME_BYTES - filled, buffer.nbytes - at)
            joined[filled : filled + count] = buffer[at : at + count]
            filled, at = filled + count, at + count
            if filled == FRAME_BYTES:
                yield joined
                filled = 0
    if filled:
        yield joined[:filled]
