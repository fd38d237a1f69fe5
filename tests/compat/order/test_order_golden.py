"""Golden digests of sample orders: what is recorded here holds in every later version and on every platform.

`python tests/compat/order/test_order_golden.py` adds the records that golden.json lacks, and changes none.
"""

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from policies import Mixture, Order

GOLDEN = Path(__file__).with_name("golden.json")

# rows of shard i: base + i * step % modulus
SHARDS = {
    "one": {"count": 1, "base": 5000, "step": 0, "modulus": 1},
    "equal": {"count": 24, "base": 4096, "step": 0, "modulus": 1},
    "unequal": {"count": 37, "base": 1, "step": 7919, "modulus": 3001},
    "many": {"count": 1_000_000, "base": 900, "step": 7919, "modulus": 201},
    "huge": {"count": 200_000, "base": 4_900_000, "step": 7919, "modulus": 200_001},
}
ORDERS = [
    ("one", {"block_rows": 256, "lanes": 3}),
    ("one", {"mode": "none", "lanes": 3}),
    ("equal", {"lanes": 1}),
    ("equal", {"lanes": 8}),
    ("equal", {"lanes": 3, "block_rows": 512, "group_shards": 4, "window_blocks": 5, "seed": 0}),
    ("unequal", {"lanes": 1, "block_rows": 64}),
    ("unequal", {"lanes": 3, "block_rows": 100, "group_shards": 5, "window_blocks": 7}),
    ("unequal", {"lanes": 8, "block_rows": 7, "seed": 2**64 - 1}),
    ("unequal", {"lanes": 64, "block_rows": 32, "group_shards": 1}),
    ("unequal", {"mode": "none", "lanes": 8, "block_rows": 64}),
    ("many", {"lanes": 8}),
    ("huge", {"lanes": 8, "seed": 123_456_789}),
    ("one", {"mode": "full", "lanes": 3}),
    ("equal", {"mode": "full", "lanes": 8, "block_rows": 256}),
    ("unequal", {"mode": "full", "lanes": 3, "affinity": "lane", "window_blocks": 7}),
    ("huge", {"mode": "full", "lanes": 64, "seed": 2**64 - 1}),
    ("equal", {"lanes": 3, "affinity": "lane"}),
    ("unequal", {"lanes": 8, "block_rows": 64, "affinity": "lane", "group_shards": 3}),
    ("unequal", {"lanes": 3, "block_rows": 64, "keep": {"step": 7919, "modulus": 10, "below": 3}}),
    ("unequal", {"mode": "none", "lanes": 3, "keep": {"step": 1, "modulus": 5000, "below": 700}}),
]
# (orders by index in ORDERS, of equally many lanes; weights; changes of them)
MIXTURES: list[tuple[list[int], list[float], dict[int, list[float]]]] = [
    ([2], [1], {}),
    ([1, 4, 6], [0.7, 0.2, 0.1], {}),
    ([3, 7, 17], [41, 63, 7], {}),
    ([1, 4, 6], [0.7, 0.3, 0], {1001: [2, 1, 1], 2000: [0, 3, 4], 10**9 + 500: [1, 1, 2]}),
]
EPOCHS = (0, 1, 5)
SAMPLE = 10_000  # positions read at the start, the middle and the end of a long lane


def digest(numbers: Iterator[np.ndarray]) -> str:
    """Return the SHA-256 of the numbers as little-endian int64."""
    state = hashlib.sha256()
    for part in numbers:
        state.update(part.astype("<i8").tobytes())
    return state.hexdigest()


@cache
def order_of(shards: str, parameters: str) -> Order:
    """Return the order of a record; parameters as JSON, rows to keep as a formula."""
    spec = SHARDS[shards]
    rows = spec["base"] + np.arange(spec["count"], dtype=np.int64) * spec["step"] % spec["modulus"]
    arguments = json.loads(parameters)
    if keep := arguments.pop("keep", None):
        arguments["keep"] = np.arange(rows.sum()) * keep["step"] % keep["modulus"] < keep["below"]
    return Order(rows, **arguments)


def mixture_of(orders: list[int], weights: list[float], changes: dict[int, list[float]]) -> Mixture:
    """Return the mixture of a record."""
    named = [ORDERS[order] for order in orders]
    made = [order_of(shards, json.dumps(parameters)) for shards, parameters in named]
    return Mixture(made, weights, changes)


def draws_of(mixture: Mixture) -> Iterator[np.ndarray]:
    """Yield the draws of each lane in turn, at the start and far out."""
    for lane in range(mixture.lanes):
        for start in (0, 10**9):
            draws = mixture.rows(lane, start, start + 3000)
            yield from (draws.corpora, draws.epochs, draws.rows)


def rows_of(order: Order, epoch: int) -> Iterator[np.ndarray]:
    """Yield the rows of each lane in turn; of a long lane the start, the middle and the end."""
    for lane in range(order.lanes):
        most = order.lane_rows(epoch, lane)
        if most <= 200_000:
            yield order.rows(epoch, lane, 0, most)
        else:
            for start in (0, most // 2, most - SAMPLE):
                yield order.rows(epoch, lane, start, start + SAMPLE)


def shards_of(order: Order, epoch: int) -> Iterator[np.ndarray]:
    """Yield the shards of all lanes, then of the last alone; nothing where they are too many for a test."""
    if len(order) < 2_000_000_000:
        yield order.shards(epoch, range(order.lanes))
        yield order.shards(epoch, order.lanes - 1)


def records() -> Iterator[dict[str, object]]:
    """Yield every record as this version computes it."""
    for shards, parameters in ORDERS:
        for epoch in EPOCHS:
            order = order_of(shards, json.dumps(parameters))
            yield {
                "shards": shards,
                "parameters": parameters,
                "epoch": epoch,
                "rows": digest(rows_of(order, epoch)),
                "needed": digest(shards_of(order, epoch)),
            }


def mixture_records() -> Iterator[dict[str, object]]:
    """Yield every record of a mixture as this version computes it."""
    for orders, weights, changes in MIXTURES:
        yield {
            "orders": orders,
            "weights": weights,
            **({"changes": list(map(list, changes.items()))} if changes else {}),
            "draws": digest(draws_of(mixture_of(orders, weights, changes))),
        }


def recorded() -> list[dict[str, object]]:
    """Return the records on file."""
    content: list[dict[str, object]] = json.loads(GOLDEN.read_text())["records"]
    return content


@pytest.mark.parametrize("record", recorded() if GOLDEN.exists() else [])
def test_order_equals_its_golden_digest(record: dict[str, object]) -> None:
    order = order_of(str(record["shards"]), json.dumps(record["parameters"]))
    epoch = int(str(record["epoch"]))
    assert digest(rows_of(order, epoch)) == record["rows"]
    assert digest(shards_of(order, epoch)) == record["needed"]


def test_mixtures_equal_their_golden_digests() -> None:
    assert json.loads(GOLDEN.read_text())["mixtures"] == list(mixture_records())


def test_golden_file_covers_every_case_named_here() -> None:
    content = json.loads(GOLDEN.read_text())
    assert content["shards"] == SHARDS
    named = [(record["shards"], record["parameters"], record["epoch"]) for record in content["records"]]
    assert named == [(*order, epoch) for order in ORDERS for epoch in EPOCHS]


def test_golden_rows_differ_between_epochs_except_in_stored_order() -> None:
    for shards, parameters in ORDERS:
        digests = {
            str(r["rows"]) for r in recorded() if (r["shards"], r["parameters"]) == (shards, parameters)
        }
        assert len(digests) == (1 if parameters.get("mode") == "none" else len(EPOCHS))


if __name__ == "__main__":
    known = json.loads(GOLDEN.read_text())
    known["records"] += list(records())[len(known["records"]) :]
    mixtures = known.setdefault("mixtures", [])
    mixtures += list(mixture_records())[len(mixtures) :]
    GOLDEN.write_text(json.dumps(known, indent=1) + "\n")
