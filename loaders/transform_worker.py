"""What is done with a batch on its way to the training, in this process or in one of its own.

Invariant: as a process it ends with the one that started it, however that ends, and leaves nothing: batches
come and go in memory without a name (memfd), which the kernel frees with the last process that has it.

Run as a file, ``python -P transform_worker.py CHANNEL PARENT MEMFD...``: it needs the standard library, and
numpy for transforms of rows, so that a process starts quickly. The other side is `loaders.transform_pool`.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.spawn import prepare
from typing import Any

_ALIGN = 64
_GROWTH_BYTES = 1 << 20
_LOOK_SECONDS = 1.0  # how often a process looks whether its parent is still there

Transform = Callable[[Any], Any]


def apply(transform: Transform, per_row: bool, batch: Any) -> Any:
    """What a transform makes of a batch; with `per_row` it is not asked about a batch without rows."""
    if not per_row:
        return transform(batch)
    rows = rows_of(batch)
    return join([transform(row) for row in rows]) if rows else batch


def rows_of(batch: Any) -> list[dict[str, Any]]:
    """The rows of a batch of arrays ``{column: [rows, ...]}`` or of a record batch.

    Of an array a row has a view, or a numpy scalar. Of a record batch it has numpy arrays for lists of
    numbers without nulls, else Python's own str, bytes, numbers, lists and dicts.
    """
    if isinstance(batch, dict):
        names, columns = list(batch), list(batch.values())
    else:
        names, columns = batch.schema.names, [_values(column) for column in batch.columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def join(results: list[Any]) -> Any:
    """Results of rows as one batch: dicts by their keys, arrays and numbers stacked, all else as a list.

    Raises:
        ValueError: rows have different keys, or arrays different shapes.
    """
    import numpy as np

    first = results[0]
    if isinstance(first, dict):
        for number, result in enumerate(results):
            if not isinstance(result, dict) or result.keys() != first.keys():
                raise ValueError(f"a transform gave {list(first)} for row 0, but not for row {number}")
        return {name: join([result[name] for result in results]) for name in first}
    if isinstance(first, np.ndarray | np.generic | int | float):
        try:
            return np.stack(results)
        except ValueError as error:
            shapes = sorted({np.shape(result) for result in results})
            raise ValueError(
                f"a transform gave arrays of the shapes {shapes[:4]}, which are no batch: "
                "give equal shapes, or lists"
            ) from error
    return results


def _values(column: Any) -> Any:
    import numpy as np
    import pyarrow as pa

    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if is_list and pa.types.is_primitive(kind.value_type) and not column.values.null_count:
        return [None if row is None else np.asarray(row) for row in (each.values for each in column)]
    return column.to_pylist()


class Slab:
    """Memory that two processes share: one puts things there, the other gets them.

    Things are pickled (protocol 5); what they let out of band, as arrays do, is copied once.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map: mmap.mmap | None = None

    def put(self, thing: Any) -> int:
        """Put a thing; returns the number that the other side gets it by. What was there is gone."""
        buffers: list[pickle.PickleBuffer] = []
        head = pickle.dumps(thing, protocol=5, buffer_callback=buffers.append)
        raws = [buffer.raw() for buffer in buffers]
        index = pickle.dumps((head, [raw.nbytes for raw in raws]))
        start = _padded(len(index))
        memory = self._memory(start + sum(_padded(raw.nbytes) for raw in raws), grow=True)
        memory[: len(index)] = index
        for raw in raws:
            memory[start : start + raw.nbytes] = raw
            start += _padded(raw.nbytes)
        return len(index)

    def get(self, index_bytes: int, *, copy: bool) -> Any:
        """Get the thing; without `copy` its arrays lie in the slab, and change with the next one."""
        head, sizes = pickle.loads(self._memory(index_bytes, grow=False)[:index_bytes])  # noqa: S301  # ours
        start = _padded(index_bytes)
        memory = self._memory(start + sum(map(_padded, sizes)), grow=False)
        buffers: list[Any] = []
        for nbytes in sizes:
            view = memory[start : start + nbytes]
            buffers.append(bytearray(view) if copy else view)
            start += _padded(nbytes)
        return pickle.loads(head, buffers=buffers)  # noqa: S301

    def _memory(self, nbytes: int, *, grow: bool) -> memoryview:
        if self._map is None or len(self._map) < nbytes:
            # The map before stays as long as arrays lie in it.
            if grow and os.fstat(self.fd).st_size < nbytes:
                os.ftruncate(self.fd, -(-nbytes // _GROWTH_BYTES) * _GROWTH_BYTES)
            self._map = mmap.mmap(self.fd, os.fstat(self.fd).st_size)
        return memoryview(self._map)


def _padded(nbytes: int) -> int:
    return -(-nbytes // _ALIGN) * _ALIGN


def failure(error: BaseException) -> tuple[str, bytes | None]:
    """An error as text with its traceback, and pickled where it can be."""
    text = "".join(traceback.format_exception(error))
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)  # noqa: S301  # what it was made of a line before
    except Exception:  # noqa: BLE001  # an error of the user's, of any making
        return text, None
    return text, pickled


def work(channel: Connection, parent: int, slabs: list[Slab]) -> None:
    """Transform batches until the other side is gone.

    `slabs`: where batches come in and results go out, for even and for odd ones. The channel has but the
    numbers by which to get them: both sides may write to it without waiting for each other.
    """
    preparation, pickled, per_row = pickle.loads(channel.recv_bytes())  # noqa: S301  # from our parent
    transform: Transform = _ready(preparation, pickled)
    number = 0
    while True:
        while not channel.poll(_LOOK_SECONDS):
            if os.getppid() != parent:
                return
        index_bytes = int(channel.recv_bytes())
        comes, goes = slabs[number % 2 * 2], slabs[number % 2 * 2 + 1]
        try:
            good, index_bytes = True, goes.put(apply(transform, per_row, comes.get(index_bytes, copy=False)))
        except Exception as error:  # noqa: BLE001  # raised on the other side
            good, index_bytes = False, goes.put(failure(error))
        number += 1
        channel.send_bytes(b"%d %d" % (good, index_bytes))


def _ready(preparation: dict[str, Any], pickled: bytes) -> Transform:
    """The transform; one that raises what went wrong, where there is none."""
    try:
        prepare(preparation)
        transform: Transform = pickle.loads(pickled)  # noqa: S301  # from our parent
    except Exception as error:  # noqa: BLE001  # an error of the user's module, of any making
        broken = error

        def fail(batch: Any) -> Any:  # noqa: ARG001
            raise broken

        return fail
    return transform


def main() -> None:
    """Be a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends us
    channel, parent, *fds = map(int, sys.argv[1:])
    try:
        work(Connection(channel), parent, [Slab(fd) for fd in fds])
    except (EOFError, ConnectionError):
        return


if __name__ == "__main__":
    main()
