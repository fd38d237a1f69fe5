"""Reads blocks of a corpus into caller's memory, from the node cache or the tier, verified.

Invariant: no byte is handed out before its block's CRC32C was found right, in this read or in one before it
of the same file, unchanged since. A damaged or missing copy is reported and healed from another tier that
holds one; where it cannot be, the other tier is read instead. Without a good copy anywhere it is an error,
never wrong rows. While a tier does not answer, others are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Final

import pyarrow as pa

from tiering.cache import STORE_NAME, NodeCache
from tiering.copies import Copies
from tiering.corpus import Corpus
from tiering.digest import CRC_BYTES
from tiering.errors import Corrupt, DeadlineExceeded, TieringError, Unavailable, UsageError
from tiering.layout import arrow
from tiering.layout.base import BlockSpan
from tiering.layout.zarr import ZarrColumn, ZarrLayout, check_block, decode_block, index_bytes, read_index
from tiering.monitor.stats import COUNTERS
from tiering.schema import array_of, choose, columns_of, rows_of
from tiering.shard_state import RawBlock, ReadCounts, ShardState
from tiering.stores.pages import borrowed, new_buffer
from tiering.stores.scatter import Scatter

VERIFY: Final = ("first", "always")


class BlockReader:
    """Reads blocks of some columns of a corpus; usable from many threads.

    Args:
        corpus: the corpus, on the tier to read from.
        columns: names of columns; all by default.
        cache: the node's cache, or None to read the tier alone.
        verify: ``first``, the CRC of a block that lies uncompressed in a local file is checked when it is
            first read, and anew after that file changed; or ``always``, whenever it is read. All other
            blocks always are.
        ragged: whether rows are read by `read_batch`, from an Arrow corpus: then columns need no fixed
            shape, and `columns` is empty.

    Raises:
        UsageError: no such column, or its rows have no fixed shape.
    """

    def __init__(
        self,
        corpus: Corpus,
        columns: Sequence[str] | None = None,
        cache: NodeCache | None = None,
        verify: str = "first",
        *,
        ragged: bool = False,
    ) -> None:
        if verify not in VERIFY:
            raise UsageError(f"verify = {verify!r} is none of {', '.join(VERIFY)}", hint="Example: 'first'")
        self.corpus = corpus
        self.schema = choose(corpus.schema, columns, f"corpus {corpus.name!r}")
        self.columns = () if ragged else columns_of(self.schema)
        self.row_bytes = {column.name: column.row_bytes for column in self.columns}
        """Length of a row of each column."""
        self.block_rows = corpus.contents.block_rows
        self.copies = Copies(corpus, cache)
        self._layout = corpus.layout if corpus.format == "zarr" else None
        objects = [column.name for column in self.columns] if self._layout else [""]
        self.shards = {name: corpus.shards(name) for name in objects}
        self._states: dict[tuple[str, int], ShardState] = {}
        self._always_verify = verify == "always"

    @property
    def cache(self) -> NodeCache | None:
        """The node's cache."""
        return self.copies.cache

    @property
    def counts(self) -> ReadCounts:
        """What reading cost so far."""
        return self.copies.counts

    @property
    def stored_bytes(self) -> int:
        """Bytes of all shard objects that hold the chosen columns."""
        return sum(shards.nbytes for shards in self.shards.values())

    @property
    def digests(self) -> list[str]:
        """Digests of those shard objects, column by column, each in the order of the rows."""
        return [digest for shards in self.shards.values() for digest in shards.digests]

    def slot_rows(self, column: ZarrColumn) -> int:
        """Rows that a slot for one block of `column` must have: the block's, and room for its CRC."""
        return self.block_rows + -(-4 // column.row_bytes)

    def new_epoch(self) -> None:
        """Ask the cache again for what it refused or evicted."""
        for state in list(self._states.values()):
            state.cached, state.refetched = None, False
        self.rest()

    def rest(self) -> None:
        """Keep no file open; the next read opens it again."""
        for state in list(self._states.values()):
            state.in_cache = state.on_tier = None

    def read(self, shard: int, block: int, slots: Mapping[str, memoryview]) -> None:
        """Read one block of every chosen column.

        Args:
            shard: its number.
            block: number of the block within the shard.
            slots: for each column a writable buffer of `slot_rows` rows; its first rows become the block's.
                Columns of a Zarr corpus that are not in it are left out.

        Raises:
            Corrupt: it is damaged, and no other tier has a good copy.
            Unavailable, DeadlineExceeded: the tier does not answer.
        """
        for name in self.shards:
            if self._layout is None or name in slots:
                read = partial(self._read, name, block=block, slots=slots)
                self.copies.good(self._state(name, shard), read)

    def read_batch(self, shard: int, block: int, memory: memoryview | None = None) -> pa.RecordBatch:
        """Read one block of an Arrow corpus, as `read` does: the chosen columns, which refer to `memory`.

        `memory` has at least the `Shards.largest_block_bytes` of the corpus; by default it is new.
        """
        read = partial(self._read_message, block=block, memory=memory)
        return self.copies.good(self._state("", shard), read).select(self.schema.names)

    def scatter(self, column: str, shard: int, block: int, first: int, into: Scatter) -> bool:
        """Read neighbouring rows of one column straight to their places; False where `read` has to do it.

        Done where the block was found right before, uncompressed, in a file that has not changed since. Where
        it is not done, the places hold anything.
        """
        if self._layout is None or self._layout.codec is not None or self._always_verify:
            return False
        state = self._state(column, shard)
        if not state.is_proven(state.proven[0], block):
            return False
        try:
            span, _ = self._locate(state, block)
            identity = self.copies.read(state, span.offset + first * into.row_bytes, into)
        except (TieringError, OSError):  # `read` meets it again, and mends what can be mended
            return False
        if not state.is_proven(identity, block):
            return False
        self.copies.needed(into.nbytes)
        return True

    def raw_block(self, column: str, shard: int, block: int) -> RawBlock | None:
        """Where the rows of a block can be read around this reader; None where only `read` gives them.

        Only uncompressed Zarr blocks, on a file tier or in the node cache, have such a place. Whoever reads
        there checks the shard's digest first, tells of bad bytes by `replace`, of good ones by `count_raw`.

        Raises:
            NotFound, Corrupt: the shard is missing, or its index is damaged; `replace` is the answer.
            Unavailable, DeadlineExceeded: no tier with a copy answers.
        """
        if self._layout is None or self._layout.codec is not None:
            return None
        state = self._state(column, shard)
        try:
            return self._raw_block(state, block)
        except (Unavailable, DeadlineExceeded) as error:
            return self.copies.elsewhere(state, lambda other: self._raw_block(other, block), error)

    def _raw_block(self, state: ShardState, block: int) -> RawBlock | None:
        file = self.copies.file(state)
        if file is None:
            return None
        span, _ = self._locate(state, block)
        nbytes = span.nbytes - CRC_BYTES
        at = file.offset + span.offset
        return RawBlock(state.shard, state.tier.name, file, at, nbytes, bool(state.cached))

    def replace(self, column: str, shard: int, error: TieringError) -> None:
        """Replace the copy that `raw_block` named, after it turned out bad; the next call names another.

        Raises:
            Corrupt: no other tier has a good copy.
        """
        self.copies.replace(self._state(column, shard), error)

    def count_raw(self, raw: RawBlock) -> None:
        """Count a block that was read around this reader."""
        self.copies.needed(raw.nbytes)
        if not raw.cached:
            COUNTERS.add_moved(raw.tier, "read", raw.nbytes)
        self.copies.was_read(STORE_NAME if raw.cached else raw.tier, raw.nbytes)

    def _state(self, column: str, number: int) -> ShardState:
        state = self._states.get((column, number))
        if state is None:
            fresh = ShardState(self.shards[column][number], self.corpus.tier)
            state = self._states.setdefault((column, number), fresh)  # one for all threads
        return state

    def _read(self, name: str, state: ShardState, block: int, slots: Mapping[str, memoryview]) -> None:
        if self._layout is None:
            self._scatter(self._read_message(state, block, None), slots)
            return
        span, crc = self._locate(state, block)
        if self._layout.codec is None:  # straight into place; the CRC comes to lie behind the block's rows
            stored = slots[name][: span.nbytes]
            identity = self.copies.read(state, span.offset, stored)
            if self._always_verify or not state.is_proven(identity, block):
                check_block(stored, crc)
                state.prove(identity, block)
        else:
            column = self._layout.column(name)
            with borrowed(span.nbytes) as stored:
                self.copies.read(state, span.offset, stored)
                rows = rows_of(slots[name], column, self.block_rows)
                decode_block(self._layout, column, stored, rows, crc)
        self.copies.needed(span.nbytes)

    def _read_message(self, state: ShardState, block: int, memory: memoryview | None) -> pa.RecordBatch:
        """A block of an Arrow corpus, in `memory` or in memory of its own."""
        span, crc = self._locate(state, block)
        message = memoryview(new_buffer(span.nbytes)) if memory is None else memory[: span.nbytes]
        self.copies.read(state, span.offset, message)
        batch = arrow.decode_block(message, crc, self.corpus.schema)
        self.copies.needed(span.nbytes)
        return batch

    def _scatter(self, batch: pa.RecordBatch, slots: Mapping[str, memoryview]) -> None:
        for column in self.columns:
            values = array_of(batch.column(column.name), column)
            rows_of(slots[column.name], column, len(values))[:] = values

    def _locate(self, state: ShardState, block: int) -> tuple[BlockSpan, int]:
        """Where a block lies, and its CRC32C."""
        spans = state.spans
        if spans is None:
            with state.lock:  # once for all threads
                spans = state.spans or self._find_spans(state)
                state.spans = spans
        return spans[block], state.shard.block_crcs[block]

    def _find_spans(self, state: ShardState) -> list[BlockSpan]:
        if self._layout is not None:
            return self._read_spans(state, self._layout)
        return [BlockSpan(start, stop - start) for start, stop in pairwise(state.shard.block_offsets or ())]

    def _read_spans(self, state: ShardState, layout: ZarrLayout) -> list[BlockSpan]:
        """Where the blocks of a Zarr shard lie, from its index."""
        tail = bytearray(index_bytes(layout.nblocks))
        self.copies.read(state, state.shard.nbytes - len(tail), memoryview(tail))
        blocks = layout.shard_blocks(state.shard.number)
        spans = [s for s in read_index(tail, layout.nblocks, state.shard.nbytes)[:blocks] if s is not None]
        if len(spans) < blocks:
            raise Corrupt("a block is missing", key=state.shard.key)
        if layout.codec is None:  # a shorter one would leave rows of another block in its slot
            stored_bytes = layout.block_bytes(layout.column(state.shard.column)) + CRC_BYTES
            if any(span.nbytes != stored_bytes for span in spans):
                raise Corrupt(f"a block has not the {stored_bytes} bytes of its rows", key=state.shard.key)
        self.copies.needed(len(tail))
        return spans
