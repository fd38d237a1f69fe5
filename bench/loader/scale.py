"""How large the cases are, and the rows they read."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, Any]
SETTLE_SECONDS: Final = 2.5  # a file is trusted when its last change is older
MB: Final = 1e6


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes of all cases; the defaults are those of the figures in docs/performance.md."""

    rows: int = 65_536
    tokens: int = 2_049
    batch: int = 256
    rounds: int = 15
    image_rows: int = 2_048
    jpeg_rows: int = 1_024
    image_batch: int = 64
    image_rounds: int = 3
    cold_rounds: int = 15

    @property
    def row_bytes(self) -> int:
        """Of a row of tokens."""
        return 2 * self.tokens

    @property
    def nbytes(self) -> int:
        """Of all rows of tokens."""
        return self.rows * self.row_bytes


TRIAL: Final = Scale(rows=8_192, rounds=1, image_rows=256, jpeg_rows=256, image_rounds=1, cold_rounds=1)
"""For a look at whether everything runs; its figures mean nothing."""


def tokens(scale: Scale) -> Array:
    """Rows of tokens ``[rows, tokens]``, uint16, of a small vocabulary."""
    shape = (scale.rows, scale.tokens)
    return np.random.default_rng(7).integers(0, 257, shape, dtype=np.uint16)


def images(rows: int) -> Array:
    """Smooth pictures with some noise, uint8 ``[rows, 224, 224, 3]``: as JPEG about 15 KB each."""
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 256, (rows, 29, 29, 3)).astype(np.float32)
    found = np.empty((rows, 224, 224, 3), np.uint8)
    part = np.arange(8, dtype=np.float32) / 8
    for number, knots in enumerate(coarse):
        lines = (
            knots[:-1, None] * (1 - part[:, None, None]) + knots[1:, None] * part[:, None, None]
        ).reshape(224, 29, 3)
        smooth = lines[:, :-1, None] * (1 - part[:, None]) + lines[:, 1:, None] * part[:, None]
        found[number] = np.clip(smooth.reshape(224, 224, 3) + rng.normal(0, 4, (224, 224, 3)), 0, 255)
    return found


def jpeg_files(rows: int) -> list[bytes]:
    """Pictures of `images` as JPEG of quality 85."""
    from PIL import Image

    def encoded(picture: Array) -> bytes:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=85)
        return file.getvalue()

    return [encoded(picture) for picture in images(rows)]


def own_folder(folder: Path, name: str) -> Path:
    """A new folder below `folder`."""
    made = folder / name
    made.mkdir()
    return made
