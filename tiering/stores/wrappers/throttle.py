"""Limits bytes and requests a second to a tier, over all threads and processes of a user on this node.

Invariant: what starts within any window of w seconds is at most ``rate * w`` plus a burst, where the burst is
`BURST_SECONDS` of the rate or the largest single transfer, whichever is more. A transfer pays before it
starts and is never cut, so what it costs beyond the burst delays it, not those after it.

The meter is the virtual scheduling form of a token bucket (GCRA, ITU-T I.371): for bytes and for requests the
moment at which all that was admitted is paid. It lies in a file of a few bytes, one for each tier url, under
flock, which the kernel frees when a process dies; what a killed process reserved is forgotten within the
time that it would have taken. Moments are of the clock that runs since boot. A file that is damaged or of
another boot's later moment starts anew.
"""

from __future__ import annotations

import fcntl
import math
import os
import stat
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Final, TypeVar

from tiering.digest import Buffer
from tiering.errors import ConfigError, Unavailable
from tiering.stores.base import ObjectInfo, Store, total_bytes
from tiering.stores.wrappers.base import Guard

T = TypeVar("T")

BURST_SECONDS: Final = 1.0
REQUEST_BYTES: Final = 8 << 20
"""A longer transfer of an object tier counts as one request for each so many bytes."""
LISTED_PER_REQUEST: Final = 1000

_STATE = struct.Struct("<ddd")
_CHECK = struct.Struct("<I")


def boot_seconds() -> float:
    """Seconds since boot, those asleep included: the same for all processes, and never set back."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def runtime_folder() -> Path:
    """The folder of this user for what lasts until the next boot, made when it is not there.

    Raises:
        ConfigError: it is not this user's alone.
    """
    base = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(base, "tiering") if base else Path(tempfile.gettempdir(), f"tiering-{os.getuid()}")
    hint = "Remove it, or set XDG_RUNTIME_DIR to a folder of this user's own"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise ConfigError(f"{str(folder)!r} cannot be made: {error.strerror}", hint=hint) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(f"{str(folder)!r} is not a folder of this user alone", hint=hint)
    return folder


class Meter:
    """Tells how long to wait before so many bytes and requests may start.

    Args:
        path: the file that all processes share.
        bytes_per_second, requests_per_second: rates; None for no limit.
        clock: seconds, the same for all processes.

    Raises:
        ConfigError: the file cannot be opened.
    """

    def __init__(
        self,
        path: Path,
        bytes_per_second: float | None,
        requests_per_second: float | None,
        clock: Callable[[], float] = boot_seconds,
    ) -> None:
        self._rates = (bytes_per_second, requests_per_second)
        self._clock = clock
        self._lock = threading.Lock()  # threads share the file's lock
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            hint = "Set XDG_RUNTIME_DIR to a folder that this user can write to"
            raise ConfigError(f"{str(path)!r} cannot be opened: {error.strerror}", hint=hint) from error

    def reserve(self, nbytes: int, requests: int) -> float:
        """Admit a transfer; returns the seconds after which it may start.

        Raises:
            Unavailable: the meter is closed.
        """
        with self._lock:
            if self._fd < 0:  # its number may be another file's by now
                raise Unavailable(f"the meter in {str(self._path)!r} is closed", hint="Open the tier again")
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            try:
                now = self._clock()
                paid = [
                    max(at, now - BURST_SECONDS) + cost / rate if rate else at
                    for at, cost, rate in zip(self._read(now), (nbytes, requests), self._rates, strict=True)
                ]
                state = _STATE.pack(*paid, now)
                os.pwrite(self._fd, state + _CHECK.pack(zlib.crc32(state)), 0)
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            return max(0.0, *(at - now for at, rate in zip(paid, self._rates, strict=True) if rate))

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)

    def _read(self, now: float) -> tuple[float, float]:
        stored = os.pread(self._fd, _STATE.size + _CHECK.size, 0)
        fresh = now - BURST_SECONDS
        if len(stored) != _STATE.size + _CHECK.size:
            return fresh, fresh
        state = stored[: _STATE.size]
        bytes_at, requests_at, written_at = _STATE.unpack(state)
        if _CHECK.unpack(stored[_STATE.size :])[0] != zlib.crc32(state) or written_at > now:
            return fresh, fresh
        return bytes_at, requests_at


class Throttle(Guard):
    """Waits before each call until the tier's rates allow it.

    Args:
        inner: the store.
        bytes_per_second, requests_per_second: rates; None for no limit.
        place: the tier's url; all throttles of one place share one meter.
        folder: where the meters lie; by default the user's runtime folder.
        clock, sleep: seconds that all processes share, and a pause; tests give their own.

    Raises:
        ConfigError: the meter cannot be opened.
    """

    def __init__(
        self,
        inner: Store,
        bytes_per_second: float | None,
        requests_per_second: float | None,
        place: str,
        *,
        folder: Path | None = None,
        clock: Callable[[], float] = boot_seconds,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(inner)
        self._bytes_per_second = bytes_per_second
        self._requests_per_second = requests_per_second
        self._sleep = sleep
        name = blake2b(place.encode(), digest_size=16).hexdigest()
        path = (folder or runtime_folder()) / f"throttle-{name}"
        self._meter = Meter(path, bytes_per_second, requests_per_second, clock)

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        self._pay(buffer.nbytes)
        self.inner.read_into(key, offset, buffer)

    def read(self, key: str) -> Buffer:
        expected = self.stat(key).nbytes
        self._pay(expected)
        data = self.inner.read(key)
        if len(data) > expected:  # overwritten in between
            self._meter.reserve(len(data) - expected, 0)
        return data

    def write(
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        self._pay(total_bytes(buffers))
        return self.inner.write(key, buffers, if_absent=if_absent, digest=digest)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for number, info in enumerate(self.inner.list(prefix)):
            if number % LISTED_PER_REQUEST == 0:
                self._pay(0)
            yield info

    def close(self) -> None:
        try:
            self.inner.close()
        finally:
            self._meter.close()

    def _call(self, key: str, call: Callable[[], T]) -> T:
        self._pay(0)
        return call()

    def _pay(self, nbytes: int) -> None:
        requests = max(1, math.ceil(nbytes / REQUEST_BYTES)) if self.kind == "object" else 1
        if wait_seconds := self._meter.reserve(nbytes, requests):
            self._sleep(wait_seconds)

    def _numbers(self) -> Sequence[str]:
        rates = (
            ("bytes_per_second", self._bytes_per_second),
            ("requests_per_second", self._requests_per_second),
        )
        return [f"{name}={rate:g}" for name, rate in rates if rate]
