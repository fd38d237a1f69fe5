"""Devices and the files they read: what `loaders.gpu` asks of CUDA, cupy and kvikio, imported only here.

Invariant: nothing of kvikio runs before the driver and the GPU have answered, because kvikio may wait forever
for a driver that is not there. No byte of a file is read into device memory before the host found the whole
shard in it to have its digest.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from tiering.digest import Hasher
from tiering.errors import CapacityExceeded, Corrupt, UsageError
from tiering.layout.base import PAGE_BYTES
from tiering.reader import RawBlock

KVIKIO_THREADS: Final = 8
"""Without GPUDirect Storage kvikio overlaps reading and copying only by threads, and starts with one."""

_HASH_BYTES: Final = 4 << 20
_CUDA_ERROR_NO_DEVICE: Final = 100
_INSTALL: Final = "Run pip install 'corpus-tiering[gpu]' on a machine with an NVIDIA GPU, or use device='cpu'"

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Event(Protocol):
    """A point in a stream's work, as of cupy."""

    def synchronize(self) -> Any:
        """Wait until the stream has passed it."""


class RawFile(Protocol):
    """A file open for reads into device memory by many threads, as of kvikio."""

    def fileno(self) -> int:
        """Its descriptor, for reads by the host."""

    def pread(self, buf: Any, size: int, file_offset: int) -> Any:
        """Begin to fill device memory; ``.get()`` waits and returns how many bytes came."""

    def close(self) -> None:
        """Close it; no read may be under way."""


class Device(Protocol):
    """Where slots and batches are. Its arrays are cupy's, or numpy's in tests on the host."""

    name: str
    compat: bool
    """Whether `RawFile` goes through host memory too, because GPUDirect Storage cannot be used."""

    def active(self) -> AbstractContextManager[Any]:
        """Make it this thread's device."""

    def memory(self, nbytes: int) -> Any:
        """Uninitialised bytes from a page boundary on, with no work of any stream pending on them."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """An uninitialised array, on the current stream."""

    def array(self, values: np.ndarray[Any, Any]) -> Any:
        """A copy on the device, on the current stream."""

    def take(self, rows: Any, index: Any, out: Any) -> None:
        """Copy ``rows[index]`` to `out`, on the current stream."""

    def record(self) -> tuple[int, Event]:
        """The current stream's identity, and an event behind all of its work so far."""

    def pinned(self, nbytes: int) -> Bytes:
        """Page-locked host memory."""

    def copy(self, host: Bytes, memory: Any) -> None:
        """Fill device memory from page-locked memory of the same length; done when it returns."""

    def open(self, path: Path) -> RawFile:
        """Open a file; `OSError` or `RuntimeError` where that cannot be."""


def open_device(name: str) -> Device:
    """The GPU ``cuda:N``.

    Raises:
        UsageError: the name has another form, or there is no such GPU, driver, cupy or kvikio here.
    """
    found = re.fullmatch(r"cuda:(\d{1,4})", name)
    if not found:
        hint = "Use 'cpu', or 'cuda:0' for the first GPU; each rank names its own"
        raise UsageError(f"device = {name!r} is no device", hint=hint)
    _check_driver(name)
    cupy = _module("cupy", name)
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except RuntimeError as error:  # the driver is older than the CUDA that cupy was built for
        raise UsageError(f"device = {name!r}: cupy cannot use the GPU: {error}", hint=_INSTALL) from error
    if int(found[1]) >= count:
        hint = f"Use 'cuda:0' to 'cuda:{count - 1}'" if count else _INSTALL
        raise UsageError(f"device = {name!r}: this process sees {count} GPU(s)", hint=hint)
    return _Cuda(int(found[1]), cupy, _module("kvikio", name), _module("kvikio.defaults", name))


def _check_driver(name: str) -> None:
    try:
        result = ctypes.CDLL("libcuda.so.1").cuInit(0)
    except (OSError, AttributeError) as error:
        raise UsageError(f"device = {name!r}: no NVIDIA driver here ({error})", hint=_INSTALL) from error
    if result:
        why = "no GPU" if result == _CUDA_ERROR_NO_DEVICE else f"error {result} of cuInit"
        raise UsageError(f"device = {name!r}: the NVIDIA driver reports {why}", hint=_INSTALL)


def _module(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(f"device = {name!r} needs {error.name}", hint=_INSTALL) from error
    except Exception as error:  # without a library it needs each package raises an error of its own
        raise UsageError(f"device = {name!r}: {module} is broken here: {error}", hint=_INSTALL) from error


class _Cuda:
    """One NVIDIA GPU; see `Device`."""

    def __init__(self, number: int, cupy: Any, kvikio: Any, defaults: Any) -> None:
        self.name = f"cuda:{number}"
        self._number, self._cupy, self._kvikio = number, cupy, kvikio
        with self.active():
            self._copies = cupy.cuda.Stream(non_blocking=True)
        self.compat = bool(defaults.is_compat_mode_preferred())
        if "KVIKIO_NTHREADS" not in os.environ and defaults.get("num_threads") < KVIKIO_THREADS:
            defaults.set("num_threads", KVIKIO_THREADS)

    def active(self) -> AbstractContextManager[Any]:
        device: AbstractContextManager[Any] = self._cupy.cuda.Device(self._number)
        return device

    def memory(self, nbytes: int) -> Any:
        try:
            whole = self._cupy.empty(nbytes + PAGE_BYTES, np.uint8)
        except MemoryError as error:
            raise CapacityExceeded(
                f"{self.name} has no room for {nbytes} bytes of blocks",
                hint="Give the loader a smaller window_blocks or fewer lanes",
            ) from error
        # The pool reuses memory in the order of this stream, and kvikio writes from streams of its own.
        self._cupy.cuda.get_current_stream().synchronize()
        start = -whole.data.ptr % PAGE_BYTES
        return whole[start : start + nbytes]

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        return self._cupy.empty(shape, dtype)

    def array(self, values: np.ndarray[Any, Any]) -> Any:
        return self._cupy.asarray(values)

    def take(self, rows: Any, index: Any, out: Any) -> None:
        self._cupy.take(rows, index, axis=0, out=out)

    def record(self) -> tuple[int, Event]:
        stream = self._cupy.cuda.get_current_stream()
        event: Event = self._cupy.cuda.Event(block=True, disable_timing=True)
        stream.record(event)
        return stream.ptr, event

    def pinned(self, nbytes: int) -> Bytes:
        return np.frombuffer(self._cupy.cuda.alloc_pinned_memory(nbytes), np.uint8, nbytes)

    def copy(self, host: Bytes, memory: Any) -> None:
        memory.data.copy_from_host_async(host.ctypes.data, host.nbytes, self._copies)
        self._copies.synchronize()

    def open(self, path: Path) -> RawFile:
        file: RawFile = self._kvikio.CuFile(path, "r")
        return file


@dataclass(slots=True, eq=False)
class _Open:
    path: Path
    file: RawFile
    users: int = 0
    bad: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class RawFiles:
    """The files that were read last, open; at most `limit` of them that nobody reads."""

    def __init__(self, open_file: Callable[[Path], RawFile], limit: int) -> None:
        self._open_file, self._limit = open_file, limit
        self._files: list[_Open] = []  # the last used one is last
        self._lock = threading.Lock()

    @contextmanager
    def proven(self, raw: RawBlock) -> Iterator[RawFile]:
        """The file of a block, which holds the shard's very bytes, open until the end of the ``with``.

        Raises:
            Corrupt: its bytes are others. OSError, RuntimeError: it cannot be opened.
        """
        path = raw.file.path
        with self._lock:
            entry = next((file for file in self._files if file.path == path and not file.bad), None)
            if entry is None:
                entry = _Open(path, self._open_file(path))
            else:
                self._files.remove(entry)
            self._files.append(entry)
            entry.users += 1
        try:
            with entry.lock:
                prove(raw, entry.file.fileno())
            yield entry.file
        except Corrupt:
            entry.bad = True  # what replaces it is another file of that name
            raise
        finally:
            with self._lock:
                entry.users -= 1
                self._trim()

    def close(self) -> None:
        """Close all files that nobody reads, and the others when they were read."""
        with self._lock:
            self._limit = 0
            self._trim()

    def _trim(self) -> None:
        """Close the oldest files beyond the limit, bad ones, and deleted ones, which only hold space."""
        for entry in [entry for entry in self._files if not entry.users]:
            deleted = not os.fstat(entry.file.fileno()).st_nlink
            if entry.bad or deleted or len(self._files) > self._limit:
                self._files.remove(entry)
                entry.file.close()


_PROVEN: set[tuple[str, int, int, int, int]] = set()
"""Digest, and device, inode, size and time of change of each file that this process found to have it."""


def prove(raw: RawBlock, descriptor: int) -> None:
    """Check the digest of the shard in an open file, unless this process did and the file is unchanged.

    Raises:
        Corrupt: it has another length or digest.
    """
    stats, shard = os.fstat(descriptor), raw.shard
    name = (shard.digest, stats.st_dev, stats.st_ino, stats.st_size, stats.st_mtime_ns)
    if name in _PROVEN:
        return
    hasher, buffer, position = Hasher(), memoryview(bytearray(min(_HASH_BYTES, shard.nbytes))), 0
    while done := os.preadv(descriptor, [buffer[: shard.nbytes - position]], position):
        hasher.update(buffer[:done])
        position += done
    if stats.st_size != shard.nbytes or hasher.hexdigest() != shard.digest:
        raise Corrupt(
            f"the file does not hold the {shard.nbytes} bytes that the manifest names {shard.digest[:12]}",
            key=shard.key,
            hint="'tiering verify' lists all such objects; move the corpus here again from another tier",
        )
    _PROVEN.add(name)
