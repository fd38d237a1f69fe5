"""Encryption at rest: GB/s of one core each way, against AES-GCM alone over the same frames, and memcpy.

All are measured by processor time, one after the other in each round; medians of their ratios. `store` is
the wrapper over a store in memory whose read is one copy and whose write is none; `random` reads blocks of
1 MiB from anywhere.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tiering.digest import Buffer
from tiering.encryption.frames import FRAME_BYTES, STORED_FRAME_BYTES, stored_bytes
from tiering.encryption.kek import make_key_file
from tiering.encryption.keyring import Keyring, key_object
from tiering.stores.base import ObjectInfo
from tiering.stores.encrypted import Encrypted
from tiering.stores.memory import MemoryStore
from tiering.stores.pages import aligned_buffer

NBYTES, ROUNDS, BLOCK_BYTES = 64 << 20, 15, 1 << 20
FRAME_SIZES = (64 << 10, 128 << 10, 256 << 10, 1 << 20)


class OneObject(MemoryStore):
    """Holds one large object in memory that is there already, as a page cache would."""

    def __init__(self) -> None:
        super().__init__("bench")
        self._large = aligned_buffer(2 * NBYTES)
        self._nbytes = 0

    def write(  # noqa: D102
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False
    ) -> ObjectInfo:
        if key != "web/shard":
            return super().write(key, buffers, if_absent=if_absent)
        (whole,) = buffers
        self._nbytes = len(whole)
        return ObjectInfo(key, self._nbytes)

    def keep(self, whole: bytes) -> None:
        """Hold this ciphertext."""
        self._large[: len(whole)] = whole

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:  # noqa: D102
        if key == "web/shard":
            buffer[:] = self._large[offset : offset + buffer.nbytes]
        else:
            super().read_into(key, offset, buffer)

    def stat(self, key: str) -> ObjectInfo:  # noqa: D102
        return super().stat(key) if key != "web/shard" else ObjectInfo(key, self._nbytes)


def run() -> dict[str, object]:
    """Medians of GB/s a core, and of ratios within a round."""
    plain, sealed, out = aligned_buffer(NBYTES), aligned_buffer(2 * NBYTES), aligned_buffer(NBYTES)
    plain[:] = os.urandom(1 << 20) * (NBYTES >> 20)
    sealed[:], out[:] = bytes(2 * NBYTES), bytes(NBYTES)
    cipher = AESGCM(os.urandom(32))
    with tempfile.TemporaryDirectory() as folder:
        make_key_file(Path(folder, "key"))
        inner = OneObject()
        store = Encrypted(inner, Keyring("bench", f"file:{folder}/key"))
        kept = MemoryStore("bench")
        store.write("web/first", [b"x"])  # makes the corpus key
        kept.write(key_object("web"), [inner.read(key_object("web"))])
        Encrypted(kept, store.keyring).write("web/shard", [plain])
        inner.keep(bytes(kept.read("web/shard")))
        store.write("web/shard", [plain])
        blocks = [i * 7919 * 4096 % (NBYTES - BLOCK_BYTES) for i in range(NBYTES // BLOCK_BYTES)]

        def read_blocks() -> None:
            for offset in blocks:
                store.read_into("web/shard", offset, out[:BLOCK_BYTES])

        calls: dict[str, Callable[[], object]] = {
            "memcpy": lambda: out.__setitem__(slice(None), plain),
            "raw_seal": lambda: raw(cipher.encrypt_into, plain, sealed, STORED_FRAME_BYTES),
            "raw_open": lambda: raw_open(cipher, sealed, out, STORED_FRAME_BYTES),
            "store_write": lambda: store.write("web/shard", [plain]),
            "store_read_into": lambda: store.read_into("web/shard", 0, out),
            "store_random": read_blocks,
        }
        seconds = measure(calls)
        if store.read("web/shard") != plain:
            raise RuntimeError("read back other bytes")
    sizes: dict[str, Callable[[], object]] = {
        f"raw_seal_{size >> 10}KiB": lambda size=size: raw(cipher.encrypt_into, plain, sealed, size)
        for size in FRAME_SIZES
    }
    return {
        "megabytes": NBYTES >> 20,
        "overhead": round(stored_bytes(NBYTES) / NBYTES - 1, 6),
        "random_read_amplification": round(amplification(blocks), 3),
        "gb_per_second_per_core": {name: rate(times) for name, times in seconds.items()},
        "ratios": {
            "write_to_raw": ratio(seconds["raw_seal"], seconds["store_write"]),
            "read_to_raw": ratio(seconds["raw_open"], seconds["store_read_into"]),
            "random_to_raw": ratio(seconds["raw_open"], seconds["store_random"]),
            "write_to_memcpy": ratio(seconds["memcpy"], seconds["store_write"]),
            "read_to_memcpy": ratio(seconds["memcpy"], seconds["store_read_into"]),
        },
        "frame_sizes_gb_per_second": {name: rate(times) for name, times in measure(sizes).items()},
    }


def raw(seal: Callable[..., int], plain: memoryview, sealed: memoryview, stored: int) -> None:
    """AES-GCM over frames, and nothing else."""
    for number, part, frame in pieces(plain, sealed, stored):
        seal(number.to_bytes(12), part, b"aad", frame)


def raw_open(cipher: AESGCM, sealed: memoryview, out: memoryview, stored: int) -> None:
    """The opposite; `sealed` holds what `raw` made."""
    for number, part, frame in pieces(out, sealed, stored):
        cipher.decrypt_into(number.to_bytes(12), frame, b"aad", part)


def pieces(
    plain: memoryview, sealed: memoryview, stored: int
) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Numbers of frames, their plaintexts and ciphertexts."""
    for number, start in enumerate(range(0, plain.nbytes, stored - 16)):
        part = plain[start : start + stored - 16]
        yield number, part, sealed[number * stored : number * stored + part.nbytes + 16]


def measure(calls: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Processor seconds of each call in each round, after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(ROUNDS + 1):
        for name, call in calls.items():
            begun = time.process_time()
            call()
            if number:
                seconds[name].append(time.process_time() - begun)
    return seconds


def amplification(blocks: Sequence[int]) -> float:
    """Bytes read of the tier for each byte of random blocks."""
    frames = [(at + BLOCK_BYTES - 1) // FRAME_BYTES - at // FRAME_BYTES + 1 for at in blocks]
    return sum(frames) * STORED_FRAME_BYTES / (len(blocks) * BLOCK_BYTES)


def rate(seconds: Sequence[float]) -> float:
    """GB/s of the median."""
    return round(NBYTES / 1e9 / median(seconds), 2)


def ratio(bound: Sequence[float], own: Sequence[float]) -> float:
    """Median of how much of the bound is reached."""
    return round(median(b / o for b, o in zip(bound, own, strict=True)), 3)
