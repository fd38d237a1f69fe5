"""The plugins on real local clusters, on loopback."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster, Worker

from tiering.errors import UsageError
from tiering.monitor.plugin import (
    NAME,
    TieringSchedulerPlugin,
    TieringWorkerPlugin,
    find,
    install,
    observe,
    publish_counters,
    publish_move,
    publish_tiers,
    watch,
)
from tiering.monitor.stats import COUNTERS, Counters

WAIT_SECONDS = 60.0


@contextmanager
def local_client(**options: Any) -> Iterator[Client]:
    settings: dict[str, Any] = {
        "n_workers": 2,
        "threads_per_worker": 1,
        "processes": False,
        "protocol": "tcp://",
    }
    settings |= {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"} | options
    with LocalCluster(**settings) as cluster, Client(cluster) as client:
        yield client


@pytest.fixture
def client() -> Iterator[Client]:
    COUNTERS.reset()
    with local_client() as client:
        yield client


async def heartbeat(dask_worker: Worker) -> None:
    await dask_worker.heartbeat()


def read_bytes(client: Client, tier: str = "lake") -> int:
    moved = observe(client)["counters"]["moved"]
    return moved[tier]["read"] if tier in moved else 0


def wait_until(condition: Callable[[], bool]) -> None:
    """Ask again until it holds; each question is a round trip to the scheduler, so this does not spin."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"


def scheduler_of(client: Client) -> Any:
    cluster: Any = client.cluster
    return cluster.scheduler


def test_install_serves_the_page_and_its_tab(client: Client) -> None:
    url = install(client)
    assert url is not None
    assert url.startswith("http://127.0.0.1:")
    for page in (url, url.replace("/tiering", "/individual-tiering")):
        with urllib.request.urlopen(page, timeout=WAIT_SECONDS) as answer:
            assert answer.status == 200
    with urllib.request.urlopen(client.dashboard_link, timeout=WAIT_SECONDS) as answer:
        assert answer.read().count(b'<a href="tiering">') == 1


def test_install_again_changes_nothing(client: Client) -> None:
    scheduler = scheduler_of(client)
    url = install(client)
    plugin, applications = find(scheduler), list(scheduler.http_application.applications)
    assert install(client) == url
    assert find(scheduler) is plugin
    assert scheduler.http_application.applications == applications


def test_install_after_unregister_serves_the_page_once(client: Client) -> None:
    scheduler = scheduler_of(client)
    url = install(client)
    applications = list(scheduler.http_application.applications)
    client.unregister_scheduler_plugin(NAME)
    assert install(client) == url
    assert scheduler.http_application.applications == applications


def test_install_without_dashboard_counts_without_page() -> None:
    COUNTERS.reset()
    # An address of None would still take Dask's usual port for its other pages.
    with local_client(scheduler_kwargs={"dashboard": False}) as client:
        assert install(client) is None
        COUNTERS.add_moved("lake", "read", 3)
        client.run(heartbeat)
        assert read_bytes(client) == 3


def test_install_on_inproc_cluster_counts_and_serves_the_page() -> None:
    COUNTERS.reset()
    options = {"protocol": "inproc://", "host": None, "worker_dashboard_address": "127.0.0.1:0"}
    with local_client(**options) as client:
        assert str(install(client)).endswith("/tiering")
        port = scheduler_of(client).http_server.port  # Dask's link names another address than it listens on
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/tiering", timeout=WAIT_SECONDS) as answer:
            assert answer.status == 200
        COUNTERS.add_moved("lake", "read", 3)
        client.run(heartbeat)
        assert read_bytes(client) == 3


def test_install_behind_a_prefix_serves_the_page_there() -> None:
    with local_client(scheduler_kwargs={"http_prefix": "/foo"}) as client:
        url = str(install(client)).replace("/tiering", "/foo/tiering")  # Dask's link does not know the prefix
        with urllib.request.urlopen(url, timeout=WAIT_SECONDS) as answer:
            assert answer.status == 200


def test_preload_serves_the_page_without_install() -> None:
    with local_client(scheduler_kwargs={"preload": ["tiering.monitor.preload"]}) as client:
        url = client.dashboard_link.replace("/status", "/individual-plots.json")
        with urllib.request.urlopen(url, timeout=WAIT_SECONDS) as answer:
            assert b"/individual-tiering" in answer.read()
        assert observe(client)["tiers"] == {}
        assert install(client) == client.dashboard_link.replace("/status", "/tiering")


def test_workers_of_one_process_count_once(client: Client) -> None:
    install(client)
    COUNTERS.add_moved("lake", "read", 3)
    client.run(heartbeat)
    publish_counters(client)
    assert read_bytes(client) == 3
    assert observe(client)["workers"] == 2


def test_departed_workers_keep_their_counters(client: Client) -> None:
    install(client)
    COUNTERS.add_moved("lake", "read", 3)
    client.run(heartbeat)
    client.retire_workers(list(client.scheduler_info()["workers"]))
    assert observe(client)["workers"] == 0
    assert read_bytes(client) == 3


def test_worker_processes_sum_and_send_what_came_after_the_last_heartbeat() -> None:
    def count(nbytes: int) -> None:
        from tiering.monitor.stats import COUNTERS

        COUNTERS.add_moved("lake", "read", nbytes)

    with local_client(processes=True) as client:
        install(client)
        first, second = client.scheduler_info()["workers"]
        client.run(count, 3, workers=[first])
        client.run(count, 5, workers=[second])
        client.run(heartbeat)
        assert read_bytes(client) == 8
        client.run(count, 7, workers=[first])
        client.retire_workers([first])
        wait_until(lambda: read_bytes(client) == 15)
        assert observe(client)["workers"] == 1


def test_late_workers_report_too(client: Client) -> None:
    install(client)
    cluster: Any = client.cluster
    cluster.scale(3)
    client.wait_for_workers(3, timeout=WAIT_SECONDS)
    client.run(heartbeat)
    assert observe(client)["workers"] == 3


def test_published_tiers_moves_and_counters_are_observed(client: Client) -> None:
    install(client)
    counters = Counters()
    counters.add_moved("lake", "read", 11)
    publish_tiers(client, {"disk": {"kind": "file", "used_bytes": 3, "capacity_bytes": 5}})
    publish_move(client, "web to disk", 7, 13)
    publish_counters(client, counters.snapshot())
    observed = observe(client)
    assert observed["tiers"] == {"disk": {"kind": "file", "used_bytes": 3, "capacity_bytes": 5}}
    assert observed["moves"] == {"web to disk": {"done_bytes": 7, "total_bytes": 13, "state": "running"}}
    assert observed["counters"]["moved"]["lake"]["read"] == 11


def test_events_before_install_are_taken_up(client: Client) -> None:
    publish_tiers(client, {"disk": {"kind": "file", "used_bytes": 3, "capacity_bytes": 5}})
    with Client(client.cluster) as other:
        publish_move(other, "web to disk", 7, 13)
    wait_until(lambda: other.id not in scheduler_of(client).clients)
    install(client)
    observed = observe(client)
    assert observed["tiers"]["disk"]["used_bytes"] == 3
    assert observed["moves"]["web to disk"]["state"] == "stopped"


def test_move_stops_when_its_client_leaves(client: Client) -> None:
    install(client)
    with Client(client.cluster) as other:
        publish_move(other, "web to disk", 7, 13)
        assert observe(client)["moves"]["web to disk"]["state"] == "running"
    wait_until(lambda: observe(client)["moves"]["web to disk"]["state"] == "stopped")


def test_wrong_events_from_others_are_ignored(client: Client) -> None:
    install(client)
    client.log_event(NAME, {"nonsense": 1})
    client.log_event("another topic", {"tiers": {}})
    assert observe(client)["tiers"] == {}


def test_wrong_worker_metrics_are_ignored(client: Client) -> None:
    install(client)

    def spoil(dask_worker: Worker) -> None:
        dask_worker.metrics[NAME] = lambda worker: "nonsense"

    client.run(spoil)
    client.run(heartbeat)
    assert observe(client)["workers"] == 0


def test_wrong_arguments_are_refused_before_they_are_sent(client: Client) -> None:
    with pytest.raises(UsageError, match="used_bytes is -1"):
        publish_tiers(client, {"disk": {"kind": "file", "used_bytes": -1, "capacity_bytes": None}})
    with pytest.raises(UsageError, match="done_bytes is -1"):
        publish_move(client, "web to disk", -1, 13)
    assert client.get_events(NAME) == ()


def test_observe_without_install_says_what_to_do(client: Client) -> None:
    with pytest.raises(UsageError, match="install"):
        observe(client)


def test_sample_adds_a_point(client: Client) -> None:
    install(client)
    plugin = find(scheduler_of(client))
    assert plugin is not None
    wait_until(lambda: bool(observe(client)["workers"] and plugin.board.history.points))


def test_asynchronous_client_is_refused(client: Client) -> None:
    async def ask() -> None:
        async with Client(scheduler_of(client).address, asynchronous=True) as other:
            with pytest.raises(UsageError, match="asynchronous"):
                install(other)

    asyncio.run(ask())


def test_plugins_are_pickled_by_import() -> None:
    for plugin in (TieringSchedulerPlugin, TieringWorkerPlugin):
        assert plugin.__module__ == "tiering.monitor.plugin"
        assert plugin.idempotent
        assert plugin.name == NAME


def test_process_that_is_watched_is_counted_while_it_runs_and_at_its_end() -> None:
    COUNTERS.reset()

    def rows() -> int:
        return observe(client)["counters"]["loaded"]["rows"]

    with local_client(n_workers=1, processes=True) as client:
        with watch(client, every_seconds=0.02) as page:
            assert str(page).endswith("/tiering")
            COUNTERS.add_loaded(3, 100, 10)
            wait_until(lambda: rows() == 3)
            COUNTERS.add_loaded(4, 100, 10)
        assert rows() == 7
        events = client.get_events(NAME)
        assert not [event for _, event in events if "counters" in event]  # which the scheduler would keep


def test_watched_process_does_not_wait_for_a_scheduler_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiering.monitor.plugin.END_SECONDS", 0.2)
    told = tmp_path / "scheduler.json"
    words = ["--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"]
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", *words, "--scheduler-file", str(told)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as scheduler:
        try:
            with Client(scheduler_file=str(told), timeout=WAIT_SECONDS) as client:
                with watch(client, every_seconds=0.02):
                    scheduler.send_signal(signal.SIGSTOP)
                    COUNTERS.add_loaded(3, 100, 10)
                senders = [each for each in threading.enumerate() if each.name == "tiering-monitor"]
                assert len(senders) == 1  # it hangs, and nobody waits for it
                scheduler.send_signal(signal.SIGCONT)
                senders[0].join(WAIT_SECONDS)
                assert not senders[0].is_alive()
        finally:
            scheduler.send_signal(signal.SIGCONT)
            scheduler.terminate()


def test_watched_process_goes_on_when_the_cluster_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    with local_client() as client, watch(client, every_seconds=0.02):
        client.cluster.close()
        wait_until(lambda: "are sent no more" in caplog.text)
        COUNTERS.add_loaded(3, 100, 10)
