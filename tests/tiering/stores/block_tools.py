"""What tests of block volumes share."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


def patch_file(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@contextlib.contextmanager
def loop_device(image: Path, nbytes: int, *, sector_bytes: int = 512) -> Iterator[Path]:
    """A loop device on a new image of zeros; both are gone at the end. Skips the test where there is none."""
    if os.geteuid() != 0 or not shutil.which("losetup"):
        pytest.skip("loop devices need root and losetup")
    image.write_bytes(bytes(nbytes))
    command = ["losetup", "--direct-io=on", "--sector-size", str(sector_bytes), "-f", "--show", str(image)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        pytest.skip(f"no loop device: {run.stderr.strip()}")
    try:
        yield Path(run.stdout.strip())
    finally:
        subprocess.run(["losetup", "-d", run.stdout.strip()], check=True)
        image.unlink()
