"""Reads and writes of open files, past the page cache where that is faster.

Invariant: what is read and written is the same whichever way is taken, and a file system that refuses
O_DIRECT, before or in the middle of the work, costs speed alone. Large objects only: small ones and single
blocks, which training reads again in every epoch, belong in the page cache, and so does reading what is in
it already. Blocks that somebody waits for are the exception (`hurry`): bringing a block into the page cache
costs several times the processor time of the read itself.

Which way is faster differs from mount to mount. It is found out on the engine's own work, not by a probe
that would write files of its own: the first large transfers of a process on a file system take turns, and
the way of the fastest one stays. Nothing of that is kept on disk: it costs a few transfers at half speed,
while a kept verdict would be wrong after the next mount.

A read after a direct write is answered by the medium, for nothing of it is in the page cache: so a copy
that was read back is proven to be there. A small object that is read back proves only the way to the page
cache.

Direct I/O into private memory and a fork at the same instant do not go together on kernels before 6.3;
digests find out. Write and read buffers are therefore the engine's own, and a store is not shared across a
fork.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from typing import Final, Literal

from tiering.digest import Buffer
from tiering.stores.pages import (
    HUGE_PAGE_BYTES,
    PAGE_BYTES,
    PIECE_BYTES,
    address_of,
    borrowed,
    copy,
    is_resident,
    round_up,
)
from tiering.stores.scatter import Scatter

WRITE_BYTES: Final = 1 << 20
"""Objects from here on are written past the page cache."""
READ_BYTES: Final = 4 << 20
"""Reads from here on, if not in the page cache, go past it; a block is smaller."""

_ROUNDS: Final = 3
_CLEARLY_FASTER: Final = 1.1  # for direct I/O takes a tenth of the processor time

Way = Literal["read", "write"]


class Trial:
    """Which way is the faster one on one file system, in one direction."""

    def __init__(self) -> None:
        self.verdict: bool | None = None
        """Whether direct I/O won; None until it is known."""
        self._turn = itertools.count()
        self._speeds: dict[bool, list[float]] = {True: [], False: []}

    @contextlib.contextmanager
    def run(self, nbytes: int) -> Iterator[bool]:
        """Say whether to go direct, and learn from how long the block takes."""
        compares = self.verdict is None and nbytes >= PIECE_BYTES  # the speed of small ones says nothing
        direct = next(self._turn) % 2 == 0 if compares else self.verdict is not False
        begun = time.perf_counter()
        yield direct
        if compares:
            self._speeds[direct].append(nbytes / (time.perf_counter() - begun))
            if self.verdict is None and min(map(len, self._speeds.values())) >= _ROUNDS:
                self.verdict = max(self._speeds[True]) * _CLEARLY_FASTER >= max(self._speeds[False])

    def refuse(self) -> None:
        """The file system does not do it."""
        self.verdict = False


_trials: dict[tuple[int, Way], Trial] = {}


def trial(device: int, way: Way) -> Trial:
    """This process's trial on the file system whose files have `device` as their ``st_dev``."""
    return _trials.setdefault((device, way), Trial())


def write_durably(fd: int, buffers: Sequence[Buffer], nbytes: int) -> None:
    """Write the concatenation of `buffers`, `nbytes` long, from byte 0 on, and sync the data."""
    if nbytes < WRITE_BYTES:
        _write_buffered(fd, buffers)
        os.fdatasync(fd)
        return
    device = trial(os.fstat(fd).st_dev, "write")
    with device.run(nbytes) as direct:
        if direct and not _set_direct(fd, on=True):
            device.refuse()
            direct = False
        if direct:
            _write_direct(fd, buffers)
        else:
            _write_buffered(fd, buffers)
        os.fdatasync(fd)


def read_into(fd: int, offset: int, buffer: memoryview | Scatter) -> int:
    """Fill `buffer` from `offset` on; returns how much of it, less only where the file ends."""
    if isinstance(buffer, Scatter):
        return buffer.read(fd, offset)
    if buffer.nbytes < READ_BYTES or is_resident(fd, offset, buffer.nbytes):
        return _read_buffered(fd, offset, buffer, 0)
    device = trial(os.fstat(fd).st_dev, "read")
    with device.run(buffer.nbytes) as direct:
        done = 0
        if direct:
            if _set_direct(fd, on=True):
                try:
                    done = _read_direct(fd, offset, buffer)
                finally:
                    _set_direct(fd, on=False)
            else:
                device.refuse()
        return _read_buffered(fd, offset, buffer, done)


def _write_buffered(fd: int, buffers: Sequence[Buffer]) -> None:
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        while view.nbytes:
            view = view[os.write(fd, view) :]


def _write_direct(fd: int, buffers: Sequence[Buffer]) -> None:
    """Whole pages direct, from where they lie if that is a huge page; the rest of the last page buffered."""
    offset = filled = 0
    with borrowed(PIECE_BYTES) as bounce:
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            while view.nbytes:
                if not filled and view.nbytes >= PIECE_BYTES and address_of(view) % HUGE_PAGE_BYTES == 0:
                    piece, view = view[:PIECE_BYTES], view[PIECE_BYTES:]
                    _put(fd, offset, piece)
                    offset += PIECE_BYTES
                    continue
                take = min(view.nbytes, PIECE_BYTES - filled)
                copy(bounce[filled : filled + take], view[:take])
                view, filled = view[take:], filled + take
                if filled == PIECE_BYTES:
                    _put(fd, offset, bounce)
                    offset, filled = offset + filled, 0
        whole = filled // PAGE_BYTES * PAGE_BYTES
        _put(fd, offset, bounce[:whole])
        _set_direct(fd, on=False)
        _put(fd, offset + whole, bounce[whole:filled])


def _put(fd: int, offset: int, view: memoryview) -> None:
    while view.nbytes:
        try:
            put = os.pwrite(fd, view, offset)
        except OSError as error:
            # Refused only when it is used, or cut within a page by a limit on the file's size.
            if error.errno != errno.EINVAL or not _is_direct(fd):
                raise
            _set_direct(fd, on=False)
            continue
        view, offset = view[put:], offset + put


def _read_direct(fd: int, offset: int, buffer: memoryview) -> int:
    """Fill `buffer` as far as direct I/O gets: to the end of the file, or to where it is refused."""
    done = 0
    straight = offset % PAGE_BYTES == 0 and address_of(buffer) % HUGE_PAGE_BYTES == 0
    with borrowed(PIECE_BYTES) as bounce:
        while done < buffer.nbytes:
            rest = buffer.nbytes - done
            skip = (offset + done) % PAGE_BYTES
            whole = straight and skip == 0 and rest >= PAGE_BYTES
            take = min(rest // PAGE_BYTES * PAGE_BYTES if whole else rest, PIECE_BYTES - skip)
            target = buffer[done : done + take] if whole else bounce[: round_up(skip + take)]
            try:
                got = os.preadv(fd, [target], offset + done - skip) - skip
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                return done
            if got <= 0:
                return done
            got = min(got, take)
            if not whole:
                copy(buffer[done : done + got], bounce[skip : skip + got])
            done += got
    return done


def _read_buffered(fd: int, offset: int, buffer: memoryview, done: int) -> int:
    while done < buffer.nbytes:
        got = os.preadv(fd, [buffer[done:]], offset + done)
        if not got:
            break
        done += got
    return done


def _is_direct(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


def _set_direct(fd: int, *, on: bool) -> bool:
    """Whether the file system does so."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True
