"""A job that tells everything it can about itself: ``URL OPTIONS FOLDER``; for the search for secrets.

It prints, and leaves in the folder, whatever an engine may hand to a log, a screen, a colleague or a disk:
representations, pickles, Dask graphs, events, state, errors with the local variables of every frame of ours.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import pickle
import sys
import traceback
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import psutil

from loaders import Loader
from tests.servers import silent_server
from tiering import NodeCache, Tier, ingest, open_corpus, open_tier, plan_move, release, verify
from tiering.cli.main import run
from tiering.errors import TieringError
from tiering.graph import local_cluster
from tiering.stores import file_systems

ROWS = np.arange(4096 * 64, dtype=np.int64).reshape(4096, 64)


def main(url: str, options: str, folder: str) -> None:
    logging.basicConfig(level=logging.DEBUG)
    http.client.HTTPConnection.debuglevel = 1  # as people set it to see what a client sends
    place = Path(folder)
    with local_cluster(processes=True, workers=1) as client:
        client.run(_log_everything, str(place / "worker.log"))
        client.forward_logging(level=logging.DEBUG)
        lake = open_tier(url, "lake", options=json.loads(options))
        disk = open_tier(place / "disk", "disk")
        tell("tier", lake, lake.store, lake.options, vars_of(lake))
        corpus = ingest({"row": ROWS}, lake, "canary", shard_size="512KiB", client=client)
        plan = plan_move(corpus, disk)
        tell("plan", plan, plan.steps, plan.graph(), dict(plan.graph().__dask_graph__()))
        pickled(corpus, lake, plan, plan.graph(), corpus.to_dask())
        plan.run(client)
        staged = open_corpus(disk, "canary", others=[lake])
        tell("verify", verify(corpus, client=client), verify(staged))
        loader = Loader(staged, batch_size=64, cache=NodeCache(place / "cache", "4MiB"))
        for _batch in loader:
            tell("loader", loader, loader.state_dict(), loader.stats)
        for command in (["doctor"], ["ls", "lake"], ["show", "lake", "canary"], ["--json", "doctor"]):
            tell("command", run(["--config", configuration(place, url, options), *command]))
        tell("events", client.get_events(), client.scheduler_info(), client.get_worker_logs())
        tell("scheduler", client.get_scheduler_logs(), client.cluster, client)
        for page in ("status", "tiering", "info/main/workers.html", "metrics"):
            with contextlib.suppress(OSError):
                address = client.dashboard_link.rpartition("/")[0]
                tell(page, urllib.request.urlopen(f"{address}/{page}", timeout=20).read().decode())
        ours = psutil.Process()
        tell("processes", [process.cmdline() for process in (ours, *ours.children(recursive=True))])
        with silent_server() as silence:
            for failure in failures(lake, url, json.loads(options), staged, silence):
                tell("failure", *failure)
        file_systems.is_memory = lambda _path: False  # wherever the folder is
        tell("release", release(staged, lake))


def failures(lake: Tier, url: str, options: dict[str, Any], staged: Any, silence: str) -> Iterator[list[str]]:
    """How errors of each kind look with everything a debugger would show; `silence` never answers."""
    bucket = url.rpartition("/")[0]
    nowhere = {**options, "endpoint_url": "http://127.0.0.1:9", "deadline_seconds": 2}
    lake.store.write("long", [bytes(1 << 20)])
    silent = open_tier(url, "silent", options={**nowhere, "endpoint_url": silence, "retry_attempts": 1})
    attempts = [
        lambda: lake.store.read("none"),
        lambda: lake.store.read_into("long", 1, memoryview(bytearray(1 << 20))),
        lambda: silent.store.read("long"),
        lambda: lake.store.write("../up", [b"x"]),
        lambda: lake.store.write("canary/.tiering/HEAD", [b"x"], if_absent=True),
        lambda: pickle.dumps(lake.store),
        lambda: open_corpus(open_tier(f"{bucket}-none/x", options=options), "canary"),
        lambda: open_corpus(open_tier(f"{url}/x", options=nowhere), "canary"),
        lambda: open_tier(url, options={**options, "secret_access_key": "plain"}),
        lambda: plan_move(staged, open_tier(f"{url}/y", options={**options, "no_such_option": 1})).run(),
    ]
    for attempt in attempts:
        try:
            attempt()
        except (TieringError, TypeError) as error:
            pickled(error)
            whole = traceback.TracebackException.from_exception(error, capture_locals=True)
            yield [repr(error), str(error), *whole.format()]
        else:
            raise AssertionError(f"no error: {attempt}")


def configuration(place: Path, url: str, options: str) -> str:
    path = place / "tiering.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in json.loads(options).items()]
    path.write_text("\n".join([f'[tiers.lake]\nurl = "{url}"\n[tiers.lake.options]', *lines]))
    return str(path)


def tell(what: str, *things: Any) -> None:
    for thing in things:
        sys.stdout.write(f"{what}: {thing!s}\n{thing!r}\n")


def vars_of(thing: Any) -> dict[str, Any]:
    return {name: getattr(thing, name) for name in thing.__slots__}


def pickled(*things: Any) -> None:
    for thing in things:
        with contextlib.suppress(TypeError):  # a store refuses
            sys.stdout.write(f"pickle: {pickle.dumps(thing, protocol=0)!r}\n")
        sys.stdout.write(f"pickle: {cloudpickle.dumps(thing)!r}\n")


def _log_everything(path: str) -> None:
    logging.basicConfig(filename=path, level=logging.DEBUG, force=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
