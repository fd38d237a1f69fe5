"""Transforms in threads and processes: order, errors, states under prefetch, and that nothing is left."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from loaders import Loader
from loaders.transform_pool import WorkerTraceback
from loaders.transform_worker import Slab, join, rows_of
from tests.corpora import memory_corpus, promised, start_python
from tests.loaders import transform_work as work
from tiering import Corpus
from tiering.errors import Unavailable, UsageError


@pytest.fixture(scope="module")
def corpus() -> Iterator[Corpus]:
    """600 rows in shards of 64, the last one shorter."""
    with memory_corpus(600, 16, 4) as made:
        yield made


def children() -> set[int]:
    """Processes that this one started and that have not ended, or were not waited for."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has ended
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


def mine() -> tuple[set[int], int, list[str]]:
    """Processes, pipes and anonymous files, and threads of the loader; sockets come and go with Dask."""
    threads = sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("tiering"))
    return children(), sum(map(_is_pipe_or_memory, Path("/proc/self/fd").iterdir())), threads


def _is_pipe_or_memory(fd: Path) -> bool:
    try:
        return str(fd.readlink()).startswith(("pipe:", "/memfd:"))
    except FileNotFoundError:  # what listed them
        return False


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = mine()
    yield
    assert mine() == before


def rows_doubled(batch: dict[str, Any]) -> list[int]:
    time.sleep(0.002 * (batch["row"][0] % 3))  # later batches may be done first
    return [2 * row for row in batch["row"].tolist()]


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_give_batches_in_order(corpus: Corpus, workers: int) -> None:
    loader = Loader(corpus, 24, transform=rows_doubled, workers=workers)
    wanted = [[2 * row for row in rows] for rows in promised(loader.order, 24)]
    assert list(loader) == wanted
    assert (loader.stats.rows, loader.stats.batches) == (600, 25)


def test_processes_give_batches_in_order_from_memory_of_their_own(corpus: Corpus) -> None:
    loader = Loader(corpus, 24, transform=work.with_pid, workers=2, worker="process")
    found = list(loader)
    assert [(b["row"] - 1).tolist() for b in found] == promised(loader.order, 24)
    assert all(np.array_equal(b["pair"][:, 0, 0], (b["row"][::2] - 1) * 7 % (1 << 16)) for b in found)
    assert len({batch["pid"] for batch in found} - {os.getpid()}) == 2
    assert all(batch["row"].flags.writeable for batch in found)


def test_processes_give_results_of_any_size(corpus: Corpus) -> None:
    loader = Loader(corpus, 60, transform=work.grows, workers=1, worker="process", shuffle="none", lanes=1)
    assert [(len(b), b[-1]) for b in loader] == [((59 + n) * 5000, n) for n in range(0, 600, 60)]


@pytest.mark.parametrize("worker", ["thread", "process"])
def test_error_of_a_transform_comes_at_its_batch_with_its_traceback(corpus: Corpus, worker: str) -> None:
    loader = Loader(corpus, 24, transform=work.fails_at, workers=2, worker=worker)
    wanted = promised(loader.order, 24)
    bad = next(number for number, rows in enumerate(wanted) if 300 in rows)
    batches = iter(loader)
    assert [next(batches)["row"].tolist() for _ in range(bad)] == wanted[:bad]
    with pytest.raises(KeyError, match="row 300") as caught:
        next(batches)
    assert loader.state_dict()["position"] == bad * loader._step
    if worker == "process":
        assert isinstance(caught.value.__cause__, WorkerTraceback)
        assert 'raise KeyError("row 300")' in str(caught.value.__cause__)
    else:
        assert caught.traceback[-1].name == "fails_at"


def test_error_that_cannot_be_pickled_is_told_by_its_words(corpus: Corpus) -> None:
    loader = Loader(corpus, 24, transform=work.fails_oddly, workers=1, worker="process")
    with pytest.raises(RuntimeError, match="Odd: 2 columns are odd") as caught:
        next(iter(loader))
    assert "fails_oddly" in str(caught.value.__cause__)


def test_process_that_is_killed_is_an_error_at_its_batch(corpus: Corpus) -> None:
    loader = Loader(corpus, 24, transform=work.dies_at, workers=1, worker="process")
    bad = next(number for number, rows in enumerate(promised(loader.order, 24)) if 300 in rows)
    batches = iter(loader)
    with pytest.raises(Unavailable, match=r"was killed by signal 9.*load_state_dict"):
        for _ in batches:
            pass
    assert loader.stats.batches <= bad
    assert loader.state_dict()["position"] == loader.stats.batches * loader._step


@pytest.mark.parametrize("worker", ["thread", "process"])
def test_state_under_prefetch_counts_what_was_handed_out(corpus: Corpus, worker: str) -> None:
    loader = Loader(corpus, 24, transform=work.fails_at, workers=2, worker=worker, seed=8)
    wanted = promised(loader.order, 24)
    for step, _ in enumerate(loader):
        if step == 2:
            state = loader.state_dict()
            break
    fresh = Loader(corpus, 24, seed=8)
    fresh.load_state_dict(state)
    assert [batch["row"].tolist() for batch in fresh] == wanted[3:]
    assert state["position"] == 3 * loader._step


@pytest.mark.parametrize("worker", ["thread", "process"])
def test_set_epoch_in_a_loop_ends_the_workers_at_once(corpus: Corpus, worker: str) -> None:
    before = mine()
    loader = Loader(corpus, 24, transform=work.fails_at, workers=2, worker=worker)
    batches = iter(loader)
    next(batches)
    loader.set_epoch(1)
    assert mine() == before
    with pytest.raises(UsageError, match="ended by a newer one"):
        next(batches)


def test_loader_with_workers_pickles_and_goes_on(corpus: Corpus) -> None:
    loader = Loader(corpus, 24, transform=work.fails_at, workers=1)
    wanted = promised(loader.order, 24)
    batches = iter(loader)
    assert next(batches)["row"].tolist() == wanted[0]
    copy = pickle.loads(pickle.dumps(loader))
    assert next(iter(copy))["row"].tolist() == wanted[1]
    assert next(batches)["row"].tolist() == wanted[1]
    batches.close()  # type: ignore[attr-defined]


def test_loop_in_a_forked_child_leaves_the_workers_to_the_parent(corpus: Corpus) -> None:
    loader = Loader(corpus, 24, transform=work.fails_at, workers=1, worker="process")
    wanted = promised(loader.order, 24)
    batches = iter(loader)
    next(batches)
    child = os.fork()
    if not child:
        try:
            batches.close()  # type: ignore[attr-defined]
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert next(batches)["row"].tolist() == wanted[1]
    batches.close()  # type: ignore[attr-defined]


KILLED = """
import sys
from pathlib import Path
from loaders import Loader
from tests.corpora import memory_corpus
from tests.loaders.transform_work import with_pid
with memory_corpus(96, 16, 4) as corpus:
    for batch in Loader(corpus, 24, transform=with_pid, workers=1, worker="process"):
        print(batch["pid"], flush=True)
        sys.stdin.read()
"""


def test_workers_end_with_a_loop_that_is_killed() -> None:
    with start_python(KILLED) as process:
        assert process.stdout is not None
        worker = os.pidfd_open(int(process.stdout.readline()))
        process.kill()
    try:
        assert select.select([worker], [], [], 30)[0], "the worker still runs"
    finally:
        os.close(worker)


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Ctrl-C raises, also where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_interrupt_ends_the_loop_and_is_not_the_workers_own(corpus: Corpus) -> None:
    loader = Loader(corpus, 24, transform=work.interrupts, workers=1, worker="process")
    batches = iter(loader)
    with pytest.raises(KeyboardInterrupt):
        for _ in batches:
            pass
    batches.close()  # type: ignore[attr-defined]
    assert loader.stats.batches < 2


def test_per_row_calls_the_transform_with_each_row(corpus: Corpus) -> None:
    def of_row(row: dict[str, Any]) -> dict[str, Any]:
        assert row["pair"].shape == (3, 2)
        return {"n": row["row"] * 2, "text": f"row {row['row']}", "sum": row["pair"].sum(axis=0)}

    loader = Loader(corpus, 24, transform=of_row, per_row=True, workers=2)
    for batch, rows in zip(loader, promised(loader.order, 24), strict=True):
        assert batch["n"].tolist() == [2 * row for row in rows]
        assert batch["text"] == [f"row {row}" for row in rows]
        assert batch["sum"].shape == (24, 2)


def test_rows_of_a_record_batch_are_arrays_bytes_and_pythons_own() -> None:
    batch = pa.record_batch(
        {"t": pa.array([[1, 2], None], pa.list_(pa.uint16())), "b": [b"a", b"bc"], "s": [{"k": 1}, None]}
    )
    first, second = rows_of(batch)
    assert (first["t"].dtype, first["t"].tolist()) == (np.uint16, [1, 2])
    assert (first["b"], first["s"]) == (b"a", {"k": 1})
    assert second == {"t": None, "b": b"bc", "s": None}
    assert rows_of(pa.record_batch({"t": pa.array([[1, None]])})) == [{"t": [1, None]}]


def test_join_refuses_rows_that_are_no_batch() -> None:
    assert join([1, 2]).tolist() == [1, 2]
    assert join(["a", None]) == ["a", None]
    with pytest.raises(ValueError, match=r"shapes \[\(1,\), \(2,\)\]"):
        join([np.zeros(1), np.zeros(2)])
    with pytest.raises(ValueError, match=r"gave \['a'\] for row 0, but not for row 1"):
        join([{"a": 1}, {"b": 1}])


def test_slab_holds_one_thing_after_the_other_of_any_size() -> None:
    fd = os.memfd_create("slab")
    here, there = Slab(fd), Slab(fd)
    try:
        for size in (10, 3_000_000, 0, 5):
            thing = {"a": np.arange(size), "t": pa.array(["é"] * 3), "n": None}
            for copy in (True, False):
                found = there.get(here.put(thing), copy=copy)
                assert np.array_equal(found["a"], thing["a"])
                assert (found["t"], found["n"]) == (thing["t"], None)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"worker": "fork", "transform": len, "workers": 1}, "worker = 'fork' is none of thread, process"),
        ({"transform": len, "workers": -1}, "workers = -1"),
        ({"workers": 2}, "workers and per_row need a transform"),
        ({"per_row": True}, "workers and per_row need a transform"),
        (
            {"transform": lambda b: b, "workers": 1, "worker": "process"},
            "cannot be sent to processes.*top of a module",
        ),
        ({"transform": len, "workers": 1, "worker": "process", "device": "cuda:0"}, "worker='thread'"),
        ({"transform": len, "per_row": True, "collate": len}, "per_row needs batches that have rows"),
    ],
)
def test_options_that_do_not_fit_are_refused(corpus: Corpus, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Loader(corpus, 24, **options)
