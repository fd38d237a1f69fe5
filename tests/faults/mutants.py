"""Deliberate faults in the engine, each the loss of one guard, made in a child of the zygote alone.

A harness that lets one of them pass would let the same mistake pass when somebody makes it for good.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

from tiering import catalog, plan, reader, transfer
from tiering.corpus import open_corpus
from tiering.manifest import decode
from tiering.stores import direct, file, file_tree
from tiering.stores.base import ObjectInfo
from tiering.stores.file import FileStore

ingest = sys.modules["tiering.ingest"]  # the package has a function of this name
release = sys.modules["tiering.release"]
move = sys.modules["tiering.move"]


class OtherOs:
    """The module `os` with some functions of its own."""

    def __init__(self, **own: Any) -> None:
        vars(self).update(own)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def bytes_not_synced() -> None:
    direct.os = OtherOs(fdatasync=lambda fd: None)  # type: ignore[attr-defined]


def folder_not_synced() -> None:
    for module in (file, file_tree):
        module.os = OtherOs(fsync=lambda fd: None)  # type: ignore[attr-defined]


def written_in_place() -> None:
    def write(
        self: FileStore, key: str, buffers: Any, *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            return self._write_temp(fd, key, buffers)
        finally:
            os.close(fd)

    FileStore.write = write  # type: ignore[method-assign]


def source_released_before_the_copy_is_published() -> None:
    def publish_copy(source: Any, target: Any, name: str, record: Any) -> None:
        encoded = catalog.manifest_bytes(source.store, name, record)
        release.drop_version(open_corpus(source, name), source)
        catalog.publish(target.store, name, record.version, decode(encoded, record.manifest), encoded)

    plan.publish_copy = publish_copy
    plan.release = lambda *args, **options: 0


def released_without_proof() -> None:
    release._proof = lambda *args: None


def not_read_back() -> None:
    transfer.write_verified = lambda store, key, buffers, *args: store.write(key, buffers)


def block_checksum_ignored() -> None:
    reader.check_block = lambda stored, expected=None: stored[:-4]


def published_before_the_last_shard() -> None:
    run = plan.MovePlan.run

    def early(self: Any, *args: Any, **options: Any) -> Any:
        move.publish_copy(self.corpus.tier, self.target, self.corpus.name, self.corpus.record)
        return run(self, *args, **options)

    plan.MovePlan.run = early  # type: ignore[method-assign]


def claim_ignored() -> None:
    ingest.claimed = lambda *args, **options: contextlib.nullcontext()


MUTANTS: dict[str, Callable[[], None]] = {
    mutant.__name__: mutant
    for mutant in (
        bytes_not_synced,
        folder_not_synced,
        written_in_place,
        source_released_before_the_copy_is_published,
        released_without_proof,
        not_read_back,
        block_checksum_ignored,
        published_before_the_last_shard,
        claim_ignored,
    )
}
