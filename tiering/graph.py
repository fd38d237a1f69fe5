"""Runs Dask tasks with a bounded number in flight, on a cluster or on threads of this process.

Invariant: results are small and released as soon as they are taken, so that a lost worker never repeats
finished work; whatever ends the loop early (an error, Ctrl-C), nothing more is started afterwards.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from multiprocessing import resource_tracker
from typing import Any, Final

from dask.delayed import Delayed
from distributed import Client, KilledWorker, LocalCluster, as_completed, get_worker
from distributed.client import ClosedClientError
from distributed.comm.core import CommClosedError

from tiering.arguments import need
from tiering.errors import Unavailable
from tiering.tier import Tier

SMALL_BYTES: Final = 1 << 30
"""Up to here work runs on threads: starting a cluster would take longer than it saves."""

_FLIGHTS_PER_THREAD: Final = 2
LOST: Final = (KilledWorker, CancelledError, CommClosedError, ClosedClientError)
"""What Dask raises when a worker, the scheduler or the client is gone."""


@contextmanager
def choose_client(client: Client | None, nbytes: int, tiers: Iterable[Tier]) -> Iterator[Client | None]:
    """The client to run on, or None for threads of this process.

    A tier that only one process can use needs threads, and so does work inside a task, which would wait for
    threads of the cluster that it holds itself. Otherwise the given client is used, then the current one;
    without any, small work runs on threads and large work on a local cluster that ends with it.
    """
    need_client(client)
    if any(tier.process_bound for tier in tiers) or _inside_a_task():
        yield None
        return
    if client is None:
        with contextlib.suppress(ValueError):
            client = Client.current()
    if client is not None or nbytes <= SMALL_BYTES:
        yield client
        return
    with local_cluster(processes=False) as own:
        yield own


def need_client(client: object) -> None:
    """Raise `UsageError` unless it is a Dask client, or None."""
    if client is not None:
        need(client, Client, "client", "client=Client('127.0.0.1:8786')")


@contextmanager
def local_cluster(*, processes: bool, workers: int | None = None) -> Iterator[Client]:
    """A client of a new LocalCluster that listens on loopback alone and ends with the block."""
    cores = os.cpu_count() or 1
    workers = workers or (min(4, cores) if processes else 1)
    with contextlib.ExitStack() as stack:
        with _interrupts_kept_back():
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=max(1, cores // workers) * (1 if processes else 2),
                processes=processes,
                host="127.0.0.1",
                protocol="tcp://",  # the in-process one puts worker pages on the machine's own address
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,  # errors of tasks come as errors; the rest is noise of ending
            )
            stack.enter_context(cluster)
            client = stack.enter_context(Client(cluster))
        yield client


@contextmanager
def _interrupts_kept_back() -> Iterator[None]:
    """Let Ctrl-C wait until the end of the block, and never reach the threads and processes it starts.

    A terminal interrupts all processes at once. Workers must leave it to the one that commands them, which
    ends them in order; and a cluster that is stopped while it starts cannot be closed.

    The mask is what they inherit. It does not keep interrupts from this process: threads that were there
    before, such as those of numpy's linear algebra, take them for the main thread, where Python handles them.
    """
    kept: list[int] = []
    usual = signal.getsignal(signal.SIGINT)
    ours = threading.current_thread() is threading.main_thread() and callable(usual)
    resource_tracker.ensure_running()  # whoever starts it has interrupts let through again
    if ours:
        signal.signal(signal.SIGINT, lambda number, _frame: kept.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if ours:
            signal.signal(signal.SIGINT, usual)
        if kept:
            signal.raise_signal(signal.SIGINT)


def run_tasks(tasks: Iterable[Delayed], client: Client | None) -> Iterator[Any]:
    """Results of the tasks as they finish, in no order; the first error of a task is raised."""
    return _on_threads(tasks) if client is None else _on_cluster(tasks, client)


def _inside_a_task() -> bool:
    try:
        get_worker()
    except ValueError:
        return False
    return True


def _on_threads(tasks: Iterable[Delayed]) -> Iterator[Any]:
    threads = min(8, 2 * (os.cpu_count() or 1))
    pool = ThreadPoolExecutor(threads, thread_name_prefix="tiering")
    try:
        waiting = iter(tasks)
        flying: set[Future[Any]] = set()
        while True:
            room = threads * _FLIGHTS_PER_THREAD - len(flying)
            flying |= {_submit(pool, task) for task in islice(waiting, room)}
            if not flying:
                return
            done, flying = wait(flying, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ThreadPoolExecutor, task: Delayed) -> Future[Any]:
    try:
        return pool.submit(task.compute, scheduler="synchronous")
    except RuntimeError as error:
        hint = "Let this process have more threads (ulimit -u, pids.max) or more memory, and run it again"
        raise Unavailable(f"no thread could be started: {error}", hint=hint) from error


def _on_cluster(tasks: Iterable[Delayed], client: Client) -> Iterator[Any]:
    threads = sum(client.nthreads().values()) or 1
    waiting = iter(tasks)
    first = [client.compute(task) for task in islice(waiting, threads * _FLIGHTS_PER_THREAD)]
    # The loop by name: else it takes that of the default client, which need not be this one.
    flying = as_completed(first, loop=client.loop, with_results=True)
    try:
        for done in flying.batches():
            for future, result in done:
                # Only the first result of a batch is looked at by `as_completed` itself.
                if future.status != "finished":
                    raise _failure(future.status, result)
                future.release()
                yield result
            flying.update([client.compute(task) for task in islice(waiting, len(done))])
    except LOST as error:
        raise _failure(type(error).__name__, error) from error
    finally:
        with contextlib.suppress(*LOST, TimeoutError):
            client.cancel(list(flying.futures))


def _failure(status: str, result: Any) -> BaseException:
    """What to raise for a task that did not finish; `result` is its error, or (type, error, traceback)."""
    error = result[1] if isinstance(result, tuple) else result
    if isinstance(error, Exception) and not isinstance(error, LOST):
        return error
    return Unavailable(f"the Dask cluster lost a task ({status}: {error})", hint="Run it again to go on")
