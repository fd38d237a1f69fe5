"""Eight processes that share a node cache, killed at random instants, round after round."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.corpora import run_python

ROUNDS = int(os.environ.get("TIERING_CACHE_KILL_ROUNDS", "4"))
"""200, as a nightly run has, take about a minute of processor time."""

PROCESSES = """
import fcntl, json, os, random, signal, sys
from pathlib import Path
from tests.tiering.cache_tools import NBYTES, content, files_below, held, name_of, outlook, put, shard
from tiering import NodeCache
from tiering.cache import Registration
from tiering.errors import NotFound
from tiering.stores.file import FileStore

folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
SHARDS, CAPACITY = 12, int(4.5 * NBYTES)
for number in range(SHARDS):
    name_of(number)

def kill_at(steps):
    left = [steps]
    def step(*_):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def stepping(real):
        def call(*args, **options):
            step()
            return real(*args, **options)
        return call
    for name in ("open", "write", "pwrite", "unlink", "mkdir", "close"):
        setattr(os, name, stepping(getattr(os, name)))
    os.fsync = os.fdatasync = step  # a kill loses nothing of the page cache
    fcntl.flock = stepping(fcntl.flock)
    FileStore._publish = stepping(FileStore._publish)
    return step

def live(dice):
    policy = dice.choice(["auto", "clairvoyant", "pin", "lru"])
    uses = [dice.randrange(SHARDS) for _ in range(30)]
    step = kill_at(int(2 ** dice.uniform(3, 8)))
    nodes, reader = NodeCache(folder, CAPACITY, policy), Registration()
    nodes.status()
    nodes._content.connection.db.set_trace_callback(step)
    nodes.foretell(reader, outlook([uses]))
    while True:
        for number in uses:
            if put(nodes, number, reader=reader):
                try:
                    assert content(nodes, number) == shard(number)
                except NotFound:  # evicted meanwhile
                    pass

def check(number):
    raw = [file.stat().st_size for file in files_below(folder)]
    assert sum(raw) <= CAPACITY, raw  # unfinished files, too
    nodes = NodeCache(folder, CAPACITY, "lru")
    status = nodes.status()
    assert status.used_bytes <= CAPACITY
    assert status.readers == (), status.readers
    assert list((folder / "readers").iterdir()) == [] if (folder / "readers").exists() else True
    whole = held(nodes, range(SHARDS))  # each found to be right
    files = files_below(folder)
    assert sorted(file.name for file in files) == sorted(name_of(one) for one in whole), files
    assert put(nodes, number % SHARDS)  # nobody waits for the dead
    nodes.close()
    return len(whole)

kept = []
for number in range(rounds):
    children = []
    for place in range(8):
        child = os.fork()
        if not child:
            try:
                live(random.Random(f"{number}-{place}"))
            except BaseException as error:
                print(f"round {number}: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
        children.append(child)
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert ends == [-signal.SIGKILL] * 8, ends
    kept.append(check(number))

nodes = NodeCache(folder, CAPACITY, "lru")
for number in range(SHARDS):
    assert put(nodes, number)
status = nodes.status()
assert (status.filling, status.shards, status.used_bytes) == (0, 4, 4 * NBYTES)
nodes.close()
print(json.dumps(kept))
"""


def test_cache_of_eight_processes_killed_at_random_keeps_within_its_capacity_and_nothing_stale(
    tmp_path: Path,
) -> None:
    kept = json.loads(run_python(PROCESSES, tmp_path / "cache", ROUNDS))
    assert len(kept) == ROUNDS
    assert max(kept) == 4
