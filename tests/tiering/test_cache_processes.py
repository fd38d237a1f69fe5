"""The node cache among processes: capacity, single flight, forks, and kills at every instant."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.corpora import run_python, start_python
from tests.tiering.cache_tools import NBYTES, Make, caches_in, files_below, held, on_disk, put
from tiering import NodeCache
from tiering.cache import content
from tiering.digest import digest
from tiering.keys import TEMP_PREFIX


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with caches_in(tmp_path / "cache") as make_cache:
        yield make_cache


GREEDY = """
import random, sys, threading
from pathlib import Path
from tests.tiering.cache_tools import NBYTES, content, name_of, put, shard
from tiering import NodeCache
from tiering.errors import NotFound

folder, seed, policy, shards = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
nodes = NodeCache(folder, int(shards * NBYTES), policy)
calls, failed = [], []

def work(worker):
    choice = random.Random(seed * 100 + worker)
    try:
        for _ in range(20):
            number = choice.randrange(20)
            if put(nodes, number, calls):
                try:
                    assert content(nodes, number) == shard(number)
                except NotFound:  # evicted meanwhile
                    pass
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
print(len(calls), end="")
"""


@pytest.mark.parametrize("policy", ["lru", "pin"])
def test_cache_capacity_is_never_exceeded_by_many_processes_and_threads(make: Make, policy: str) -> None:
    nodes = make(5.5, policy)
    processes = [start_python(GREEDY, nodes.path, seed, policy, 5.5) for seed in range(3)]
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.enter_context(process)
            stack.callback(process.kill)
        for process in processes:  # all begin together, on a cache that none has opened
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        while any(process.poll() is None for process in processes):
            with contextlib.suppress(subprocess.TimeoutExpired):
                processes[0].wait(0.02)
            assert on_disk(nodes) <= nodes.capacity_bytes
            assert nodes.status().used_bytes <= nodes.capacity_bytes
        assert [process.communicate()[1] for process in processes] == [""] * 3
        assert [process.returncode for process in processes] == [0] * 3
    assert nodes.status().filling == 0
    assert nodes.status().used_bytes == on_disk(nodes) == 5 * NBYTES
    assert len(held(nodes)) == 5


def test_cache_single_flight_holds_across_processes(make: Make) -> None:
    nodes = make(100)
    processes = [start_python(GREEDY, nodes.path, seed, "pin", 100) for seed in range(3)]
    calls = 0
    for process in processes:
        with process:
            out, errors = process.communicate("go\n", timeout=120)
        assert process.returncode == 0, errors
        calls += int(out)
    assert calls == nodes.status().shards <= 20


FORKED = """
import os, sys, threading, warnings
from pathlib import Path
from tests.tiering.cache_tools import NBYTES, held, name_of, put, shard
from tiering import NodeCache
from tiering.cache import cache, content

warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads is what is tested
nodes = NodeCache(Path(sys.argv[1]), 10 * NBYTES)
put(nodes, 1)
content._FORK_SECONDS = 0.1  # a fork waits for a transaction, but not for ever
inside, leave = threading.Event(), threading.Event()

def hold():
    with nodes._content.connection.lock:
        inside.set()
        leave.wait()

thread = threading.Thread(target=hold)
thread.start()
inside.wait()
child = os.fork()
if not child:  # the parent's lock is held for ever here, and its connection is not ours
    put(nodes, 1), put(nodes, 2)
    print(held(nodes), flush=True)
    nodes.close()
    os._exit(0)
leave.set()
thread.join()
os.waitpid(child, 0)

cache.WAIT_SECONDS = 0.0
def forking():
    global child
    child = os.fork()
    if not child:
        sys.stdin.readline()  # lives on, with the descriptor of the fill's lock
        os._exit(0)
    return [shard(3)]

nodes.get(name_of(3), NBYTES, forking)
nodes.discard(name_of(3))
print(put(nodes, 3), held(nodes), nodes.status().filling)
nodes.close()
"""


def test_cache_survives_forks(tmp_path: Path) -> None:
    assert run_python(FORKED, tmp_path).splitlines() == ["[1, 2]", "True [1, 2, 3] 0"]


KILLED = """
import os, shutil, signal, sqlite3, sys
from pathlib import Path
from tests.tiering.cache_tools import NBYTES, put
from tiering import NodeCache
from tiering.stores.file import FileStore

folder = Path(sys.argv[1])

def act(nodes, steps):
    left = [steps]
    def step(*_):
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
    def stepping(real):
        def call(*args, **options):
            step()
            return real(*args, **options)
        return call
    nodes.status()
    nodes._content.connection.db.set_trace_callback(step)
    os.fdatasync = stepping(os.fdatasync)
    os.write = stepping(os.write)
    os.open = stepping(os.open)
    FileStore._publish = stepping(FileStore._publish)
    FileStore.delete = stepping(FileStore.delete)
    assert put(nodes, 3)
    step()

for steps in range(200):
    copy = folder / f"{steps}"
    shutil.copytree(folder / "full", copy)
    child = os.fork()
    if not child:
        act(NodeCache(copy, 2 * NBYTES, "lru"), steps)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        print(steps)
        break
"""


def test_cache_killed_at_every_step_of_a_fill_that_evicts_converges(make: Make, tmp_path: Path) -> None:
    full = make(2, "lru", tmp_path / "full")
    put(full, 1)
    put(full, 2)
    full.close()
    steps = int(run_python(KILLED, tmp_path))
    assert steps > 15
    kept = Counter[int]()
    for step in range(steps):
        nodes = make(2, "lru", tmp_path / str(step))
        status = nodes.status()
        assert status.used_bytes <= nodes.capacity_bytes
        assert not [file for file in files_below(nodes.path) if file.name.startswith(TEMP_PREFIX)]
        kept.update(held(nodes))
        assert put(nodes, 4)
        assert put(nodes, 5)
        assert held(nodes) == [4, 5]
        assert nodes.status().used_bytes == on_disk(nodes) == 2 * NBYTES
        assert nodes.status().filling == 0
        nodes.close()
    assert kept[2] == steps
    assert 0 < kept[1] < steps
    assert 0 < kept[3] < steps


FILLER = """
import sys
from pathlib import Path
from tests.tiering.cache_tools import NBYTES, name_of, put, shard
from tiering import NodeCache
from tiering.stores.file import FileStore

nodes = NodeCache(Path(sys.argv[1]), 2 * NBYTES)

def wait(*_, **__):
    print("filling", flush=True)
    sys.stdin.readline()
    return [shard(1)]

if sys.argv[2] == "write":
    FileStore._publish = wait
    put(nodes, 1)
else:
    nodes.get(name_of(1), NBYTES, wait)
"""


@pytest.mark.parametrize("where", ["fetch", "write"])
def test_cache_process_killed_while_it_fills_blocks_nobody_that_runs_on(make: Make, where: str) -> None:
    nodes = make(2)
    assert nodes.status().filling == 0
    with start_python(FILLER, nodes.path, where) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "filling\n"
        assert put(nodes, 2)
        assert not put(nodes, 3)  # the room is reserved by one that lives
        process.kill()
    assert put(nodes, 3)
    assert nodes.status().filling == 0
    assert held(nodes) == [2, 3]
    assert len(files_below(nodes.path)) == 2  # its unfinished file is gone too


def test_cache_process_killed_while_it_fills_is_taken_over(make: Make) -> None:
    nodes, fetched = make(2), list[int]()
    nodes.status()
    with start_python(FILLER, nodes.path, "fetch") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "filling\n"
        process.kill()
    assert put(nodes, 1, fetched)
    assert fetched == [1]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_cache_is_shared_with_a_forked_child_as_with_any_other_process(tmp_path: Path) -> None:
    """SQLite would take locks that a child inherits in memory for the child's own."""
    cache = NodeCache(tmp_path, 10_000)
    fill(cache, range(1))
    (told, tell), (go, said) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        failed = True
        try:
            fill(cache, range(10, 12))
            os.write(tell, b"x")
            os.read(go, 1)
            fill(cache, range(20, 29))
            failed = cache.status().used_bytes > 10_000 or stored_bytes(tmp_path) > 10_000
        finally:
            os._exit(failed)
    assert os.read(told, 1)
    cache.close()  # it is the last of this process, and not the last of all
    with closing(NodeCache(tmp_path, 10_000, "lru")) as other:
        fill(other, range(30, 39))
        os.write(said, b"x")
        assert os.waitpid(child, 0)[1] == 0
        fill(other, range(40, 45))
        assert other.status().used_bytes <= 10_000
    assert stored_bytes(tmp_path) <= 10_000
    for pipe in (told, tell, go, said):
        os.close(pipe)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_cache_works_at_once_in_children_forked_in_mid_transaction(tmp_path: Path) -> None:
    with closing(NodeCache(tmp_path, 100_000)) as cache:
        stop = threading.Event()

        def use() -> None:
            while not stop.is_set():
                fill(cache, range(20))

        thread = threading.Thread(target=use)
        thread.start()
        try:
            for _ in range(10):
                child = os.fork()
                if not child:
                    failed = True
                    try:
                        signal.alarm(60)  # what hangs is ended
                        fill(cache, range(1))
                        failed = bool(cache._sick)
                    finally:
                        os._exit(failed)
                assert os.waitpid(child, 0)[1] == 0
        finally:
            stop.set()
            thread.join()


def test_thread_that_forked_leaves_alone_what_another_holds_to_fork(tmp_path: Path) -> None:
    with closing(NodeCache(tmp_path, 100_000)) as cache:
        fill(cache, range(1))
        lock = cache._content.connection.lock
        held, go = threading.Event(), threading.Event()

        def fork() -> None:
            content._close_for_fork()
            held.set()
            go.wait()
            content._go_on_after_fork()

        content._close_for_fork()
        thread = threading.Thread(target=fork)
        thread.start()
        content._go_on_after_fork()
        assert held.wait(60)
        content._go_on_after_fork()
        assert lock.locked()
        go.set()
        thread.join()
        assert not lock.locked()


def fill(cache: NodeCache, numbers: range) -> None:
    for number in numbers:
        data = number.to_bytes(2, "big") * 500
        cache.get(digest([data]), len(data), lambda data=data: [data])  # type: ignore[misc]


def stored_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "objects").rglob("*") if path.is_file())
