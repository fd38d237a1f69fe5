"""One store of each kind, empty, for the suite that holds all of them to the same contract."""

from __future__ import annotations

import contextlib
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

LOCAL = ("memory", "shared-memory", "wrapped", "file", "block", "fsspec-memory")
REMOTE = ("object-moto", "s3fs-moto", "object-ceph", "s3fs-ceph")
PARAMS = [
    pytest.param(kind, marks=[pytest.mark.ceph] if "ceph" in kind else []) for kind in (*LOCAL, *REMOTE)
]

StoreMaker = Callable[[str], contextlib.AbstractContextManager[Store]]


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
        if kind == "fsspec-memory":
            return FsspecStore(kind, f"memory://{unique}/prefix")
        client, _, server = kind.partition("-")
        request.getfixturevalue("s3_environment")
        options = request.getfixturevalue(f"{server}_endpoint").options()
        make = ObjectStore if client == "object" else FsspecStore
        return make(kind, f"s3://{BUCKET}/{unique}", options)

    return opener


@pytest.fixture(params=PARAMS)
def store(request: pytest.FixtureRequest, open_store: StoreMaker) -> Iterator[Store]:
    """An empty store."""
    with open_store(request.param) as store:
        yield store
