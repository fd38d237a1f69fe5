"""Bounded decompression: no frame may write more or less than its caller expects."""

from __future__ import annotations

import numpy as np
import pytest
from numcodecs import zstd

from tiering.errors import Corrupt, UsageError
from tiering.layout.compression import compress, decompress, zstd_level

SIZES = [1, 255, 256, 257, 65_535, 65_791, 65_792, 1_000_003]
# RFC 8878 frames made by hand: no content size, one RLE block of 128 KiB after another.
RLE_BLOCK = (131_072 << 3 | 2).to_bytes(3, "little") + b"\0"
LAST_RLE_BLOCK = (131_072 << 3 | 3).to_bytes(3, "little") + b"\0"
UNSIZED_BOMB = b"\x28\xb5\x2f\xfd\x00\x58" + RLE_BLOCK * 100 + LAST_RLE_BLOCK


@pytest.mark.parametrize("nbytes", SIZES)
def test_compress_roundtrip_of_every_size_of_size_field(nbytes: int) -> None:
    data = np.random.default_rng(nbytes).integers(0, 4, nbytes).astype(np.uint8)
    out = np.full(nbytes, 9, np.uint8)
    decompress(memoryview(compress(data.tobytes(), 1)), out)
    assert np.array_equal(out, data)


def test_decompress_of_a_bomb_raises_corrupt() -> None:
    bomb = compress(bytes(512 << 20), 1)
    with pytest.raises(Corrupt, match="states 536870912 bytes"):
        decompress(memoryview(bomb), np.empty(4096, np.uint8))


def test_decompress_of_a_frame_that_lies_about_its_size_raises_corrupt() -> None:
    frame = bytearray(compress(bytes(1 << 20), 1))
    at = frame.index((1 << 20).to_bytes(4, "little"))
    frame[at : at + 4] = (4096).to_bytes(4, "little")
    with pytest.raises(Corrupt, match="cannot be read"):
        decompress(memoryview(frame), np.empty(4096, np.uint8))


def test_decompress_of_a_frame_without_its_size_raises_corrupt() -> None:
    assert zstd.decompress(UNSIZED_BOMB) == bytes(101 * 131_072)
    with pytest.raises(Corrupt, match="states None bytes"):
        decompress(memoryview(UNSIZED_BOMB), np.empty(101 * 131_072, np.uint8))


@pytest.mark.parametrize("second", [compress(bytes(4096), 1), compress(b"x", 1), UNSIZED_BOMB])
def test_decompress_of_a_second_frame_raises_corrupt(second: bytes) -> None:
    with pytest.raises(Corrupt):
        decompress(memoryview(compress(bytes(4096), 1) + second), np.empty(4096, np.uint8))


def test_decompress_of_every_truncation_raises_corrupt() -> None:
    frame = compress(np.random.default_rng(5).integers(0, 9, 3000).astype(np.uint8).tobytes(), 1)
    for length in range(len(frame)):
        with pytest.raises(Corrupt):
            decompress(memoryview(frame)[:length], np.empty(3000, np.uint8))


@pytest.mark.parametrize(("codec", "level"), [("zstd", 1), ("zstd:1", 1), ("zstd:9", 9), ("zstd:22", 22)])
def test_zstd_level_of_a_codec(codec: str, level: int) -> None:
    assert zstd_level(codec) == level


@pytest.mark.parametrize("codec", ["", "zstd:0", "zstd:01", "zstd:23", "lz4", "zstd:1\n", "zstd:\u0663"])
def test_zstd_level_of_another_codec_raises_usage_error(codec: str) -> None:
    with pytest.raises(UsageError, match="Use None or"):
        zstd_level(codec)
