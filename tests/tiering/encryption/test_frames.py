"""The ciphertext of one object: sizes, and what happens when any of its bytes is another."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiering.encryption.tools import key_bytes
from tiering.digest import crc32c
from tiering.encryption.aead import Cipher
from tiering.encryption.frames import (
    FRAME_BYTES,
    HEADER_BYTES,
    STORED_FRAME_BYTES,
    Sealed,
    check_header,
    frame_range,
    open_header,
    plain_bytes,
    seal,
    stored_bytes,
)
from tiering.encryption.keyring import CorpusKey
from tiering.errors import Corrupt, UnsupportedVersion

KEY = CorpusKey(bytes(range(16)), Cipher(key_bytes(7)))
OTHER = CorpusKey(bytes(range(16)), Cipher(key_bytes(8)))
SIZES = [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 2 * FRAME_BYTES, 3 * FRAME_BYTES + 5]


def sealed(data: bytes, key: str = "web/c/0", corpus_key: CorpusKey = KEY) -> bytearray:
    out = bytearray(stored_bytes(len(data)))
    seal(key, corpus_key, [memoryview(data)], memoryview(out))
    return out


def opened(stored: bytes | bytearray, key: str = "web/c/0", corpus_key: CorpusKey = KEY) -> bytes:
    view = memoryview(stored)
    header = view[:HEADER_BYTES]
    check_header(header, len(stored))
    found = open_header(key, corpus_key, header)
    data = bytearray(found.nbytes)
    found.open_frames(0, view[HEADER_BYTES:], 0, memoryview(data))
    return bytes(data)


def plain(nbytes: int) -> bytes:
    return random.Random(nbytes).randbytes(nbytes)


@given(st.integers(0, 1 << 40))
def test_plain_bytes_inverts_stored_bytes(nbytes: int) -> None:
    assert plain_bytes(stored_bytes(nbytes)) == nbytes


@given(st.integers(0, 4 * STORED_FRAME_BYTES))
def test_plain_bytes_of_a_size_that_no_object_has_is_none(stored: int) -> None:
    nbytes = plain_bytes(stored)
    assert nbytes is None or stored_bytes(nbytes) == stored


def test_plain_bytes_knows_what_cannot_be() -> None:
    frame = HEADER_BYTES + STORED_FRAME_BYTES
    for stored in (0, HEADER_BYTES - 1, HEADER_BYTES + 1, HEADER_BYTES + 16, frame + 1, frame + 16):
        assert plain_bytes(stored) is None
    assert plain_bytes(HEADER_BYTES) == 0
    assert plain_bytes(HEADER_BYTES + 17) == 1


def test_overhead_of_a_shard_is_below_a_thousandth() -> None:
    assert stored_bytes(64 << 20) - (64 << 20) < (64 << 20) / 1000


@pytest.mark.parametrize("nbytes", SIZES)
def test_seal_opens_to_the_same_bytes(nbytes: int) -> None:
    data = plain(nbytes)
    stored = sealed(data)
    assert opened(stored) == data
    assert data[:64] not in bytes(stored) or nbytes < 8


def test_seal_of_many_buffers_is_that_of_their_concatenation() -> None:
    data = plain(3 * FRAME_BYTES + 5)
    cuts = [0, 0, 1, 100, FRAME_BYTES + 100, 2 * FRAME_BYTES + 100, 3 * FRAME_BYTES, len(data), len(data)]
    pieces = [memoryview(data)[a:b] for a, b in pairwise(cuts)]
    out = bytearray(stored_bytes(len(data)))
    seal("web/c/0", KEY, pieces, memoryview(out))
    assert opened(out) == data


def test_seal_takes_a_fresh_key_each_time() -> None:
    first, second = sealed(bytes(100)), sealed(bytes(100))
    assert first[HEADER_BYTES:] != second[HEADER_BYTES:]
    assert first[:HEADER_BYTES] != second[:HEADER_BYTES]


@given(st.data())
def test_open_frames_gives_any_range(data: st.DataObject) -> None:
    nbytes = 3 * FRAME_BYTES + 5
    offset = data.draw(st.integers(0, nbytes - 1))
    length = data.draw(st.integers(1, nbytes - offset))
    first, stop = offset // FRAME_BYTES, (offset + length - 1) // FRAME_BYTES + 1
    start, end = frame_range(first, stop, nbytes)
    buffer = bytearray(length)
    HEADER.open_frames(first, memoryview(STORED)[start:end], offset, memoryview(buffer))
    assert buffer == PLAIN[offset : offset + length]


PLAIN = plain(3 * FRAME_BYTES + 5)
STORED = sealed(PLAIN)
HEADER: Sealed = open_header("web/c/0", KEY, memoryview(STORED)[:HEADER_BYTES])


def test_each_flipped_bit_of_the_header_is_corrupt() -> None:
    stored = sealed(b"0123456789")
    for bit in range(HEADER_BYTES * 8):
        stored[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt):
            opened(stored)
        stored[bit // 8] ^= 1 << bit % 8


def test_each_forged_byte_of_the_header_is_refused() -> None:
    """Whoever mends the CRC too does not get by: either the key does not open, or the version is unknown."""
    stored = sealed(b"0123456789")
    for position in range(HEADER_BYTES - 4):
        forged = bytearray(stored)
        forged[position] ^= 0x10
        forged[HEADER_BYTES - 4 : HEADER_BYTES] = crc32c(forged[: HEADER_BYTES - 4]).to_bytes(4)
        with pytest.raises((Corrupt, UnsupportedVersion)):
            opened(forged)


def test_each_flipped_bit_of_a_small_frame_is_corrupt() -> None:
    stored = sealed(b"0123456789")
    for bit in range(HEADER_BYTES * 8, len(stored) * 8):
        stored[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt, match="frame 0 of 1"):
            opened(stored)
        stored[bit // 8] ^= 1 << bit % 8


def test_flipped_bits_of_large_frames_are_corrupt() -> None:
    chance = random.Random(5)
    edges = [HEADER_BYTES + i * STORED_FRAME_BYTES + d for i in range(4) for d in (-17, -16, -1, 0, 1)]
    for position in [*edges[3:], *(chance.randrange(HEADER_BYTES, len(STORED)) for _ in range(60))]:
        stored = bytearray(STORED)
        stored[position] ^= 1 << chance.randrange(8)
        with pytest.raises(Corrupt, match="frame"):
            opened(stored)


@pytest.mark.parametrize(("left", "right"), [(0, 1), (1, 2), (0, 2)])
def test_swapped_frames_are_corrupt(left: int, right: int) -> None:
    stored = bytearray(STORED)
    a, b = (
        slice(HEADER_BYTES + i * STORED_FRAME_BYTES, HEADER_BYTES + (i + 1) * STORED_FRAME_BYTES)
        for i in (left, right)
    )
    stored[a], stored[b] = stored[b], stored[a]
    with pytest.raises(Corrupt, match="frame"):
        opened(stored)


def test_a_truncated_object_is_corrupt_even_where_its_header_says_so() -> None:
    """Without the length in what is authenticated, a cut at a frame's end could pass."""
    for frames in range(4):
        cut = bytearray(STORED[: HEADER_BYTES + frames * STORED_FRAME_BYTES])
        with pytest.raises(Corrupt):
            opened(cut)
        cut[16:24] = (frames * FRAME_BYTES).to_bytes(8)
        cut[HEADER_BYTES - 4 : HEADER_BYTES] = crc32c(cut[: HEADER_BYTES - 4]).to_bytes(4)
        with pytest.raises(Corrupt):
            opened(cut)


def test_an_extended_object_is_corrupt() -> None:
    for more in (b"\0", bytes(17), STORED[-STORED_FRAME_BYTES:]):
        with pytest.raises(Corrupt, match="header does not say"):
            opened(STORED + more)


def test_frames_of_another_write_of_the_same_object_are_corrupt() -> None:
    other = sealed(PLAIN)
    with pytest.raises(Corrupt, match="frame 0"):
        opened(STORED[:HEADER_BYTES] + other[HEADER_BYTES:])


def test_an_object_under_another_key_is_corrupt() -> None:
    stored = sealed(b"x")
    with pytest.raises(Corrupt, match="another object's"):
        opened(stored, "web/c/1")
    with pytest.raises(Corrupt, match="another object's"):
        opened(stored, corpus_key=OTHER)


def test_a_header_of_a_future_version_is_refused_by_name() -> None:
    stored = sealed(b"x")
    stored[9] = 2
    stored[HEADER_BYTES - 4 : HEADER_BYTES] = crc32c(stored[: HEADER_BYTES - 4]).to_bytes(4)
    with pytest.raises(UnsupportedVersion, match="format 2"):
        opened(stored)
