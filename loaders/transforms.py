"""Transforms of batches ahead of the training, in threads or processes.

Invariant: results come in the order of the batches; what goes wrong with a batch, in reading or in the
transform, is raised where that batch would have come, after all before it; at most two batches for each
thread or process are under way.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

from loaders.transform_pool import ProcessPool, pickled_transform
from loaders.transform_worker import Transform, apply
from tiering.arguments import whole
from tiering.errors import UsageError

WORKERS: Final = ("thread", "process")
_AHEAD: Final = 2  # batches for each worker: one that it works on, one that it takes next

Batches = Iterator[tuple[Any, Any]]
"""Rows, and the batch."""
Place = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Work:
    """What is done with each batch, and where.

    Raises:
        UsageError: arguments do not fit each other, or the transform cannot be sent to processes.
    """

    transform: Transform | None = None
    per_row: bool = False
    workers: int = 0
    worker: str = "thread"

    def __post_init__(self) -> None:
        if self.transform is not None and not callable(self.transform):
            raise UsageError(f"transform = {self.transform!r} cannot be called", hint="Give a function")
        if self.worker not in WORKERS:
            raise UsageError(f"worker = {self.worker!r} is none of {', '.join(WORKERS)}")
        if whole(self.workers, "workers", "workers=4") < 0:
            raise UsageError(f"workers = {self.workers} must be at least 0", hint="Example: workers=4")
        if self.transform is None and (self.workers or self.per_row):
            raise UsageError("workers and per_row need a transform", hint="Example: transform=decode")
        if self.transform is not None and self.workers and self.worker == "process":
            pickled_transform(self.transform)

    def begin(self, batches: Batches, place: Place = nullcontext) -> Working:
        """Results of batches, as they are asked for. Close it.

        Args:
            batches: to transform.
            place: called where a batch was made; what it returns is entered by the thread that transforms it.
        """
        if self.transform is None:
            return Working(batches)
        if not self.workers:
            transform, per_row = self.transform, self.per_row
            return Here(batches, lambda batch: apply(transform, per_row, batch))
        pool: _Pool
        if self.worker == "thread":
            pool = _ThreadPool(self.transform, self.per_row, self.workers, place)
        else:
            pool = ProcessPool(self.transform, self.per_row, self.workers)
        return Ahead(batches, pool, _AHEAD * self.workers)


class Working:
    """Batches as they are."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self.seconds = 0.0
        """Time the caller spent on transforms, or waited for them."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Any, Any]:
        return next(self._batches)

    def close(self) -> None:
        """Stop. Idempotent."""


class Here(Working):
    """Transforms each batch when it is asked for."""

    def __init__(self, batches: Batches, transform: Transform) -> None:
        super().__init__(batches)
        self._transform = transform

    def __next__(self) -> tuple[Any, Any]:
        note, batch = next(self._batches)
        begun = time.perf_counter()
        result = self._transform(batch)
        self.seconds += time.perf_counter() - begun
        return note, result


class _Pool(Protocol):
    """Transforms batches elsewhere."""

    def submit(self, batch: Any) -> Any: ...
    def is_done(self, ticket: Any) -> bool: ...
    def result(self, ticket: Any) -> Any: ...
    def close(self) -> None: ...


class Ahead(Working):
    """Transforms up to `most` batches ahead in a pool."""

    def __init__(self, batches: Batches, pool: _Pool, most: int) -> None:
        super().__init__(batches)
        self._pool, self._most = pool, most
        self._pending: deque[tuple[Any, Callable[[], Any], Callable[[], bool]]] = deque()
        self._ended = False

    def __next__(self) -> tuple[Any, Any]:
        # One more for each that is taken, and more only while there would be nothing else to do but wait.
        self._put()
        while not self._ended and len(self._pending) < self._most and not self._pending[0][2]():
            self._put()
        if not self._pending:
            raise StopIteration
        note, result, _ = self._pending.popleft()
        begun = time.perf_counter()
        try:
            return note, result()
        finally:
            self.seconds += time.perf_counter() - begun

    def close(self) -> None:
        """Stop."""
        self._ended = True
        self._pending.clear()
        self._pool.close()

    def _put(self) -> None:
        if self._ended or len(self._pending) >= self._most:
            return
        try:
            note, batch = next(self._batches)
            ticket = self._pool.submit(batch)
        except StopIteration:
            self._ended = True
        except Exception as error:  # noqa: BLE001  # raised where its batch would have come
            self._ended = True
            self._pending.append((0, _raises(error), lambda: True))
        else:
            self._pending.append(
                (note, lambda: self._pool.result(ticket), lambda: self._pool.is_done(ticket))
            )


class _ThreadPool:
    def __init__(self, transform: Transform, per_row: bool, count: int, place: Place) -> None:
        self._owner = os.getpid()
        self._transform, self._per_row, self._place = transform, per_row, place
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="tiering-transform")

    def submit(self, batch: Any) -> Future[Any]:
        return self._threads.submit(self._apply, self._place(), batch)

    def is_done(self, ticket: Future[Any]) -> bool:
        return ticket.done()

    def result(self, ticket: Future[Any]) -> Any:
        return ticket.result()

    def close(self) -> None:
        if self._owner == os.getpid():  # in a forked child there are no threads to end
            self._threads.shutdown(wait=True, cancel_futures=True)

    def _apply(self, place: AbstractContextManager[Any], batch: Any) -> Any:
        with place:
            return apply(self._transform, self._per_row, batch)


def _raises(error: Exception) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail
