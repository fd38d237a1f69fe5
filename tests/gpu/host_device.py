"""A device without a GPU: numpy for cupy and `os.preadv` for kvikio; and corpora to read with it."""

import contextlib
import os
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
    def __init__(self) -> None:
        self.waits = 0

    def synchronize(self) -> None:
        self.waits += 1


class HostDevice:
    """A `Device` without a GPU."""

    name = "host"
    arrays: Any = np

    def __init__(self, *, compat: bool = False, cut: int = 0, error: type[Exception] | None = None) -> None:
        self.compat = compat
        self.files: list[HostFile] = []
        self.events: list[HostEvent] = []
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
        return 0, self.events[-1]

    def pinned(self, nbytes: int) -> Any:
        return np.empty(nbytes, np.uint8)

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


def shard_file(corpus: Corpus, root: Path, column: str = "tokens", shard: int = 0) -> Path:
    table = corpus.manifest.to_pylist()
    (key,) = [row["key"] for row in table if (row["column"], row["shard"]) == (column, shard)]
    return root / "web" / str(key)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
