"""P1: ten thousand bits turned, one at a time, wherever the engine keeps something: no wrong row, ever.

The corpora are small and lie in memory, so that a flip costs a fraction of a millisecond; the node cache's
files are real ones. What opens, verifies and reads is the engine itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from loaders import Loader
from tests.corpora import make_corpus, promised, seen
from tests.tiering.reader_tools import FORMATS, check_block
from tiering import Corpus, NodeCache, TieringError, catalog, open_corpus, open_tier, verify
from tiering.claim import claimed
from tiering.digest import digest
from tiering.errors import Corrupt, UnsupportedVersion
from tiering.reader import BlockReader
from tiering.scrub import check_batch

FLIPS = int(os.environ.get("TIERING_FLIPS", "10000"))
"""Bits to turn, over all tests here; with fewer than a thousand some kinds of damage are not met."""

ROWS, BLOCK_ROWS, SHARD_BLOCKS = 1000, 250, 3  # blocks that nearly fill their pages
SHARES = {"shards": 0.56, "documents": 0.3, "cache": 0.1, "index": 0.04}

pytestmark = pytest.mark.no_cover  # the same lines ten thousand times: other tests cover them once


def flips(share: str, parts: int = 1) -> int:
    return max(1, round(FLIPS * SHARES[share] / parts))


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.fixture(params=FORMATS, autouse=True)
def quiet(request: pytest.FixtureRequest) -> Iterator[str]:
    """The kind of corpus; thousands of warnings are not looked at."""
    logger = logging.getLogger("tiering")
    logger.setLevel(logging.CRITICAL)
    yield request.param
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def corpus(quiet: str) -> Iterator[Corpus]:
    tier = open_tier(f"memory://flips-{quiet}")
    yield make_corpus(tier, ROWS, BLOCK_ROWS, SHARD_BLOCKS, **FORMATS[quiet])
    for info in list(tier.store.list()):
        tier.store.delete(info.key)


def error_of(work: Callable[[], object]) -> TieringError | None:
    try:
        work()
    except TieringError as error:
        return error
    return None


def hold(corpus: Corpus) -> None:
    with claimed(corpus.tier.store, corpus.name, corpus.record.manifest, shared=True):
        pass


def read_shard(corpus: Corpus, number: int, cache: NodeCache | None = None) -> BlockReader:
    """Read one shard number, every block and column, and compare it with its rows."""
    reader = BlockReader(corpus, cache=cache)
    first, last = (int(corpus.shard_rows[:end].sum()) for end in (number, number + 1))
    for block, start in enumerate(range(first, last, BLOCK_ROWS)):
        check_block(reader, number, block, range(start, min(last, start + BLOCK_ROWS)))
    return reader


def test_flips_in_shards_are_verified_and_read_as_damage(corpus: Corpus) -> None:
    store, dice = corpus.tier.store, random.Random("shards")
    shards = corpus.manifest.select(["key", "shard", "nbytes", "digest"]).to_pylist()
    told: Counter[str] = Counter()
    for _ in range(flips("shards", len(FORMATS))):
        shard = dice.choice(shards)
        key = corpus.key(shard["key"])
        good = bytes(store.read(key))
        store.write(key, [flipped(good, dice.randrange(8 * len(good)))])
        found = check_batch(
            corpus.tier, corpus.name, corpus.version, [shard["key"]], [shard["nbytes"]], [shard["digest"]]
        )
        assert found.corrupt == (shard["key"],)
        error = error_of(lambda: read_shard(corpus, shard["shard"]))  # noqa: B023  # wrong rows fail in it
        assert error is None or (type(error), error.key, error.tier) == (Corrupt, key, corpus.tier.name)
        told["reported" if error else "padding"] += 1
        store.write(key, [good])
    assert verify(corpus).ok
    assert told["reported"] > told.total() // 3, told


def test_flips_in_documents_records_and_claims_never_change_a_corpus(corpus: Corpus) -> None:
    store, dice = corpus.tier.store, random.Random("documents")
    documents = {corpus.key(key): text for key, text in corpus.contents.documents.items()}
    keys = [info.key for info in store.list(corpus.name) if "/.tiering/" in info.key] + sorted(documents)
    told: Counter[str] = Counter()
    for _ in range(flips("documents", len(FORMATS))):
        key = dice.choice(keys)
        good = bytes(store.read(key))
        store.write(key, [flipped(good, dice.randrange(8 * len(good)))])
        hint = key.endswith("/HEAD") or "/claims/" in key
        error = error_of(lambda: open_corpus(corpus.tier, corpus.name))
        if error:
            assert not hint or isinstance(error, UnsupportedVersion), key
            assert error.tier == corpus.tier.name
            told["reported"] += 1
        else:
            found = open_corpus(corpus.tier, corpus.name)
            assert (found.record, found.contents) == (corpus.record, corpus.contents)
            told["harmless"] += 1
        if key in documents:
            relative, expected = key.removeprefix(f"{corpus.name}/"), digest(good)
            assert check_batch(
                corpus.tier, corpus.name, corpus.version, [relative], [len(good)], [expected]
            ).corrupt
        if "/claims/" in key:
            error = error_of(lambda: hold(corpus))
            assert error is None or error.tier == corpus.tier.name
            for info in list(store.list(corpus.key(".tiering/claims"))):
                store.delete(info.key)
        store.write(key, [good])
    assert verify(corpus).ok
    assert min(told["reported"], told["harmless"]) > told.total() // 6, told


def test_flips_in_head_never_hide_the_newest_version(corpus: Corpus) -> None:
    store, name = corpus.tier.store, corpus.name
    newer = replace(corpus.contents, intent="f" * 64)
    catalog.publish(store, name, 3, newer, newer.encode())  # '3' is one bit away from '1'
    key = corpus.key(".tiering/HEAD")
    good = bytes(store.read(key))
    for bit in range(8 * len(good)):
        store.write(key, [flipped(good, bit)])
        with contextlib.suppress(UnsupportedVersion):
            assert catalog.head(store, name).version == 3, flipped(good, bit)


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_flips_in_the_node_cache_never_change_a_row(corpus: Corpus, tmp_path: Path) -> None:
    dice, fetched = random.Random("cache"), 0
    nodes = NodeCache(tmp_path / "cache", "100MB")
    shards = corpus.contents.shards
    for number in range(shards):
        read_shard(corpus, number, nodes)
    numbers = {path["digest"]: path["shard"] for path in corpus.manifest.to_pylist()}
    assert len(files_below(nodes.path / "objects")) == len(numbers)
    for _ in range(flips("cache", len(FORMATS))):
        name = dice.choice(sorted(numbers))
        path = nodes.locate(name).path
        good = path.read_bytes()
        path.write_bytes(flipped(good, dice.randrange(8 * len(good))))
        reader = read_shard(corpus, numbers[name], nodes)
        fetched += reader.counts.bytes_fetched > 0
        path.write_bytes(good)
    assert nodes.status().shards == len(numbers)
    nodes.close()
    assert fetched > flips("cache", len(FORMATS)) // 20


def test_flips_in_the_index_of_the_node_cache_never_change_a_row(corpus: Corpus, tmp_path: Path) -> None:
    dice = random.Random("index")
    folder, capacity = tmp_path / "cache", "100MB"
    index = folder / "index.sqlite"
    nodes = NodeCache(folder, capacity)
    shards = corpus.contents.shards
    for number in range(shards):
        read_shard(corpus, number, nodes)
    used = nodes.status().used_bytes
    nodes.close()
    renewed = 0
    for _ in range(flips("index", len(FORMATS))):
        good = index.read_bytes()
        index.write_bytes(flipped(good, dice.randrange(8 * len(good))))
        nodes = NodeCache(folder, capacity)
        reader = read_shard(corpus, dice.randrange(shards), nodes)
        assert reader.counts.bytes_fetched == 0  # what is there is used, whatever the index says
        assert nodes.status().used_bytes == used
        nodes.close()
        renewed += index.with_name("index.sqlite.bad").exists()
        index.with_name("index.sqlite.bad").unlink(missing_ok=True)
    assert renewed


def test_flips_anywhere_never_reach_a_batch(quiet: str, tmp_path: Path) -> None:
    """From end to end: files, and the loader with a node cache, on a copy that another tier can heal."""
    lake, disk = open_tier(tmp_path / "lake"), open_tier(tmp_path / "disk")
    corpus = make_corpus(disk, ROWS, BLOCK_ROWS, SHARD_BLOCKS, **FORMATS[quiet])
    make_corpus(lake, ROWS, BLOCK_ROWS, SHARD_BLOCKS, **FORMATS[quiet])
    dice, told = random.Random("batches"), Counter[str]()
    with_cache = [None, NodeCache(tmp_path / "cache", "20kB", "lru")]
    for lap in range(20):
        (path,) = dice.sample(
            [file for file in files_below(Path(disk.url)) if ".tiering" not in file.parts], 1
        )
        good = path.read_bytes()
        path.write_bytes(flipped(good, dice.randrange(8 * len(good))))
        loader = Loader(corpus.with_copy(lake), 32, seed=lap, cache=with_cache[lap % 2])
        assert seen(loader) == promised(loader.order, 32)
        told["healed" if path.read_bytes() == good else "padding or document"] += 1
        path.write_bytes(good)
    with_cache[1].close()
    assert told["healed"], told
