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


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_digest_is_the_same_on_any_number_of_threads(threads: int) -> None:
    data = bytes(range(251)) * 20_000
    hasher = Hasher(threads)
    for start in range(0, len(data), 2_000_000):
        hasher.update(data[start : start + 2_000_000])
    assert hasher.hexdigest() == blake3(data).hexdigest()


def test_digest_without_further_threads_is_made_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """What the library raises, from a module that is not there to import."""

    def panicking(max_threads: int = 1) -> blake3:
        if max_threads > 1:
            raise PanicException("called `Result::unwrap()` on an `Err` value: ThreadPoolBuildError")
        return blake3()

    monkeypatch.setattr("tiering.digest.blake3", panicking)
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 1})
    hasher = Hasher(threads=2)
    hasher.update(b"x")
    assert hasher.hexdigest() == blake3(b"x").hexdigest()


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
