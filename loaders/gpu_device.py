"""Devices and the files they read: what `loaders.gpu` asks of CUDA, cupy and kvikio, imported only here.

Invariant: nothing of kvikio runs before the driver and the GPU have answered, because kvikio may wait forever
for a driver that is not there. No byte of a file is read into device memory before the host found the whole
shard in it to have its digest.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from tiering.digest import Hasher
from tiering.errors import CapacityExceeded, Corrupt, UsageError
from tiering.layout.base import PAGE_BYTES
from tiering.shard_state import RawBlock

KVIKIO_THREADS: Final = 8
"""Without GPUDirect Storage kvikio overlaps reading and copying only by threads, and starts with one."""

_HASH_BYTES: Final = 4 << 20
_INSTALL: Final = "Run pip install 'corpus-tiering[gpu]' on a machine with an NVIDIA GPU, or use device='cpu'"
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Event(Protocol):
    """A point in a stream's work, as of cupy."""

    @property
    def done(self) -> bool:
        """Whether the stream has passed it."""

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
    """Where slots and batches are."""

    name: str
    arrays: Any
    """The module of its arrays: cupy, or numpy in tests on the host."""
    compat: bool
    """Whether `RawFile` goes through host memory too, because GPUDirect Storage cannot be used."""

    def active(self) -> AbstractContextManager[Any]:
        """Make it this thread's device."""

    def memory(self, nbytes: int) -> Any:
        """Uninitialised bytes from a page boundary on, with no work of any stream pending on them."""

    def record(self) -> tuple[int, Event]:
        """The current stream's identity, and an event behind all of its work so far."""

    def copy(self, host: Bytes, memory: Any) -> None:
        """Fill device memory from page-locked memory of the same length; done when it returns."""

    def page_locked(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """An array in page-locked host memory, with any content, that is no view of another array.

        Raises:
            CapacityExceeded: there is no room for it.
        """

    def stream(self) -> int:
        """The current stream's identity."""

    def upload(self, batches: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], Event]:
        """Begin to copy batches of host arrays to new ones of the device, which are of the current stream.

        The copy comes after all work that this stream was given so far, and beside what it is given later.
        It is over behind the event; until then the host arrays must stay as they are.

        Raises:
            CapacityExceeded: the device has no room for it.
        """

    def wait(self, event: Event) -> None:
        """Have what the current stream is given from now on wait for an event."""

    def open(self, path: Path) -> RawFile:
        """Open a file; `OSError` or `RuntimeError` where that cannot be."""


def open_device(name: str) -> Device:
    """The GPU ``cuda:N``.

    Raises:
        UsageError: the name has another form, or there is no such GPU, driver, cupy or kvikio here.
    """
    number = _number(name)
    _check_driver(name)
    cupy = _module(name, "cupy")
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except RuntimeError as error:  # the driver is older than the CUDA that cupy was built for
        raise _missing(name, f"cupy cannot use the GPU: {error}") from error
    if number >= count:
        hint = f"Use 'cuda:0' to 'cuda:{count - 1}'" if count else _INSTALL
        raise UsageError(f"device = {name!r}: this process sees {count} GPU(s)", hint=hint)
    return _Cuda(number, cupy, _module(name, "kvikio"), _module(name, "kvikio.defaults"))


def same_stream(name: str) -> AbstractContextManager[Any]:
    """For another thread: to work on the GPU ``cuda:N`` on the stream that is current in this one."""
    cupy, number = _module(name, "cupy"), _number(name)
    with cupy.cuda.Device(number):
        stream = cupy.cuda.get_current_stream()
    return _using(cupy, number, stream)


def on_stream(name: str, address: int) -> AbstractContextManager[Any]:
    """To have batches of the GPU ``cuda:N`` made on a stream of another library, and their memory used again
    by what comes later on that stream alone.

    Args:
        name: of the GPU.
        address: the stream's ``cudaStream_t``; 0 is the legacy default stream.
    """
    known = _EXTERNAL.get((name, address))
    if known is None:
        cupy, number = _module(name, "cupy"), _number(name)
        with warnings.catch_warnings():
            # What is to replace it, Stream.from_external, destroys the other library's stream at its end.
            warnings.simplefilter("ignore", DeprecationWarning)
            known = cupy, number, cupy.cuda.ExternalStream(address, number)
        _EXTERNAL[name, address] = known
    return _using(*known)


_EXTERNAL: dict[tuple[str, int], tuple[Any, int, Any]] = {}
"""What `_using` takes, by device and address; other libraries have few streams and use them again."""


@contextmanager
def _using(cupy: Any, number: int, stream: Any) -> Iterator[None]:
    with cupy.cuda.Device(number), stream:
        yield


def _number(name: str) -> int:
    found = re.fullmatch(r"cuda:(\d{1,4})", name)
    if not found:
        hint = "Use 'cpu', or 'cuda:0' for the first GPU; each rank names its own"
        raise UsageError(f"device = {name!r} is no device", hint=hint)
    return int(found[1])


def _check_driver(name: str) -> None:
    try:
        result = ctypes.CDLL("libcuda.so.1").cuInit(0)
    except (OSError, AttributeError) as error:
        raise _missing(name, f"no NVIDIA driver here ({error})") from error
    if result:
        raise _missing(name, f"the NVIDIA driver reports error {result} (100 is: no GPU)")


def _module(name: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # without a library it needs each package raises an error of its own
        raise _missing(name, f"{module} cannot be imported ({error})") from error


def _missing(name: str, why: str) -> UsageError:
    return UsageError(f"device = {name!r}: {why}", hint=_INSTALL)


class _Cuda:
    """One NVIDIA GPU; see `Device`."""

    def __init__(self, number: int, cupy: Any, kvikio: Any, defaults: Any) -> None:
        self.name = f"cuda:{number}"
        self._number, self.arrays, self._kvikio = number, cupy, kvikio
        with self.active():
            self._copies = cupy.cuda.Stream(non_blocking=True)
        self.compat = bool(defaults.is_compat_mode_preferred())
        chosen = "KVIKIO_NTHREADS" in os.environ or "KVIKIO_NUM_THREADS" in os.environ
        if not chosen and defaults.get("num_threads") < KVIKIO_THREADS:
            defaults.set("num_threads", KVIKIO_THREADS)

    def active(self) -> AbstractContextManager[Any]:
        return self.arrays.cuda.Device(self._number)  # type: ignore[no-any-return]  # untyped

    def memory(self, nbytes: int) -> Any:
        try:
            whole = self.arrays.empty(nbytes + PAGE_BYTES, np.uint8)
        except MemoryError as error:
            hint = "Give the loader a smaller window_blocks or fewer lanes"
            raise CapacityExceeded(f"{self.name} has no room for {nbytes} bytes", hint=hint) from error
        # The pool reuses memory in the order of this stream, and kvikio writes from streams of its own.
        self.arrays.cuda.get_current_stream().synchronize()
        start = -whole.data.ptr % PAGE_BYTES
        return whole[start : start + nbytes]

    def record(self) -> tuple[int, Event]:
        stream = self.arrays.cuda.get_current_stream()
        return stream.ptr, stream.record(self._event())

    def copy(self, host: Bytes, memory: Any) -> None:
        memory.data.copy_from_host_async(host.ctypes.data, host.nbytes, self._copies)
        self._copies.synchronize()

    def page_locked(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        nbytes = max(1, math.prod(shape) * dtype.itemsize)
        try:
            with self.active():  # a thread that reads would make a context on the first GPU
                memory = self.arrays.cuda.alloc_pinned_memory(nbytes)
        except (MemoryError, RuntimeError) as error:
            hint = "Give the loader a smaller window_blocks, fewer lanes or a smaller batch_size"
            told = f"{nbytes} bytes of host memory cannot be page-locked: {error}"
            raise CapacityExceeded(told, hint=hint) from error
        return np.ndarray(shape, dtype, buffer=memory)

    def stream(self) -> int:
        return self.arrays.cuda.get_current_stream().ptr  # type: ignore[no-any-return]

    def upload(self, batches: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], Event]:
        empty = self.arrays.empty
        try:
            arrays = [{name: empty(host.shape, host.dtype) for name, host in b.items()} for b in batches]
        except MemoryError as error:
            nbytes = sum(host.nbytes for host in batches[0].values())
            hint = "Give the loader a smaller batch_size, or leave it room"
            told = f"{self.name} has no room for {len(batches)} batches of {nbytes} bytes"
            raise CapacityExceeded(told, hint=hint) from error
        self._copies.wait_event(self.record()[1])
        for batch, made in zip(batches, arrays, strict=True):
            for name, host in batch.items():
                if host.nbytes:
                    made[name].data.copy_from_host_async(host.ctypes.data, host.nbytes, self._copies)
        return arrays, self._copies.record(self._event())

    def wait(self, event: Event) -> None:
        self.arrays.cuda.get_current_stream().wait_event(event)

    def _event(self) -> Any:
        return self.arrays.cuda.Event(block=True, disable_timing=True)

    def open(self, path: Path) -> RawFile:
        return self._kvikio.CuFile(path, "r")  # type: ignore[no-any-return]


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
            known = [entry for entry in self._files if entry.path == path and not entry.bad]
            entry = known[0] if known else _Open(path, self._open_file(path))
            self._files = [other for other in self._files if other is not entry] + [entry]
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
        told = f"the file does not hold the {shard.nbytes} bytes that the manifest names {shard.digest[:12]}"
        hint = "'tiering verify' lists all such objects; move the corpus here again from another tier"
        raise Corrupt(told, key=shard.key, hint=hint)
    _PROVEN.add(name)
