"""P6: a node cache that holds one shard, and processes and threads that read different ones at full speed."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.corpora import make_corpus, start_python
from tests.tiering.cache_tools import on_disk
from tiering import NodeCache, open_tier

ROUNDS = int(os.environ.get("TIERING_EVICT_ROUNDS", "6"))
ROWS, BLOCK_ROWS, SHARD_BLOCKS = 600, 50, 2

READER = """
import random, sys, threading
from tests.tiering.reader_tools import check_block
from tiering import NodeCache, open_corpus, open_tier
from tiering.reader import BlockReader

folder, cache, capacity, policy, seed, rounds = sys.argv[1:]
seed, rounds = int(seed), int(rounds)
corpus = open_corpus(open_tier(folder, "disk"), "c")
nodes = NodeCache(cache, capacity, policy)
failed = []

def work(worker):
    dice = random.Random(100 * seed + worker)
    reader = BlockReader(corpus, cache=nodes)
    try:
        for _ in range(rounds):
            reader.new_epoch()
            for shard in dice.sample(range(6), 6):
                for block in dice.sample(range(2), 2):
                    start = 100 * shard + 50 * block
                    check_block(reader, shard, block, range(start, start + 50))
        assert not reader.counts.damaged
    except BaseException as error:
        failed.append(error)

sys.stdin.readline()
threads = [threading.Thread(target=work, args=(worker,)) for worker in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failed, failed
nodes.close()
"""


@pytest.mark.parametrize("policy", ["lru", "pin"])
def test_rows_are_right_and_capacity_is_held_while_shards_are_evicted_under_readers(
    tmp_path: Path, policy: str
) -> None:
    corpus = make_corpus(open_tier(tmp_path / "tier", "disk"), ROWS, BLOCK_ROWS, SHARD_BLOCKS)
    assert corpus.contents.shards == ROWS // BLOCK_ROWS // SHARD_BLOCKS
    largest = max(corpus.manifest["nbytes"].to_pylist())
    nodes = NodeCache(tmp_path / "cache", largest + 100, policy)
    arguments = [tmp_path / "tier", nodes.path, nodes.capacity_bytes, policy]
    with contextlib.ExitStack() as stack:
        readers = [start_python(READER, *arguments, seed, ROUNDS) for seed in range(3)]
        for reader in readers:
            stack.enter_context(reader)
            stack.callback(reader.kill)
        for reader in readers:
            assert reader.stdin is not None
            reader.stdin.write("go\n")
            reader.stdin.flush()
        while any(reader.poll() is None for reader in readers):
            with contextlib.suppress(subprocess.TimeoutExpired):
                readers[0].wait(0.02)
            assert on_disk(nodes) <= nodes.capacity_bytes
        assert [reader.communicate()[1] for reader in readers] == [""] * 3
        assert [reader.returncode for reader in readers] == [0] * 3
    assert nodes.status().filling == 0
    nodes.close()
