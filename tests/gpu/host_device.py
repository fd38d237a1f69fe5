"""A device without a GPU: numpy for cupy and `os.preadv` for kvikio; and corpora to read with it."""

import contextlib
import ctypes
import math
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from tiering import Corpus, Tier, ingest

ROWS, BLOCK_ROWS = 700, 16
TOKENS = np.random.default_rng(3).integers(0, 1 << 16, (ROWS, 96), dtype=np.uint16)
LABELS = np.arange(ROWS, dtype=np.int64)
MASKS = np.random.default_rng(5).integers(0, 2, (ROWS, 3, 5)).astype(np.bool_)
COLUMNS = {"tokens": TOKENS, "label": LABELS, "mask": MASKS}


class HostFile:
    """Like `kvikio.CuFile`."""

    def __init__(self, path: Path, cut: int = 0) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self._cut = cut
        self.closed = False
        self.preads = 0

    def fileno(self) -> int:
        return self._fd

    def pread(self, buf: Any, size: int, file_offset: int) -> Any:
        assert not self.closed
        assert buf.nbytes >= size
        self.preads += 1
        done = os.preadv(self._fd, [memoryview(buf)[: size - self._cut]], file_offset)
        return SimpleNamespace(get=lambda: done)

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        os.close(self._fd)


class HostEvent:
    done = True

    def __init__(self) -> None:
        self.waits = 0

    def synchronize(self) -> None:
        self.waits += 1


class LateCopy:
    """A copy that a GPU does as late as it may: when somebody waits for it, or for a later one."""

    def __init__(
        self, copies: list["LateCopy"], batches: Sequence[Mapping[str, Any]], arrays: list[dict[str, Any]]
    ) -> None:
        self._copies = copies
        # By address, for the host arrays may be gone when they are copied.
        self._moves = [
            (made[name], host.__array_interface__["data"][0])
            for batch, made in zip(batches, arrays, strict=True)
            for name, host in batch.items()
        ]
        self.batches = len(batches)
        self.done = False
        copies.append(self)

    def synchronize(self) -> None:
        for copy in self._copies[: self._copies.index(self) + 1]:
            if not copy.done:
                copy.done = True
                for array, address in copy._moves:
                    ctypes.memmove(array.ctypes.data, address, array.nbytes)


class HostDevice:
    """A `Device` without a GPU."""

    name = "host"
    arrays: Any = np

    def __init__(self, *, compat: bool = False, cut: int = 0, error: type[Exception] | None = None) -> None:
        self.compat = compat
        self.files: list[HostFile] = []
        self.events: list[HostEvent] = []
        self.copies: list[LateCopy] = []
        self.current = 0
        """The stream."""
        self.made_on: dict[int, tuple[int, LateCopy]] = {}
        """By identity of each array that was uploaded: the stream it is of, and its copy."""
        self.waits: set[tuple[int, int]] = set()
        """Streams that wait for a copy, and its identity."""
        self.let_go_early = 0
        """Arrays let go before the copy that fills them, which their stream does not wait for."""
        self.locked = 0
        """Arrays in page-locked memory."""
        self._kept: list[dict[str, Any]] = []
        self._cut, self._error = cut, error

    @property
    def preads(self) -> int:
        return sum(file.preads for file in self.files)

    def active(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def memory(self, nbytes: int) -> Any:
        return np.full(nbytes, 0xA5, np.uint8)

    def record(self) -> tuple[int, HostEvent]:
        self.events.append(HostEvent())
        return self.current, self.events[-1]

    def stream(self) -> int:
        return self.current

    def page_locked(self, shape: tuple[int, ...], dtype: Any) -> Any:
        self.locked += 1
        return np.ndarray(shape, dtype, buffer=bytearray(math.prod(shape) * dtype.itemsize))

    def upload(self, batches: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], LateCopy]:
        memory = [{name: np.full_like(host, 1) for name, host in batch.items()} for batch in batches]
        self._kept += memory
        copy, stream = LateCopy(self.copies, batches, memory), self.current
        arrays = [{name: array[:] for name, array in made.items()} for made in memory]
        for made in arrays:
            for array in made.values():
                self.made_on[id(array)] = stream, copy
                weakref.finalize(array, self._let_go, stream, copy)
        return arrays, copy

    def _let_go(self, stream: int, copy: LateCopy) -> None:
        """Note memory that its stream would use again while it is still to be filled."""
        self.let_go_early += not copy.done and (stream, id(copy)) not in self.waits

    def wait(self, event: Any) -> None:
        self.waits.add((self.current, id(event)))

    def copy(self, host: Any, memory: Any) -> None:
        assert host.nbytes == memory.nbytes
        memory[:] = host

    def open(self, path: Path) -> HostFile:
        if self._error:
            raise self._error("cannot open")
        self.files.append(HostFile(path, self._cut))
        return self.files[-1]


def make(tier: Tier, form: str = "zarr", codec: str | None = None) -> Corpus:
    source: Any = COLUMNS
    if form == "arrow":
        tokens = pa.FixedSizeListArray.from_arrays(pa.array(TOKENS.reshape(-1)), 96)
        source = pa.table({"tokens": tokens, "label": LABELS})
    return ingest(
        source,
        tier,
        "web",
        format=form,
        shard_size="20KiB",
        block_rows=BLOCK_ROWS,
        codec=codec,
        progress=False,
    )


def assert_same(left: Mapping[str, Any], right: Mapping[str, Any]) -> None:
    """Both batches have the same columns, dtypes and rows."""
    assert left.keys() == right.keys()
    for name, values in left.items():
        assert right[name].dtype == values.dtype
        np.testing.assert_array_equal(right[name], values)


def shard_file(corpus: Corpus, root: Path, column: str = "tokens", shard: int = 0) -> Path:
    table = corpus.manifest.to_pylist()
    (key,) = [row["key"] for row in table if (row["column"], row["shard"]) == (column, shard)]
    return root / "web" / str(key)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
