"""Small corpora, and stores that fail, for tests of the rooms above the stores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from tiering import Corpus, Tier, ingest, plan_move
from tiering import process as process_module
from tiering import tier as tier_module
from tiering.digest import Buffer
from tiering.errors import CapacityExceeded
from tiering.keys import INTERNAL
from tiering.process import ProcessId
from tiering.stores.base import ObjectInfo
from tiering.stores.wrappers import Wrapper

ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
BLOCK_ROWS = 4
ROW_BYTES = 16


def tokens(rows: int = 22, seed: int = 3) -> dict[str, np.ndarray[Any, Any]]:
    """A column of `rows` rows of 16 bytes."""
    return {"tokens": np.random.default_rng(seed).integers(0, 1 << 16, (rows, 8), np.uint16)}


def words(rows: int = 22) -> pa.Table:
    """A ragged table."""
    return pa.table({"id": np.arange(rows), "text": [f"{'word ' * (i % 5)}{i}" for i in range(rows)]})


def small(tier: Tier, name: str = "web", rows: int = 22, seed: int = 3, **options: Any) -> Corpus:
    """A Zarr corpus of one block a shard: 22 rows are 6 shards."""
    options = {"shard_size": 4096, "block_rows": BLOCK_ROWS, **options}
    return ingest(tokens(rows, seed), tier, name, **options)


def small_arrow(tier: Tier, name: str = "text", rows: int = 22) -> Corpus:
    """An Arrow corpus of several shards."""
    return ingest(words(rows), tier, name, shard_size=256, block_rows=BLOCK_ROWS)


def objects(tier: Tier, prefix: str = "") -> dict[str, bytes]:
    """Everything on a tier but reservations of room."""
    keys = [info.key for info in tier.store.list(prefix) if not info.key.startswith(f"{INTERNAL}/")]
    return {key: bytes(tier.store.read(key)) for key in keys}


def without_claims(tier: Tier) -> dict[str, bytes]:
    """The same without claims, of which each work leaves one."""
    return {key: data for key, data in objects(tier).items() if "/claims/" not in key}


def copy_of(corpus: Corpus, tier: Tier) -> Corpus:
    """A copy on another tier."""
    plan_move(corpus, tier).run()
    return corpus.at(tier)


def shard_keys(corpus: Corpus) -> list[str]:
    """Keys below the tier."""
    return [corpus.key(key) for key in corpus.manifest["key"].to_pylist()]


def flip(tier: Tier, key: str, position: int = 5) -> None:
    """Damage one bit of an object."""
    data = tier.store.read(key)
    data[position] ^= 1
    tier.store.write(key, [data])


class Full(Wrapper):
    """A medium of so many objects; what is deleted makes room again."""

    def __init__(self, inner: Any, room: int) -> None:
        super().__init__(inner)
        self.room = room

    def write(
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        if not self.exists(key):
            if self.room <= 0:
                raise CapacityExceeded("no room", tier=self.name, key=key)
            self.room -= 1
        return super().write(key, buffers, if_absent=if_absent, digest=digest)

    def delete(self, key: str) -> None:
        self.room += self.exists(key)
        super().delete(key)


class KilledHere(BaseException):
    """What a process that was killed would not have got beyond."""


class Killed(Wrapper):
    """Lets `changes` writes and deletes through; from the next one on everything fails."""

    def __init__(self, inner: Any, changes: int) -> None:
        super().__init__(inner)
        self.left = changes

    def write(
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        self._step()
        return super().write(key, buffers, if_absent=if_absent, digest=digest)

    def delete(self, key: str) -> None:
        self._step()
        super().delete(key)

    def read(self, key: str) -> bytearray:
        self._look()
        return super().read(key)

    def stat(self, key: str) -> ObjectInfo:
        self._look()
        return super().stat(key)

    def children(self, prefix: str = "") -> Sequence[str]:
        self._look()
        return super().children(prefix)

    def _step(self) -> None:
        self.left -= 1
        self._look()

    def _look(self) -> None:
        if self.left < 0:
            raise KilledHere


@contextmanager
def wrapped(tier: Tier, store: Wrapper) -> Iterator[Any]:
    """Let this process use `store` for the tier while the block runs."""
    place = (tier, os.getpid())
    tier_module._open_stores[place] = store
    try:
        yield store
    finally:
        tier_module._open_stores[place] = store.inner


def dead() -> ProcessId:
    """A process of this machine that has ended."""
    return ProcessId(process_module._machine(), 1 << 30, 1)


@contextmanager
def killed_after(changes: int, *tiers: Tier) -> Iterator[list[Killed]]:
    """Run the block as a process that is killed after so many writes and deletes on one of `tiers`."""
    real = process_module.current
    process_module.current = dead
    stores = [Killed(tier.store, changes) for tier in tiers]
    try:
        for tier, store in zip(tiers, stores, strict=True):
            tier_module._open_stores[tier, os.getpid()] = store
        yield stores
    except KilledHere:
        pass
    finally:
        process_module.current = real
        for tier, store in zip(tiers, stores, strict=True):
            tier_module._open_stores[tier, os.getpid()] = store.inner


def python(program: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a program in a fresh interpreter; its output is piped."""
    words = [sys.executable, "-W", "error", "-c", program, *map(str, arguments)]
    return subprocess.Popen(words, env=ENV, text=True, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
