"""Monitoring on a Dask cluster: counters ride on heartbeats, events on a topic, the scheduler gathers.

Invariant: watching never changes what is watched. The scheduler gets a few hundred bytes per worker and
heartbeat, installs once however often it is asked, and works without a dashboard.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from distributed.diagnostics.plugin import SchedulerPlugin, WorkerPlugin
from tornado.ioloop import PeriodicCallback

from tiering.errors import UsageError
from tiering.monitor.board import Board, Observed, TierUse
from tiering.monitor.stats import COUNTERS, Snapshot

if TYPE_CHECKING:
    from distributed import Client, Scheduler, Worker
    from distributed.scheduler import WorkerState

Answer = TypeVar("Answer")

NAME = "tiering"
"""Name of both plugins, of the metric, of the event topic and of the dashboard page."""

SAMPLE_SECONDS = 1.0
END_SECONDS = 5.0
"""How long the end of `watch` waits for its last report to arrive."""
KEPT_DEPARTED = 256
"""Processes without a worker that are kept apart; older ones are in one sum."""

logger = logging.getLogger(__name__)


class TieringWorkerPlugin(WorkerPlugin):
    """Adds this process's counters to each heartbeat of a worker, and sends them once more when it closes."""

    name = NAME
    idempotent = True

    def setup(self, worker: Worker) -> None:
        """Add the metric."""
        worker.metrics[NAME] = _worker_metric

    def teardown(self, worker: Worker) -> None:
        """Send what came after the last heartbeat."""
        worker.metrics.pop(NAME, None)
        worker.log_event(NAME, {"counters": COUNTERS.snapshot()})


class TieringSchedulerPlugin(SchedulerPlugin):
    """Keeps a `Board` on the scheduler and serves the dashboard page where there is a dashboard."""

    name = NAME
    idempotent = True

    def __init__(self) -> None:
        self.board = Board()
        self.page = False
        self._workers: dict[str, WorkerState] = {}

    async def start(self, scheduler: Scheduler) -> None:
        """Take up what happened before, then show it."""
        self._workers = dict(scheduler.workers)
        for _, message in scheduler.get_events(NAME):
            self.log_event(NAME, message)
        self.board.keep_clients(scheduler.clients)
        self.page = _mount(scheduler)
        if NAME in scheduler.periodic_callbacks:
            scheduler.periodic_callbacks.pop(NAME).stop()  # of a plugin that was unregistered
        if self.page:
            sampler = PeriodicCallback(self.sample, SAMPLE_SECONDS * 1000)
            scheduler.periodic_callbacks[NAME] = sampler  # the scheduler stops it when it closes
            sampler.start()

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Remember the worker's state: it is gone from the scheduler when `remove_worker` is called."""
        self._workers[worker] = scheduler.workers[worker]

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:  # noqa: ARG002 - Dask's
        """Keep the counters of the worker's last heartbeat."""
        state = self._workers.pop(worker, None)
        if state is not None:
            self._report(state)

    def remove_client(self, scheduler: Scheduler, client: str) -> None:  # noqa: ARG002 - Dask's signature
        """Stop showing that client's moves as running."""
        self.board.keep_clients(scheduler.clients)

    def log_event(self, topic: str, msg: Any) -> None:
        """Take an event of ours; a wrong one is logged and ignored."""
        if topic == NAME:
            try:
                self.board.event(msg)
            except UsageError as error:
                logger.warning("Ignored an event on topic %r: %s", NAME, error)

    def observed(self) -> Observed:
        """Return what is known now, with the counters of each worker's last heartbeat."""
        self.board.workers = sum([self._report(state) for state in self._workers.values()])
        self.board.compact(self.board.workers + KEPT_DEPARTED)
        return self.board.observed()

    def sample(self) -> None:
        """Add a point to the history that the dashboard draws."""
        self.board.history.observe(time.time(), self.observed()["counters"])

    def _report(self, state: WorkerState) -> bool:
        snapshot = state.metrics.get(NAME)
        if snapshot is None:
            return False
        try:
            self.board.report(snapshot)
        except UsageError as error:
            logger.warning("Ignored the counters of worker %s: %s", state.address, error)
            return False
        return True


def install(client: Client) -> str | None:
    """Watch a cluster: counters of its workers, and the page "tiering" on its dashboard.

    Asking again changes nothing. `dask scheduler --preload tiering.monitor.preload` does the scheduler's part
    from the start.

    Returns:
        The address of the page, or None where the cluster has no dashboard.

    Raises:
        UsageError: the client is asynchronous.
    """
    _check_client(client)
    client.register_plugin(TieringSchedulerPlugin())
    client.register_plugin(TieringWorkerPlugin())
    if not _ask(client, _has_page):
        return None
    link: str = client.dashboard_link
    return f"{link.rpartition('/')[0]}/{NAME}"


def publish_tiers(client: Client, tiers: Mapping[str, TierUse]) -> None:
    """Tell the scheduler how full tiers are, by name; tiers not named keep their last numbers.

    Raises:
        UsageError: a field is missing, unknown or of the wrong type, or the client is asynchronous.
    """
    _publish(client, {"tiers": dict(tiers)})


def publish_move(client: Client, name: str, done_bytes: int, total_bytes: int) -> None:
    """Tell the scheduler how far the move of that name is.

    It shows as stopped when this client leaves before `done_bytes` reach `total_bytes`.

    Raises:
        UsageError: a number is negative or the name is empty, or the client is asynchronous.
    """
    event = {"move": name, "done_bytes": done_bytes, "total_bytes": total_bytes, "client": client.id}
    _publish(client, event)


def publish_counters(client: Client, snapshot: Snapshot | None = None) -> None:
    """Send this process's counters, for a process that is no worker and so has no heartbeat.

    Raises:
        UsageError: `snapshot` is not what `Counters.snapshot` returns, or the client is asynchronous.
    """
    event = {"counters": COUNTERS.snapshot() if snapshot is None else snapshot}
    _publish(client, event)


@contextlib.contextmanager
def watch(client: Client, every_seconds: float = SAMPLE_SECONDS) -> Iterator[str | None]:
    """Watch a cluster, and this process beside it: its counters are sent as often, until the block ends.

    For a training script whose loader runs in its own process. Nothing that the cluster does, or fails to do,
    reaches the block.

    Yields:
        The address of the page, or None where the cluster has no dashboard.

    Raises:
        UsageError: the client is asynchronous.
    """
    page, ended = install(client), threading.Event()

    def send() -> None:
        try:
            while not ended.wait(every_seconds):
                client.run_on_scheduler(_take, COUNTERS.snapshot())
            client.run_on_scheduler(_take, COUNTERS.snapshot())
        except Exception as error:  # noqa: BLE001  # a closed client may raise anything, even AttributeError
            logger.warning("Counters of this process are sent no more: %r", error)

    sender = threading.Thread(target=send, name="tiering-monitor", daemon=True)
    sender.start()
    try:
        yield page
    finally:
        ended.set()
        sender.join(END_SECONDS)


def observe(client: Client) -> Observed:
    """Return what the scheduler of an installed monitor knows now.

    Raises:
        UsageError: the monitor is not installed there, or the client is asynchronous.
    """
    _check_client(client)
    observed = _ask(client, _observed)
    if observed is None:
        raise UsageError(
            "this cluster has no monitor", hint="Call tiering.monitor.plugin.install(client) first"
        )
    return observed


def find(scheduler: Scheduler) -> TieringSchedulerPlugin | None:
    """Return the plugin that watches this scheduler, if there is one."""
    plugin = scheduler.plugins.get(NAME)
    return plugin if isinstance(plugin, TieringSchedulerPlugin) else None


def _publish(client: Client, event: dict[str, Any]) -> None:
    _check_client(client)
    Board().event(event)  # raises here what the scheduler would only log
    client.log_event(NAME, event)


def _ask(client: Client, question: Callable[[Scheduler], Answer]) -> Answer:
    answer: Answer = client.run_on_scheduler(question)
    return answer


def _check_client(client: Client) -> None:
    if client.asynchronous:
        raise UsageError("the client is asynchronous", hint="Pass a client made with asynchronous=False")


def _worker_metric(worker: Worker) -> Snapshot:  # noqa: ARG001 - Dask's signature
    return COUNTERS.snapshot()


def _has_page(dask_scheduler: Scheduler) -> bool:
    plugin = find(dask_scheduler)
    return plugin is not None and plugin.page


def _observed(dask_scheduler: Scheduler) -> Observed | None:
    plugin = find(dask_scheduler)
    return None if plugin is None else plugin.observed()


def _take(snapshot: Snapshot, dask_scheduler: Scheduler) -> None:
    plugin = find(dask_scheduler)
    if plugin is not None:
        plugin.board.report(snapshot)


def _mount(scheduler: Scheduler) -> bool:
    """Add the page to a running dashboard; False where there is none. Imports bokeh only if there is one."""
    for application in scheduler.http_application.applications:
        if hasattr(application, "app_paths"):
            from tiering.monitor.dashboard import mount  # bokeh only where it runs already

            mount(scheduler, application)
            return True
    return False
