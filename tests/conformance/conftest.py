"""One store of each kind, empty, for the suite that holds all of them to the same contract."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers import BUCKET
from tiering.stores.base import Store
from tiering.stores.block import BlockStore, format_volume
from tiering.stores.file import FileStore
from tiering.stores.fsspec import FsspecStore
from tiering.stores.memory import MemoryStore
from tiering.stores.object import ObjectStore
from tiering.stores.shared_memory import SharedMemoryStore
from tiering.stores.wrappers import Breaker, Counted, Deadline, Retry, Throttle

BLOCK_VOLUME_BYTES = 96 << 20

LOCAL = ("memory", "shared-memory", "wrapped", "file", "block", "loop", "fsspec-memory")
REMOTE = ("object-moto", "s3fs-moto", "object-ceph", "s3fs-ceph", "object-rclone")
UNCONDITIONAL = frozenset({"object-rclone"})
"""Kinds whose server does not keep If-None-Match: there ``if_absent`` is refused."""

StoreMaker = Callable[[str], contextlib.AbstractContextManager[Store]]


def params(kinds: tuple[str, ...]) -> list[object]:
    """Parameters of tests for `kinds`, with their marks."""
    return [pytest.param(kind, marks=[pytest.mark.ceph] if "ceph" in kind else []) for kind in kinds]


@contextlib.contextmanager
def loop_device(image: Path, nbytes: int) -> Iterator[Path]:
    """A loop device over a new file; skips where there can be none."""
    if os.geteuid() != 0 or not shutil.which("losetup"):
        pytest.skip("loop devices need root and losetup")
    with image.open("wb") as file:
        file.truncate(nbytes)
    attach = ["losetup", "--direct-io=on", "-f", "--show", str(image)]
    done = subprocess.run(attach, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no loop device: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        yield Path(device)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
        image.unlink()


@contextlib.contextmanager
def block_on_loop(folder: Path, name: str) -> Iterator[Store]:
    """A block store on a loop device."""
    with loop_device(folder / f"{name}.img", BLOCK_VOLUME_BYTES) as device:
        index_path = folder / f"{name}.index"
        format_volume(device, None, index_path=index_path)
        with BlockStore("loop", device, index_path=index_path) as store:
            yield store


@pytest.fixture
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> StoreMaker:
    """Opens a new, empty store of a kind in `LOCAL` or `REMOTE`."""

    def opener(kind: str) -> contextlib.AbstractContextManager[Store]:
        unique = uuid.uuid4().hex
        if kind == "memory":
            return MemoryStore(kind)
        if kind == "shared-memory":
            return SharedMemoryStore(kind, unique)
        if kind == "wrapped":
            store = Throttle(Deadline(MemoryStore(kind), 60), 10**12, 10**9, unique, folder=tmp_path)
            return Counted(Retry(Breaker(store, 1, 60), 2, 60))
        if kind == "file":
            return FileStore(kind, tmp_path / unique)
        if kind == "block":
            format_volume(tmp_path / unique, BLOCK_VOLUME_BYTES)
            return BlockStore(kind, tmp_path / unique)
        if kind == "loop":
            return block_on_loop(tmp_path, unique)
        if kind == "fsspec-memory":
            return FsspecStore(kind, f"memory://{unique}/prefix")
        client, _, server = kind.partition("-")
        request.getfixturevalue("s3_environment")
        options = request.getfixturevalue(f"{server}_endpoint").options()
        make = ObjectStore if client == "object" else FsspecStore
        return make(kind, f"s3://{BUCKET}/{unique}", options)

    return opener


@pytest.fixture(params=params((*LOCAL, *REMOTE)))
def store(request: pytest.FixtureRequest, open_store: StoreMaker) -> Iterator[Store]:
    """An empty store."""
    with open_store(request.param) as store:
        yield store


@pytest.fixture(params=params(tuple(kind for kind in (*LOCAL, *REMOTE) if kind not in UNCONDITIONAL)))
def creating_store(request: pytest.FixtureRequest, open_store: StoreMaker) -> Iterator[Store]:
    """An empty store of a kind that keeps ``if_absent``."""
    with open_store(request.param) as store:
        yield store
