"""Looking for damage in a block volume, mending what a digest can prove, making the index anew.

Invariant: nothing is overwritten but a header that is damaged, by the same header, and only where the data
behind it still have the digest that the index names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tiering.errors import NotFound, Unavailable
from tiering.stores.block_format import VolumeInfo
from tiering.stores.block_index import Entry
from tiering.stores.block_layout import Survey, data_digest, parse_header, read_page
from tiering.stores.block_medium import Medium

if TYPE_CHECKING:
    from tiering.stores.block import BlockStore


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that `BlockStore.check` found."""

    key: str
    """Empty for a superblock."""

    offset: int
    """Of the extent's header page, or of the superblock, in the volume, in bytes."""

    what: str
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What `rebuild_index` found and what it lost."""

    info: VolumeInfo
    damaged: Sequence[str]
    """Keys whose header is there and whose data are not what it says: kept as evidence, never read out."""

    lost: Sequence[str]
    """Keys that the old index knew and the volume does not show."""

    outdated: int
    """Headers that lost to a newer one of their key; zeroed."""

    unreadable: Sequence[int]
    """Offsets of pages that could not be read and may have been headers."""


def check_extents(
    store: BlockStore, medium: Medium, stale: Sequence[int], *, deep: bool, repair: bool
) -> Sequence[Problem]:
    """Every extent of `store`, and its superblocks; see `BlockStore.check`."""
    problems = [
        Problem("", offset, "this superblock was damaged or out of date", repaired=not store.read_only)
        for offset in stale
    ]
    for info in store.list():
        with contextlib.suppress(NotFound), store.pinned(info.key) as entry:
            header = _header_problem(store, medium, entry)
            known = "a scan found its data damaged" if entry.damaged else None
            data = _data_problem(medium, entry) if deep else known
            if (header or data) and store.stat(
                entry.key
            ).etag == info.etag:  # else replaced while it was read
                repaired = bool(header and repair and _is_rewritten(store, entry.key))
                problems += [Problem(entry.key, entry.offset, header, repaired)] if header else []
                problems += [Problem(entry.key, entry.offset, data)] if data else []
    return problems


def _is_rewritten(store: BlockStore, key: str) -> bool:
    try:
        return store.rewrite_header(key)
    except Unavailable:  # a bad page, which is told as it is
        return False


def rebuild_index(path: Path, index_path: Path | None = None) -> Rebuilt:
    """Make the index of the volume at `path` anew from a scan of all its bytes.

    Headers that are damaged are mended first, where the index still proves them.

    Raises:
        As `BlockStore`.
    """
    from tiering.stores.block import BlockStore

    with BlockStore(path.name, path, index_path=index_path) as store:
        store.check(deep=False, repair=True)
        named = {info.key for info in store.list()}
    with BlockStore(path.name, path, index_path=index_path, scan=True) as store:
        found = store.survey or Survey()
        return Rebuilt(
            info=store.info(),
            damaged=sorted(entry.key for entry in found.best.values() if entry.damaged),
            lost=sorted(named - set(found.best)),
            outdated=len(found.losers),
            unreadable=found.unreadable,
        )


def _header_problem(store: BlockStore, medium: Medium, entry: Entry) -> str | None:
    page = read_page(medium, entry.offset)
    if page is None:
        return "its header cannot be read"
    header = parse_header(page, store.superblock, entry.offset)
    if header is None:
        return "its header is damaged"
    if header != replace(entry, damaged=False):
        return f"its header is that of {header.key!r}, generation {header.generation}"
    return None


def _data_problem(medium: Medium, entry: Entry) -> str | None:
    try:
        return None if data_digest(medium, entry) == entry.digest else "its data differ from their digest"
    except OSError as error:
        return f"it cannot be read: {error}"
