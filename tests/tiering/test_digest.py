from __future__ import annotations

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tiering.digest import Hasher, check_digest_form, crc32c, digest
from tiering.errors import FormatError


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_digest_of_pieces_is_that_of_the_whole(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    hasher = Hasher()
    for piece in pieces:
        hasher.update(bytearray(piece))
    expected = blake3(whole).hexdigest()
    assert digest(pieces) == digest(whole) == digest(memoryview(whole)) == hasher.hexdigest() == expected


@given(st.binary(max_size=60), st.integers(0, 60))
def test_crc32c_continues(data: bytes, cut: int) -> None:
    assert crc32c(data[cut:], crc32c(data[:cut])) == crc32c(data)


def test_crc32c_known_answer() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720's check value
    assert crc32c(b"") == 0


@pytest.mark.parametrize("text", ["", "0" * 63, "0" * 65, "g" * 64, "A" * 64, None, 7, b"0" * 64])
def test_digest_form_names_what_is_wrong(text: object) -> None:
    with pytest.raises(FormatError, match="the thing is not a BLAKE3 digest"):
        check_digest_form(text, "the thing")


def test_digest_form_that_is_right_is_unchanged() -> None:
    assert check_digest_form("0a" * 32, "it") == "0a" * 32
