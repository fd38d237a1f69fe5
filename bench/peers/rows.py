"""Rows on disk that every loader is given: arrays of one shape, or JPEG files.

Invariant: equal rows have equal hashes in every environment, so that what a loader gave can be compared with
what it was given, whatever the order.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class Rows:
    """Rows of a ``.npy`` file ``[rows, ...]``, or of a folder of JPEG files in one (`write_jpegs`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.jpeg = path.is_dir()
        if self.jpeg:
            self._bytes = np.load(path / "bytes.npy", mmap_mode="r")
            self._ends = np.load(path / "ends.npy")
            self.shape, self.dtype = self.decode(self.raw(0)).shape, np.dtype(np.uint8)
        else:
            self.array = np.asarray(np.load(path, mmap_mode="r"))  # a plain view: a memmap's rows cost more
            self.shape, self.dtype = self.array.shape[1:], self.array.dtype

    def __reduce__(self) -> tuple[Any, ...]:
        return Rows, (self.path,)  # a memory map would travel with its bytes

    def __len__(self) -> int:
        return len(self._ends) if self.jpeg else len(self.array)

    def __getitem__(self, index: int) -> Array:
        """One row as an array, decoded."""
        return self.decode(self.raw(index)) if self.jpeg else self.array[index]

    def raw(self, index: int) -> bytes:
        """One row as it is stored."""
        if not self.jpeg:
            return self.array[index].tobytes()
        start = 0 if index == 0 else int(self._ends[index - 1])
        return self._bytes[start : int(self._ends[index])].tobytes()

    def decode(self, raw: bytes) -> Array:
        """The array of what `raw` gave."""
        if not self.jpeg:
            return np.frombuffer(raw, self.dtype).reshape(self.shape)
        from PIL import Image

        return np.asarray(Image.open(io.BytesIO(raw)))

    def gather(self, indices: list[int]) -> Array:
        """Some rows as one array, decoded."""
        return np.stack([self[index] for index in indices]) if self.jpeg else self.array[indices]


def write_jpegs(folder: Path, files: list[bytes]) -> None:
    """What `Rows` reads JPEG files from."""
    folder.mkdir()
    np.save(folder / "bytes.npy", np.frombuffer(b"".join(files), np.uint8))
    np.save(folder / "ends.npy", np.cumsum([len(file) for file in files]))


@dataclass
class Seen:
    """Which rows came, as a digest that does not depend on their order: equal for equal multisets of rows."""

    hashes: list[Array] = field(default_factory=list)
    _weights: Array | None = None

    def add(self, batch: Array) -> None:
        """Rows of a batch ``[rows, ...]``; their hash is a sum of elements with random 64-bit weights."""
        flat = batch.reshape(len(batch), -1)
        if self._weights is None:
            self._weights = np.random.default_rng(1).integers(0, 1 << 63, flat.shape[1], dtype=np.uint64)
        self.hashes += [row.astype(np.uint64) @ self._weights for row in flat]

    def digest(self) -> str:
        """Of all rows so far."""
        return hashlib.sha256(np.sort(np.array(self.hashes, np.uint64)).tobytes()).hexdigest()[:16]
