"""The sample order by walking plain lists, which `policies.order` finds by seeking, and ways to read it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TypeVar

import numpy as np
from hypothesis import strategies as st

from policies import Order
from policies.order.permute import derive, permutation

Item = TypeVar("Item")
Row = tuple[int, int, int]  # shard, row of the shard, global row
UNEVEN = [300, 7, 1, 1024, 64, 999, 500, 2048, 33, 65]
NEVER = 2**63 - 1


@dataclass(frozen=True)
class Case:
    """Arguments of an order."""

    shard_rows: list[int]
    block_rows: int
    seed: int
    mode: str
    lanes: int
    group_shards: int
    window_blocks: int
    affinity: str = "global"
    keep: list[bool] | None = None


@dataclass(frozen=True)
class ModelWindow:
    """A window: positions [start, stop) of its lane, its blocks as lists of rows, and its rows in order."""

    start: int
    stop: int
    blocks: list[list[int]]
    rows: list[int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw arguments of small orders of every kind."""
    shard_rows = draw(st.lists(st.integers(1, 25), min_size=1, max_size=9))
    total, rare = sum(shard_rows), st.integers(0, 9).map(lambda number: number == 9)
    return Case(
        shard_rows=shard_rows,
        block_rows=draw(st.integers(1, 9)),
        seed=draw(st.integers(0, 2**64 - 1)),
        mode=draw(st.sampled_from(["window", "none", "full"])),
        lanes=draw(st.integers(1, 9)),
        group_shards=draw(st.integers(1, 4)),
        window_blocks=draw(st.integers(1, 4)),
        affinity=draw(st.sampled_from(["global", "lane"])),
        keep=draw(st.none() | st.lists(rare | st.booleans(), min_size=total, max_size=total)),
    )


def order_of(case: Case) -> Order:
    return Order(**{**asdict(case), "keep": None if case.keep is None else np.array(case.keep)})


def kept_of(case: Case) -> list[int]:
    return [row for _, _, row in _kept(case)]


def lane_of(order: Order, epoch: int, lane: int) -> list[int]:
    rows: list[int] = order.rows(epoch, lane, 0, order.lane_rows(epoch, lane)).tolist()
    return rows


def epoch_of(order: Order, epoch: int) -> list[int]:
    return [row for lane in range(order.lanes) for row in lane_of(order, epoch, lane)]


def lane_windows(case: Case, epoch: int, lane: int) -> list[ModelWindow]:
    """Walk one lane of one epoch."""
    make = {"window": _windowed, "none": _stored, "full": _full}[case.mode]
    windows: list[ModelWindow] = []
    for blocks, rows in make(case, epoch, lane):
        start = windows[-1].stop if windows else 0
        windows.append(ModelWindow(start, start + len(rows), blocks, rows))
    return windows


def shards_needed(case: Case, epoch: int, lanes: list[int]) -> list[int]:
    """Walk the windows of these lanes in lockstep and note each shard when its first window begins."""
    needs = [
        (window.start, lane, place, shard_of(case, block[0]))
        for lane in lanes
        for window in lane_windows(case, epoch, lane)
        for place, block in enumerate(window.blocks)
    ]
    return list(dict.fromkeys(shard for *_, shard in sorted(needs)))


def future(case: Case, epochs: range, lanes: list[int]) -> list[tuple[int, int, int, int]]:
    """Walk the windows of these epochs: (shard, start, stop, next start) of each use of a shard by a lane."""
    clock = -(-len(_kept(case)) // case.lanes)
    uses = []
    for turn, epoch in enumerate(epochs):
        for lane in lanes:
            windows = lane_windows(case, epoch, lane)
            for shard in shards_needed(case, epoch, [lane]):
                held = [w for w in windows if any(shard_of(case, block[0]) == shard for block in w.blocks)]
                uses.append((turn * clock + held[0].start, turn * clock + held[-1].stop, shard))
    uses.sort(key=lambda use: use[0])
    found = []
    for place, (start, stop, shard) in enumerate(uses):
        later = [use[0] for use in uses[place + 1 :] if use[2] == shard]
        found.append((shard, start, stop, min(later, default=NEVER)))
    return found


def shard_of(case: Case, row: int) -> int:
    return next(s for s in range(len(case.shard_rows)) if row < sum(case.shard_rows[: s + 1]))


def scattered(key: int, n: int) -> list[int]:
    """The definition of a Feistel permutation, number by number."""
    bits = (n - 1).bit_length() // 2
    size = 1 << bits
    high = -(-n // size)
    keys = [derive_next(key, place) for place in range(12 if n > 65536 else 24)]

    def encrypt(x: int) -> int:
        r, low = divmod(x, size)
        for place, k in enumerate(keys):
            y = ((low if place % 2 else r) + k) * 0x9E3779B97F4A7C15 % 2**64
            f = (y ^ y >> 32) * 0xBF58476D1CE4E5B9 % 2**64 >> 32
            if place % 2:
                r = (r + (f * high >> 32)) % high
            else:
                low = (low + (f >> 32 - bits)) % size
        return r * size + low

    def walk(x: int) -> int:
        x = encrypt(x)
        while x >= n:
            x = encrypt(x)
        return x

    return [walk(x) for x in range(n)]


def derive_next(key: int, part: int) -> int:
    """What one more step of `derive` makes of `key`: output `part` of splitmix64 seeded with it."""
    z = (key + (part + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def _windowed(case: Case, epoch: int, lane: int) -> list[tuple[list[list[int]], list[int]]]:
    shards = sorted({shard for shard, _, _ in _kept(case)})
    dealt = derive(case.seed, 5) if case.affinity == "lane" else derive(case.seed, 1, epoch)
    space = [row for i in permutation(dealt, len(shards)) for row in _kept(case) if row[0] == shards[i]]
    pieces = _grouped(_slice(case, space, lane), lambda row: row[0])
    if case.affinity == "lane":
        pieces = [pieces[i] for i in permutation(derive(case.seed, 6, epoch, lane), len(pieces))]
    windows = []
    for group, members in enumerate(_chunks(pieces, case.group_shards)):
        blocks = [block for piece in members for block in _blocks(case, piece)]
        blocks = [blocks[i] for i in permutation(derive(case.seed, 2, epoch, lane, group), len(blocks))]
        for number, window in enumerate(_chunks(blocks, case.window_blocks)):
            rows = [row for block in window for row in block]
            key = derive(case.seed, 3, epoch, lane, group, number)
            windows.append((window, [rows[i] for i in permutation(key, len(rows))]))
    return windows


def _stored(case: Case, epoch: int, lane: int) -> list[tuple[list[list[int]], list[int]]]:
    size = case.block_rows * case.window_blocks
    windows = _grouped(_slice(case, _kept(case), lane), lambda row: (row[0], row[1] // size))
    return [(_blocks(case, window), [number for _, _, number in window]) for window in windows]


def _full(case: Case, epoch: int, lane: int) -> list[tuple[list[list[int]], list[int]]]:
    rows = _kept(case)
    if case.affinity == "lane":
        mine = _slice(case, rows, lane)
        mine = [mine[i] for i in scattered(derive(case.seed, 4, epoch, lane), len(mine))] if mine else []
    else:
        mine = _slice(case, [rows[i] for i in scattered(derive(case.seed, 4, epoch), len(rows))], lane)
    whole = [[number for _, _, number in block] for block in _grouped(_all(case), _block(case))]
    return [
        ([block for block in whole if set(block) & set(window)], window)
        for window in _chunks([number for _, _, number in mine], case.window_blocks)
    ]


def _all(case: Case) -> list[Row]:
    return [
        (shard, row, sum(case.shard_rows[:shard]) + row)
        for shard in range(len(case.shard_rows))
        for row in range(case.shard_rows[shard])
    ]


def _kept(case: Case) -> list[Row]:
    return [row for row in _all(case) if case.keep is None or case.keep[row[2]]]


def _slice(case: Case, space: list[Row], lane: int) -> list[Row]:
    return space[lane * len(space) // case.lanes : (lane + 1) * len(space) // case.lanes]


def _blocks(case: Case, piece: list[Row]) -> list[list[int]]:
    return [[number for _, _, number in block] for block in _grouped(piece, _block(case))]


def _block(case: Case) -> Callable[[Row], object]:
    return lambda row: (row[0], row[1] // case.block_rows)


def _grouped(rows: list[Row], key: Callable[[Row], object]) -> list[list[Row]]:
    return [list(group) for _, group in groupby(rows, key)]


def _chunks(items: list[Item], size: int) -> list[list[Item]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
