from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dask.delayed import Delayed, delayed
from distributed import Client, get_worker

from tiering import graph, open_tier
from tiering.errors import Corrupt, Unavailable
from tiering.graph import SMALL_BYTES, choose_client, local_cluster, run_tasks


class Watch:
    """Tasks that tell how many of them run at once, and how many were made."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.made = self.running = self.most = self.done = 0
        self._lock = threading.Lock()

    def work(self, number: int) -> int:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        threading.Event().wait(0.001)
        with self._lock:
            self.running -= 1
            self.done += 1
        return number * number

    def tasks(self, work: Any = None) -> Iterator[Delayed]:
        for number in range(self.count):
            self.made += 1
            yield delayed(work or self.work, pure=False)(number)


def square(number: int) -> int:
    return number * number


def fail_at_five(number: int) -> int:
    if number == 5:
        raise Corrupt("it broke", tier="lake", key="web/c/5")
    return number


def fail_always(number: int) -> int:
    raise Corrupt("it broke", tier="lake", key=f"web/c/{number}")


def who(number: int) -> bool:
    with choose_client(None, SMALL_BYTES + 1, []) as chosen:
        return chosen is None and get_worker() is not None


def test_tasks_on_threads_give_all_results_with_few_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph.os, "cpu_count", lambda: 1)
    watch = Watch(50)
    results = []
    for result in run_tasks(watch.tasks(), None):
        results.append(result)
        assert watch.made <= len(results) + 2 * 2 + 2
    assert sorted(results) == [number * number for number in range(50)]
    assert 1 <= watch.most <= 2


def test_tasks_of_an_empty_work_are_none(cluster: Client) -> None:
    assert list(run_tasks(iter(()), None)) == []
    assert list(run_tasks(iter(()), cluster)) == []


@pytest.mark.parametrize("error", [Corrupt("it broke", tier="lake"), KeyboardInterrupt()])
def test_tasks_on_threads_stop_at_the_first_error(error: BaseException) -> None:
    def work(number: int) -> int:
        if number == 3:
            raise error
        return number

    watch = Watch(1000)
    with pytest.raises(type(error)):
        list(run_tasks(watch.tasks(work), None))
    assert watch.made < 100


@pytest.mark.parametrize("on_cluster", [False, True])
def test_tasks_stop_when_the_reader_stops(cluster: Client, on_cluster: bool) -> None:
    watch = Watch(1000)
    results = run_tasks(watch.tasks(square), cluster if on_cluster else None)
    next(results)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    made = watch.made
    assert made < 100
    assert list(results) == []
    assert watch.made == made


def test_tasks_on_a_cluster_give_all_results_with_few_in_flight_and_let_go(cluster: Client) -> None:
    watch = Watch(60)
    threads = sum(cluster.nthreads().values())
    results: list[int] = []
    for result in run_tasks(watch.tasks(square), cluster):
        results.append(result)
        assert watch.made <= len(results) + 4 * threads
    assert sorted(results) == [number * number for number in range(60)]
    assert not [future for future in cluster.futures if future.startswith("square")]


_INTERRUPTED_STARTS = """
import os, signal, threading
import tiering.graph as graph

class Interrupted(graph.LocalCluster):
    def __init__(self, *arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        super().__init__(*arguments, **options)
        clusters.append(self)
        print("kept back", end=", ")

def raise_mine(*_):
    raise ZeroDivisionError

def interrupt(handler, error):
    signal.signal(signal.SIGINT, handler)
    try:
        with graph.local_cluster(processes=False):
            print("not raised")
    except error:
        print("raised", end=", ")
    assert signal.getsignal(signal.SIGINT) is handler
    print(clusters.pop().status.name)

def main():
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    interrupt(signal.default_int_handler, KeyboardInterrupt)
    interrupt(raise_mine, ZeroDivisionError)
    stop.set()

clusters = []
graph.LocalCluster = Interrupted
if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("work", [fail_at_five, fail_always])
def test_tasks_on_a_cluster_raise_the_typed_error_of_a_task(cluster: Client, work: Any) -> None:
    watch = Watch(1000)
    for _ in range(5):  # also when it is not the first of the results that arrive together
        with pytest.raises(Corrupt, match=r"it broke \(tier 'lake', key 'web/c/"):
            list(run_tasks(watch.tasks(work), cluster))
    assert watch.made < 500


def test_tasks_inside_a_task_run_on_its_own_threads(cluster: Client) -> None:
    assert all(run_tasks(Watch(3).tasks(who), cluster))


def test_tasks_whose_cluster_ends_are_unavailable() -> None:
    with local_cluster(processes=False) as client:
        results = run_tasks(Watch(1000).tasks(square), client)
        next(results)
        client.cluster.close()
        with pytest.raises(Unavailable, match=r"lost a task.*Run it again"):
            list(results)


def test_client_is_the_given_or_the_current_one(cluster: Client) -> None:
    with choose_client(cluster, 1, [open_tier("/mnt")]) as chosen:
        assert chosen is cluster
    with cluster.as_current(), choose_client(None, 1, []) as chosen:
        assert chosen is cluster
    for url in ("memory://x", "block:///mnt/volume"):
        with choose_client(cluster, 1 << 40, [open_tier("/mnt"), open_tier(url)]) as chosen:
            assert chosen is None


def test_local_cluster_listens_on_loopback_alone() -> None:
    with local_cluster(processes=False) as client:
        assert client.scheduler.address.startswith("tcp://127.0.0.1:")
        assert client.cluster.dashboard_link.startswith("http://127.0.0.1:")
        assert client.submit(square, 7).result() == 49


_BUSY = (
    "Future exception was never retrieved\n"
    "future: <Future finished exception=TimeoutError('Timeout')>\n"
    "TimeoutError: Timeout\n"
)
"""What Dask says when a busy machine takes long to end its workers."""


def test_local_cluster_keeps_interrupts_back_while_it_starts(tmp_path: Path) -> None:
    """Also where a thread that was there before takes the signal for the main thread."""
    script = tmp_path / "script.py"
    script.write_text(_INTERRUPTED_STARTS)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    told = done.stderr.replace(_BUSY, "")
    assert (done.returncode, told) == (0, "")
    assert done.stdout == 2 * "kept back, raised, closed\n"
