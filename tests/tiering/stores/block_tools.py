"""What tests of block volumes share."""

from __future__ import annotations

from pathlib import Path


def patch_file(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
