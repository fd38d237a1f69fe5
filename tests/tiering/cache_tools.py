"""Node caches of shards that are told by a number, for tests of the cache."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tiering import NodeCache
from tiering.cache import Outlook, Registration, numbers_of
from tiering.digest import digest
from tiering.errors import NotFound

Make = Callable[..., NodeCache]
NBYTES = 1000


@cache
def shard(number: int, nbytes: int = NBYTES) -> bytes:
    return random.Random(number).randbytes(nbytes)


@cache
def name_of(number: int) -> str:
    return digest(shard(number))


@contextlib.contextmanager
def caches_in(folder: Path) -> Iterator[Make]:
    """Makes caches in one folder, closed at the end."""
    made = []

    def make_cache(shards: float, policy: str = "pin", path: Path = folder) -> NodeCache:
        made.append(NodeCache(path, int(shards * NBYTES), policy))
        return made[-1]

    yield make_cache
    for each in made:
        each.close()


def put(
    nodes: NodeCache, number: int, fetched: list[int] | None = None, reader: Registration | None = None
) -> bool:
    def fetch() -> Sequence[bytes]:
        if fetched is not None:
            fetched.append(number)
        return [shard(number)[:10], shard(number)[10:]]

    return nodes.get(name_of(number), NBYTES, fetch, reader)


def outlook(epochs: Sequence[Sequence[int]], speed: float = 1.0, **told: Any) -> Outlook:
    """Of a reader of shards told by numbers; at one shard a second it is never late in a test."""
    numbers = [numbers_of([name_of(shard) for shard in epoch]) for epoch in epochs]
    known = np.unique(np.concatenate([np.empty(0, np.uint64), *numbers]))
    given = {"corpus": "c", "version": 1, "rank": 0, "world_size": 1, "first_epoch": 0, "known": known}
    return Outlook(**{**given, **told}, epochs=numbers, shard_bytes=NBYTES, uses_per_second=speed)


def content(nodes: NodeCache, number: int) -> bytes:
    data = bytearray(NBYTES)
    nodes.read_into(name_of(number), 0, memoryview(data))
    return bytes(data)


def held(nodes: NodeCache, numbers: Sequence[int] = range(20)) -> list[int]:
    """Shards that are there, each found to be right."""
    found = []
    for number in numbers:
        with contextlib.suppress(NotFound):
            assert content(nodes, number) == shard(number)
            found.append(number)
    return found


def files_below(path: Path) -> list[Path]:
    return sorted(file for file in (path / "objects").rglob("*") if file.is_file())


def on_disk(nodes: NodeCache) -> int:
    """Bytes of all files while nobody reserves or evicts, unfinished ones included."""
    sizes = {}
    with nodes._content.transaction():
        for file in files_below(nodes.path):
            with contextlib.suppress(FileNotFoundError):
                stats = file.stat()
                sizes[stats.st_ino] = stats.st_size
    return sum(sizes.values())
