"""Corpora whose copies can be damaged, and reads of all their blocks, for tests of the reader."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tests.corpora import columns, make_corpus
from tiering import Corpus, NodeCache, open_corpus, open_tier, plan_move
from tiering.reader import BlockReader

FORMATS: dict[str, dict[str, Any]] = {"zarr": {}, "zstd": {"codec": "zstd:3"}, "arrow": {"format": "arrow"}}
ROWS, BLOCK_ROWS, SHARD_BLOCKS = 600, 16, 4


def stage(folder: Path, kind: str) -> Corpus:
    lake, disk = open_tier(folder / "lake", "lake"), open_tier(folder / "disk", "disk")
    corpus = make_corpus(lake, ROWS, BLOCK_ROWS, SHARD_BLOCKS, **FORMATS[kind])
    plan_move(corpus, disk).run(progress=False)
    return corpus.at(disk)


def alone(corpus: Corpus) -> Corpus:
    """The same copy, with no other tier known."""
    return open_corpus(corpus.tier, corpus.name)


def read_only(corpus: Corpus) -> Corpus:
    tier = open_tier(corpus.tier.url, "disk", read_only=True)
    return open_corpus(tier, corpus.name, others=corpus.others)


def shard_files(corpus: Corpus) -> list[Path]:
    return [Path(corpus.tier.url, corpus.key(key)) for key in corpus.manifest["key"].to_pylist()]


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def remove(file: Path) -> None:
    file.unlink()


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def read_all(corpus: Corpus, cache: NodeCache | None = None) -> BlockReader:
    """Read every block with all columns and compare it with its rows."""
    reader = BlockReader(corpus, cache=cache)
    starts = np.concatenate([[0], np.cumsum(corpus.shard_rows)]).tolist()
    for shard, (first, last) in enumerate(pairwise(starts)):
        for block, start in enumerate(range(first, last, BLOCK_ROWS)):
            check_block(reader, shard, block, range(start, min(start + BLOCK_ROWS, last)))
    return reader


def check_block(reader: BlockReader, shard: int, block: int, rows: range) -> None:
    slots = {c.name: memoryview(bytearray(reader.slot_rows(c) * c.row_bytes)) for c in reader.columns}
    reader.read(shard, block, slots)
    for column in reader.columns:
        found = np.frombuffer(slots[column.name], column.dtype)[
            : len(rows) * column.row_bytes // column.dtype.itemsize
        ]
        assert np.array_equal(found.reshape(len(rows), *column.shape), columns(rows)[column.name])
