"""The node cache: capacity, single flight, kills at every instant, and sickness that stops nobody."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import random
import shutil
import sqlite3
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from loaders import Loader
from tests.corpora import make_corpus, memory_corpus, promised, run_python, seen, start_python
from tiering import NodeCache, cache, open_corpus, open_tier
from tiering.digest import digest
from tiering.errors import ConfigError, Corrupt, NotFound, Unavailable
from tiering.keys import TEMP_PREFIX
from tiering.monitor.stats import COUNTERS
from tiering.stores.file import FileStore

Make = Callable[..., NodeCache]
NBYTES = 1000


def shard(number: int, nbytes: int = NBYTES) -> bytes:
    return random.Random(number).randbytes(nbytes)


def name_of(number: int) -> str:
    return digest(shard(number))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes caches in one folder, closed at the end."""
    made = []

    def make_cache(shards: float, policy: str = "pin", path: Path = tmp_path / "cache") -> NodeCache:
        made.append(NodeCache(path, int(shards * NBYTES), policy))
        return made[-1]

    yield make_cache
    for each in made:
        each.close()


def put(nodes: NodeCache, number: int, fetched: list[int] | None = None) -> bool:
    def fetch() -> Sequence[bytes]:
        if fetched is not None:
            fetched.append(number)
        return [shard(number)[:10], shard(number)[10:]]

    return nodes.get(name_of(number), NBYTES, fetch)


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


def test_cache_fills_once_and_gives_any_range(make: Make) -> None:
    nodes, fetched = make(3), list[int]()
    assert [put(nodes, 1, fetched) for _ in range(3)] == [True] * 3
    assert fetched == [1]
    part = bytearray(100)
    nodes.read_into(name_of(1), 77, memoryview(part))
    assert part == shard(1)[77:177]
    status = nodes.status()
    assert (status.used_bytes, status.shards, status.filling) == (NBYTES, 1, 0)
    assert (status.path, status.policy, status.capacity_bytes) == (nodes.path, "pin", 3 * NBYTES)


def test_cache_counts_hits_and_misses(make: Make) -> None:
    nodes = make(1)
    before = COUNTERS.snapshot()["cache"]
    for number in (1, 1, 2):
        put(nodes, number)
    after = COUNTERS.snapshot()["cache"]
    assert (after["hits"] - before["hits"], after["misses"] - before["misses"]) == (1, 2)
    assert after["hit_bytes"] - before["hit_bytes"] == NBYTES


def test_cache_pin_keeps_what_it_has(make: Make) -> None:
    nodes, fetched = make(2.5), list[int]()
    assert [put(nodes, n, fetched) for n in (1, 2, 3, 1, 3)] == [True, True, False, True, False]
    assert fetched == [1, 2]  # what is refused is not fetched
    assert held(nodes) == [1, 2]


def test_cache_lru_evicts_what_was_not_used_for_longest(make: Make) -> None:
    nodes = make(2.5, "lru")
    assert all(put(nodes, number) for number in (1, 2, 1, 3))
    assert held(nodes) == [1, 3]


def test_cache_fifo_evicts_what_came_first_although_it_was_used(make: Make) -> None:
    nodes = make(2.5, "fifo")
    assert all(put(nodes, number) for number in (1, 2, 1, 3))
    assert held(nodes) == [2, 3]


@pytest.mark.parametrize(("policy", "kept"), [("pin", [1, 2]), ("lru", [1, 4]), ("fifo", [3, 4])])
def test_cache_of_a_smaller_capacity_than_last_time_evicts_at_once(
    make: Make, policy: str, kept: list[int]
) -> None:
    for number in (1, 2, 3, 4, 1):
        put(make(4, policy), number)
    smaller = make(2, policy)
    assert smaller.status().used_bytes == 2 * NBYTES
    assert held(smaller) == kept
    assert len(files_below(smaller.path)) == 2


def test_cache_fits_a_smaller_capacity_also_where_another_has_it_open(make: Make) -> None:
    large, small = make(4, "lru"), make(2, "lru")
    assert small.status().shards == 0
    for number in range(4):
        put(large, number)
    assert put(small, 7)
    assert held(small) == [3, 7]


def test_cache_smaller_than_a_shard_keeps_nothing(make: Make) -> None:
    nodes, fetched = make(0.5, "lru"), list[int]()
    assert not put(nodes, 1, fetched)
    assert not fetched
    assert nodes.status().used_bytes == 0


@pytest.mark.parametrize("policy", ["", "newest", "belady"])
def test_cache_policy_that_is_not_known_is_refused(tmp_path: Path, policy: str) -> None:
    with pytest.raises(ConfigError, match="policy must be one of"):
        NodeCache(tmp_path, 1, policy)


@pytest.mark.parametrize("capacity", [0, -1, "much", "0B"])
def test_cache_capacity_that_is_no_size_is_refused(tmp_path: Path, capacity: str | int) -> None:
    with pytest.raises(ConfigError, match="capacity"):
        NodeCache(tmp_path, capacity)


class Stop(BaseException):
    """Like KeyboardInterrupt."""


@pytest.mark.parametrize("error", [Unavailable("gone"), OSError(5, "bad"), RuntimeError("odd"), Stop()])
def test_cache_passes_on_an_error_of_fetch_and_keeps_nothing_reserved(
    make: Make, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    nodes = make(1)

    def fetch() -> Sequence[bytes]:
        raise error

    with pytest.raises(type(error)) as caught:
        nodes.get(name_of(1), NBYTES, fetch)
    assert caught.value is error
    assert nodes.status().used_bytes == 0
    assert put(nodes, 2)
    assert not caplog.records


def test_cache_refuses_bytes_of_another_digest(make: Make) -> None:
    nodes = make(1)
    with pytest.raises(Corrupt, match="not those of digest"):
        nodes.get(name_of(1), NBYTES, lambda: [shard(2)])
    assert nodes.status().used_bytes == 0
    assert not files_below(nodes.path)
    assert put(nodes, 1)


def test_cache_read_of_what_is_not_there_is_not_found(make: Make) -> None:
    with pytest.raises(NotFound):
        content(make(1), 1)


def test_cache_discard_makes_room_and_the_shard_comes_anew(make: Make) -> None:
    nodes, fetched = make(1), list[int]()
    put(nodes, 1, fetched)
    nodes.discard(name_of(1))
    nodes.discard(name_of(2))
    assert nodes.status().used_bytes == 0
    assert put(nodes, 1, fetched)
    assert fetched == [1, 1]


def test_cache_discard_leaves_alone_what_is_just_being_filled(make: Make) -> None:
    nodes = make(1)

    def fetch() -> Sequence[bytes]:
        nodes.discard(name_of(1))
        assert nodes.status().used_bytes == NBYTES
        return [shard(1)]

    assert nodes.get(name_of(1), NBYTES, fetch)
    assert nodes.status().used_bytes == NBYTES


def test_cache_shard_evicted_while_it_is_read_is_read_to_its_end(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, preadv = make(1, "lru"), os.preadv
    put(nodes, 1)

    def evicting(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        monkeypatch.setattr(os, "preadv", preadv)
        assert put(nodes, 2)
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", evicting)
    assert content(nodes, 1) == shard(1)
    assert held(nodes) == [2]


def test_cache_resident_bytes_are_those_of_the_shards_named(make: Make) -> None:
    nodes = make(5)
    for number in range(3):
        put(nodes, number)
    assert nodes.resident_bytes([name_of(0), name_of(1), name_of(0), name_of(9)]) == 2 * NBYTES


def test_cache_fill_by_another_is_waited_for_and_not_repeated(make: Make) -> None:
    nodes, begun, go = make(1), threading.Event(), threading.Event()
    results: list[bool] = []

    def slow() -> Sequence[bytes]:
        begun.set()
        assert go.wait(60)
        return [shard(1)]

    first = threading.Thread(target=lambda: results.append(nodes.get(name_of(1), NBYTES, slow)))
    first.start()
    assert begun.wait(60)
    fetched: list[int] = []
    others = [threading.Thread(target=lambda: results.append(put(nodes, 1, fetched))) for _ in range(4)]
    for thread in others:
        thread.start()
    assert nodes.status().filling == 1
    go.set()
    for thread in (first, *others):
        thread.join()
    assert results == [True] * 5
    assert not fetched


def test_cache_fill_that_takes_too_long_is_not_waited_for(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "WAIT_SECONDS", 0.0)
    nodes, other, fetched = make(2), make(2), list[int]()

    def slow() -> Sequence[bytes]:
        assert not put(other, 1, fetched)
        assert put(other, 2)  # a living fill is not taken for an abandoned one
        assert other.status().filling == 1
        return [shard(1)]

    assert nodes.get(name_of(1), NBYTES, slow)
    assert not fetched
    assert held(nodes) == [1, 2]


def test_cache_pickled_is_the_same_folder_and_carries_no_connection(make: Make) -> None:
    nodes = make(2, "lru")
    put(nodes, 1)
    copy = pickle.loads(pickle.dumps(nodes))
    assert (copy.path, copy.capacity_bytes, copy.policy) == (nodes.path, 2 * NBYTES, "lru")
    assert repr(copy) == repr(nodes)
    assert put(copy, 1, fetched := [])
    assert not fetched
    copy.close()


def test_cache_closed_opens_again_on_use_and_closes_itself(make: Make) -> None:
    nodes = make(2)
    put(nodes, 1)
    nodes.close()
    nodes.close()
    assert held(nodes) == [1]
    assert put(nodes, 1, fetched := [])
    assert not fetched


# Several processes.

GREEDY = """
import random, sys, threading
from pathlib import Path
from tests.tiering.test_cache import NBYTES, content, name_of, put, shard
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


def on_disk(nodes: NodeCache) -> int:
    """Bytes of all files while nobody reserves or evicts, unfinished ones included."""
    sizes = {}
    with nodes._transaction():
        for file in files_below(nodes.path):
            with contextlib.suppress(FileNotFoundError):
                stats = file.stat()
                sizes[stats.st_ino] = stats.st_size
    return sum(sizes.values())


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
from tests.tiering.test_cache import NBYTES, held, name_of, put, shard
from tiering import NodeCache, cache

warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads is what is tested
nodes = NodeCache(Path(sys.argv[1]), 10 * NBYTES)
put(nodes, 1)
inside, leave = threading.Event(), threading.Event()

def hold():
    with nodes._indexes[os.getpid()].lock:
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
from tests.tiering.test_cache import NBYTES, put
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
    nodes._indexes[os.getpid()].db.set_trace_callback(step)
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
from tests.tiering.test_cache import NBYTES, name_of, put, shard
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


# What a crash or a person leaves behind.


def test_cache_sweeps_unfinished_files(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "objects" / "ab"
    folder.mkdir(parents=True)
    (folder / f"{TEMP_PREFIX}dead").write_bytes(bytes(5000))
    nodes = make(1)
    assert put(nodes, 1)
    assert len(files_below(nodes.path)) == 1


@pytest.mark.parametrize("shards", [2, 5])
def test_cache_whose_index_is_lost_takes_over_the_files_that_fit(make: Make, shards: int) -> None:
    nodes, fetched = make(4), list[int]()
    for number in range(4):
        put(nodes, number)
    nodes.close()
    for file in nodes.path.glob("index.sqlite*"):
        file.unlink()
    (nodes.path / "objects" / "README").write_text("not a shard")
    after = make(shards)
    kept = held(after) if after.status() else []
    assert len(kept) == min(shards, 4)
    assert all(put(after, number, fetched) for number in kept)
    assert not fetched
    assert after.status().used_bytes == len(kept) * NBYTES
    assert (nodes.path / "objects" / "README").exists()


@pytest.mark.parametrize("damage", ["deleted", "truncated"])
@pytest.mark.parametrize("reopened", [True, False])
def test_cache_file_that_was_changed_by_hand_is_fetched_anew(
    make: Make, damage: str, *, reopened: bool
) -> None:
    nodes, fetched = make(1), list[int]()
    put(nodes, 1)
    (file,) = files_below(nodes.path)
    if damage == "deleted":
        file.unlink()
    else:
        os.truncate(file, 10)
    if reopened:
        nodes.close()
    assert put(nodes, 1, fetched)
    assert fetched == [1]
    assert held(nodes) == [1]
    assert nodes.status().used_bytes == NBYTES


# Sickness.


def break_index(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "index.sqlite").write_bytes(b"not a database" * 1000)


def break_index_later(path: Path) -> None:
    path.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(path / "index.sqlite")) as db:
        db.execute("CREATE TABLE entries (something_else TEXT)")


def put_a_file_in_its_place(path: Path) -> None:
    path.write_text("")


def put_a_file_in_place_of_its_objects(path: Path) -> None:
    path.mkdir()
    (path / "objects").write_text("")


def put_a_file_in_place_of_its_locks(path: Path) -> None:
    path.mkdir()
    (path / "locks").write_text("")


@pytest.mark.parametrize(
    "harm",
    [
        break_index,
        break_index_later,
        put_a_file_in_its_place,
        put_a_file_in_place_of_its_objects,
        put_a_file_in_place_of_its_locks,
    ],
)
def test_cache_that_is_sick_changes_no_row_and_says_so_once(
    tmp_path: Path, make: Make, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None]
) -> None:
    harm(tmp_path / "cache")
    with memory_corpus(640, 16, 4) as corpus, caplog.at_level(logging.WARNING):
        nodes = make(1000)
        loader = Loader(corpus, 64, cache=nodes)
        assert [seen(loader) for _ in range(2)] == [
            promised(loader.order, 64, epoch=epoch) for epoch in range(2)
        ]
        assert loader.stats.hit_ratio <= loader.stats.bound
        nodes.discard(name_of(1))
    assert [record.name for record in caplog.records] == ["tiering.cache"]
    assert "takes no more shards" in caplog.text
    assert str(nodes.path) in caplog.text


def test_cache_status_of_a_sick_one_is_an_error_that_names_it(tmp_path: Path, make: Make) -> None:
    break_index(tmp_path / "cache")
    nodes = make(1)
    assert not put(nodes, 1)
    with pytest.raises(Unavailable, match=str(nodes.path)):
        nodes.status()


def test_cache_that_falls_sick_gives_what_it_has(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = make(5)
    put(nodes, 1)
    put(nodes, 2)
    monkeypatch.setattr(FileStore, "_write_temp", Breaks(OSError(28, "No space left on device")))
    assert not put(nodes, 3)
    monkeypatch.undo()
    fetched: list[int] = []
    assert [put(nodes, number, fetched) for number in (1, 2, 3)] == [True, True, False]
    assert not fetched
    nodes.discard(name_of(1))
    assert not put(nodes, 1, fetched)
    assert len(caplog.records) == 1
    healthy = make(5)
    assert put(healthy, 3)
    assert healthy.status().used_bytes == 2 * NBYTES


@pytest.mark.parametrize("number", [1, 13, 30])
def test_cache_folder_that_may_not_be_written_is_a_sickness(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    nodes = make(5)
    monkeypatch.setattr(FileStore, "_write_temp", Breaks(OSError(number, os.strerror(number))))
    assert not put(nodes, 1)
    assert not put(nodes, 2)
    assert len(caplog.records) == 1


class Breaks:
    """A function that only raises."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise self._error


def test_cache_whose_index_is_locked_for_ever_is_a_sickness(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache, "BUSY_SECONDS", 0.0)
    nodes, other = make(5), make(5)
    put(nodes, 1)
    with other._transaction():
        assert put(nodes, 1)
        assert not put(nodes, 2)
    assert len(caplog.records) == 1


TRAINING = """
import resource, sys
from pathlib import Path
from loaders import Loader
from tests.corpora import promised, seen
from tiering import NodeCache, open_corpus, open_tier

corpus = open_corpus(open_tier(sys.argv[1], "disk"), "c")
if sys.argv[3] != "-":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
nodes = NodeCache(Path(sys.argv[2]), "1GB")
loader = Loader(corpus, 64, cache=nodes)
for epoch in range(2):
    assert seen(loader) == promised(loader.order, 64, epoch=epoch)
print(loader.stats.hit_ratio > 0)
nodes.close()
"""


@pytest.mark.parametrize("limit_bytes", [1, 10_000, 100_000])
def test_cache_that_may_write_no_large_files_slows_training_only(tmp_path: Path, limit_bytes: int) -> None:
    make_corpus(open_tier(tmp_path / "tier", "disk"), 640, 16, 4)
    with start_python(TRAINING, tmp_path / "tier", tmp_path / "cache", limit_bytes) as process:
        out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert out.strip() == str(limit_bytes == 100_000)
    assert errors.count("takes no more shards") <= 1


@contextlib.contextmanager
def small_disk(path: Path, nbytes: int) -> Iterator[None]:
    path.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() or mount is None:
        pytest.skip("only root mounts a disk")
    command = [mount, "-t", "tmpfs", "-o", f"size={nbytes}", "tmpfs", str(path)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("this root may not mount")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("read_only", [True, False])
def test_cache_on_a_full_or_read_only_disk_slows_training_only(tmp_path: Path, *, read_only: bool) -> None:
    make_corpus(open_tier(tmp_path / "tier", "disk"), 640, 16, 4)
    with small_disk(tmp_path / "cache", 160 << 10):
        if read_only:
            run_python(TRAINING, tmp_path / "tier", tmp_path / "cache", "-")
            subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "cache")], check=True)
        with start_python(TRAINING, tmp_path / "tier", tmp_path / "cache", "-") as process:
            out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert out == "True\n"
    assert errors.count("takes no more shards") == 1


@pytest.mark.parametrize("policy", ["pin", "lru"])
@pytest.mark.parametrize("shards", [0.5, 1, 1.5])
def test_cache_of_hardly_a_shard_changes_no_row(make: Make, policy: str, shards: float) -> None:
    with memory_corpus(640, 16, 4, format="arrow") as corpus:
        largest = max(corpus.manifest["nbytes"].to_pylist())
        nodes = make(shards * largest / NBYTES, policy)
        loader = Loader(corpus, 64, cache=nodes)
        for epoch in range(2):
            assert seen(loader) == promised(loader.order, 64, epoch=epoch)
            assert nodes.status().used_bytes <= nodes.capacity_bytes
        assert nodes.status().shards == int(shards)


def test_cache_serves_versions_and_tiers_by_content(make: Make, tmp_path: Path) -> None:
    lake = make_corpus(open_tier(tmp_path / "lake", "lake"), 640, 16, 4)
    other = make_corpus(open_tier(tmp_path / "other", "other"), 640, 16, 4, name="same-rows")
    nodes = make(10**6)
    seen(Loader(lake, 64, cache=nodes))
    loader = Loader(open_corpus(other.tier, "same-rows"), 64, cache=nodes)
    assert seen(loader) == promised(loader.order, 64)
    assert loader.stats.bytes_fetched == 0
