"""The sample order by walking plain lists, which `policies.order` finds by seeking, and ways to read it."""

from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TypeVar

from policies import Order
from policies.permute import derive, permutation

Item = TypeVar("Item")
UNEVEN = [300, 7, 1, 1024, 64, 999, 500, 2048, 33, 65]


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


@dataclass(frozen=True)
class ModelWindow:
    """A window: positions [start, stop) of its lane, its blocks as lists of rows, and its rows in order."""

    start: int
    stop: int
    blocks: list[list[int]]
    rows: list[int]


def order_of(case: Case) -> Order:
    return Order(**asdict(case))


def lane_of(order: Order, epoch: int, lane: int) -> list[int]:
    rows: list[int] = order.rows(epoch, lane, 0, order.lane_rows(epoch, lane)).tolist()
    return rows


def epoch_of(order: Order, epoch: int) -> list[int]:
    return [row for lane in range(order.lanes) for row in lane_of(order, epoch, lane)]


def lane_windows(case: Case, epoch: int, lane: int) -> list[ModelWindow]:
    """Walk one lane of one epoch."""
    pieces = [list(piece) for _, piece in groupby(_lane(case, epoch, lane), key=lambda row: row[0])]
    windows: list[ModelWindow] = []
    for group, members in enumerate(_chunks(pieces, case.group_shards if case.mode == "window" else 1)):
        blocks = [
            [number for _, _, number in block]
            for piece in members
            for _, block in groupby(piece, key=lambda row: row[1] // case.block_rows)
        ]
        if case.mode == "window":
            key = derive(case.seed, 2, epoch, lane, group)
            blocks = [blocks[i] for i in permutation(key, len(blocks))]
            dealt = _chunks(blocks, case.window_blocks)
        else:
            offset = members[0][0][1] // case.block_rows % case.window_blocks
            dealt = _chunks([[]] * offset + blocks, case.window_blocks)
            dealt = [[block for block in window if block] for window in dealt]
        for number, window in enumerate(dealt):
            rows = [row for block in window for row in block]
            if case.mode == "window":
                key = derive(case.seed, 3, epoch, lane, group, number)
                rows = [rows[i] for i in permutation(key, len(rows))]
            start = windows[-1].stop if windows else 0
            windows.append(ModelWindow(start, start + len(rows), window, rows))
    return windows


def shards_needed(case: Case, epoch: int, lanes: list[int]) -> list[int]:
    """Walk the windows of these lanes in lockstep and note each shard when its first window begins."""
    shard_of = [shard for shard, rows in enumerate(case.shard_rows) for _ in range(rows)]
    needs = [
        (window.start, lane, place, shard_of[block[0]])
        for lane in lanes
        for window in lane_windows(case, epoch, lane)
        for place, block in enumerate(window.blocks)
    ]
    return list(dict.fromkeys(shard for *_, shard in sorted(needs)))


def _lane(case: Case, epoch: int, lane: int) -> list[tuple[int, int, int]]:
    """Return (shard, row of the shard, global row) of the lane's rows before blocks and rows are permuted."""
    shards = list(range(len(case.shard_rows)))
    if case.mode == "window":
        shards = permutation(derive(case.seed, 1, epoch), len(shards)).tolist()
    space = [
        (shard, row, sum(case.shard_rows[:shard]) + row)
        for shard in shards
        for row in range(case.shard_rows[shard])
    ]
    return space[lane * len(space) // case.lanes : (lane + 1) * len(space) // case.lanes]


def _chunks(items: list[Item], size: int) -> list[list[Item]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
