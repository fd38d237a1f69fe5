"""The host feed: reads an order's windows ahead, each row straight to its place in the batch it belongs to.

Invariant: batches hold exactly the rows of the order, lane by lane; a batch is handed out when all its rows
are there, and never written to afterwards; at most `batches_ahead` batches are being filled.

There is no window in memory apart from its batches: a window is as many batches as it has positions, and
those of two windows are filled at a time. A row of an uncompressed block that was found right before is
copied once, by the kernel, from the page cache to its place; any other block is read whole into a thread's
own memory, which stays in the processor's cache, checked, decoded, and copied from there. Of a block that is
read whole for some of its rows, because the boundary of a lane cuts it, a copy is kept for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np

from loaders.buffers import BatchBuffer, BatchBuffers
from loaders.feed import ReadingFeed
from loaders.pieces import Piece, Pieces, Plans
from loaders.reads import Reading
from loaders.slots import Batch
from loaders.whole import WholeBlocks
from policies import Order
from tiering.reader import BlockReader
from tiering.stores.scatter import Scatter, vectors

Int64s = np.ndarray[Any, np.dtype[np.int64]]
_SCATTER_BYTES: Final = 256  # shorter rows cost the kernel more than a copy of the block and one of the rows
_FILLED: Final = 0.75  # of the batches: with as many being filled nobody need be woken for one more
_RUN_BYTES: Final = 32 << 10  # what another call costs, in bytes that are read in one


def batches_ahead(order: Order, step: int) -> int:
    """How many batches a feed fills at a time: those of two windows of each lane, and the one in need.

    Args:
        order: the order.
        step: positions of a batch.
    """
    longest = -(-len(order) // order.lanes)
    window = order.window_blocks if order.mode == "full" else order.window_blocks * order.block_rows
    return -(-min(2 * window, longest) // step) + 2


class HostFeed(ReadingFeed):
    """Batches of some lanes of one epoch, from a position on. Use as a context manager; it owns threads.

    Args:
        planner: says what to read, for lanes in the order in which a batch has them.
        blocks: read it, one for each corpus that the pieces name; all of the same columns.
        buffers: memory for batches of ``lanes * step`` rows.
        start, stop: positions where every lane begins and ends, if it has so many rows.
        step: positions of a batch.
        ahead: batches that are filled at a time; with those of two windows of a lane, one is read ahead.
        threads: the most that read blocks ahead; None for as many as help.
    """

    def __init__(
        self,
        planner: Plans,
        blocks: Sequence[WholeBlocks],
        buffers: BatchBuffers,
        start: int,
        stop: int,
        step: int,
        ahead: int,
        threads: int | None,
    ) -> None:
        super().__init__(self._read, start, threads)
        self._planner, self._blocks, self._buffers = planner, blocks, buffers
        self._start, self._stop, self._step = start, stop, step
        self._row_bytes = blocks[0].reader.row_bytes
        self._shortest = min(self._planner.lane_rows)

        # Batches [taken, opened) have memory: that of batch n is at n modulo the length of these.
        self._ring: list[BatchBuffer | None] = [None] * ahead
        self._taken = self._opened = 0
        # Where the row of the first lane at each position goes, modulo as many positions.
        self._places = {
            name: vectors(np.zeros(len(self._ring) * step, np.int64), nbytes)
            for name, nbytes in self._row_bytes.items()
        }
        self._offsets = {name: np.arange(step) * nbytes for name, nbytes in self._row_bytes.items()}

        self._pieces: Pieces | None = None
        self._turns = np.empty(0, np.int64)  # of these pieces: where in `_places` each of their rows is
        self._put = 0  # windows of these pieces whose reads were put

        self._direct = {name for name, nbytes in self._row_bytes.items() if nbytes >= _SCATTER_BYTES}

    def close(self) -> None:
        """Stop reading; when this returns, nothing is written to any more. Idempotent."""
        super().close()
        for place, buffer in enumerate(self._ring):
            if buffer is not None:
                self._buffers.give(buffer)
                self._ring[place] = None

    def is_ready(self, stop: int) -> bool:
        """Whether all rows before position `stop` are there, so that `batch` would not wait for them."""
        if self._ready < stop:
            return False
        while self._unread and self._unread[0].position < stop:
            if self._unread[0].left or self._unread[0].error is not None:
                return False
            self._unread.popleft()
        return True

    def batch(self, start: int, stop: int) -> Batch:
        """Rows at positions [start, stop) of every lane, lane by lane; lanes that end before give fewer.

        Must be called with neighbouring ranges of `step` positions, from the first one on.
        """
        if self._ready < stop:
            self._load_until(stop)
        self._wait(stop)
        number, place = self._taken, self._taken % len(self._ring)
        if self._opened == number:  # nobody has a row of it
            self._open(number + 1)
        buffer, self._ring[place] = self._ring[place], None
        if buffer is None or start != self._start + number * self._step:
            raise RuntimeError("a feed that is closed, or asked for another batch than the next one")
        batch = self._filled(buffer.arrays, start, stop)
        self._buffers.give(buffer)
        self._taken = number + 1
        if self._opened - number <= len(self._ring) * _FILLED:
            self._reads.poke()
        return batch

    def _load_next(self) -> bool:
        pieces, first = self._pieces, self._put
        if pieces is None or first == len(pieces.starts):
            pieces, first = self._planner.plan(), 0
            self._pieces, self._put = pieces, first
            if pieces is None:
                self._ready = self._planner.position + self._step
                return False
            self._turns = (pieces.positions - self._start) % (len(self._ring) * self._step)
            self._ready = pieces.starts[0]
        last = first
        while last < len(pieces.starts):
            needed = -(-(min(pieces.stops[last], self._stop) - self._start) // self._step)
            if needed > self._taken + len(self._ring):
                break
            self._open(needed)
            reading = self._unread[-1] if self._unread and last > first else None
            if reading is None or reading.position != pieces.starts[last]:
                reading = Reading(pieces.starts[last])
            begin = pieces.piece_ends[last - 1] if last else 0
            turns, rows = self._turns, pieces.rows
            self._reads.put(
                reading, [(turns, rows, piece) for piece in pieces.pieces[begin : pieces.piece_ends[last]]]
            )
            if not self._unread or self._unread[-1] is not reading:
                self._unread.append(reading)
            last += 1
        self._put = last
        self._ready = pieces.starts[last] if last < len(pieces.starts) else self._planner.position
        return last > first

    def _open(self, stop: int) -> None:
        """Have memory for all batches before `stop`."""
        while self._opened < stop:
            place = self._opened % len(self._ring)
            buffer = self._buffers.take()
            for name, address in buffer.addresses.items():
                some = self._places[name][place * self._step :][: self._step, 0]
                np.add(self._offsets[name], address, out=some)
            self._ring[place] = buffer
            self._opened += 1

    def _read(self, all_turns: Int64s, all_rows: Int64s | None, piece: Piece) -> None:
        """Bring the rows of a piece to their places; `all_turns` as `_turns`, `all_rows` as of `Pieces`."""
        source, lane, shard, block, cut, begin, end, first = piece
        blocks = self._blocks[source]
        turns = all_turns[begin:end]
        rows = None if all_rows is None else all_rows[begin:end]
        targets = {}
        for name, nbytes in self._row_bytes.items():
            places = self._places[name].take(turns, axis=0)
            places[:, 0] += lane * self._step * nbytes
            targets[name] = Scatter(places, nbytes)
        kept = blocks.held(shard, block) if cut else ()
        left = [
            name
            for name, target in targets.items()
            if name not in self._direct
            or name in kept
            or not _scatter(blocks.reader, name, shard, block, first, rows, target)
        ]
        if left:
            whole = blocks.read(shard, block, left, end - begin if cut else None)
            chosen = slice(first, first + end - begin) if rows is None else rows
            for name in left:
                targets[name].copy(whole[name][chosen])

    def _filled(self, arrays: Batch, start: int, stop: int) -> Batch:
        """The rows of a batch; where lanes end, without the gaps behind those that have fewer."""
        if stop - start == self._step and stop <= self._shortest:
            return {name: array[:] for name, array in arrays.items()}
        counts = [max(0, min(stop, rows) - start) for rows in self._planner.lane_rows]
        rows = np.concatenate([lane * self._step + np.arange(count) for lane, count in enumerate(counts)])
        return {name: array.take(rows, axis=0) for name, array in arrays.items()}


def _scatter(
    reader: BlockReader, name: str, shard: int, block: int, first: int, rows: Int64s | None, into: Scatter
) -> bool:
    """Whether rows of a column, from `first` on or `rows`, could be read straight to their places."""
    if rows is None or int(rows[-1]) - first < len(rows):
        return reader.scatter(name, shard, block, first, into)
    cuts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    if len(cuts) * _RUN_BYTES + into.nbytes > reader.block_rows * into.row_bytes:
        return False
    return all(
        reader.scatter(name, shard, block, int(rows[begin]), into.part(begin, end))
        for begin, end in pairwise(cuts)
    )
