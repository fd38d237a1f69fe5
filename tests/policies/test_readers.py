import numpy as np
import pytest

from policies import Order, replay
from policies.regime.readers import Reader, Requests, merge, sample


def test_reader_of_an_order_asks_for_its_lanes_shards_epoch_by_epoch() -> None:
    order = Order([40] * 12, block_rows=10, lanes=4)
    reader = Reader.of(order, range(100, 112), rank=1, world_size=2, epochs=3, corpus="text", speed=2.5)
    expected = [order.shards(epoch, range(2, 4)).tolist() for epoch in range(3)]
    assert [epoch.tolist() for epoch in reader.epochs] == expected
    assert reader.shards.tolist() == [shard for epoch in expected for shard in epoch]
    assert reader.nbytes.tolist() == [100 + shard for epoch in expected for shard in epoch]
    assert (reader.corpus, reader.speed) == ("text", 2.5)


@pytest.mark.parametrize(
    ("epochs", "affinity", "repeats"),
    [
        ([[0, 1, 2], [2, 0, 1]], "global", True),
        ([[0, 1, 2], [2, 0, 3]], "global", False),
        ([[0, 1, 2]], "global", False),
        ([[0, 1, 2]], "lane", True),
        ([[0, 1, 1], [0, 1, 1]], "global", False),
        ([[], []], "global", False),
        ([], "global", False),
        ([[0, 1], []], "global", False),
    ],
)
def test_reader_repeats_where_every_epoch_takes_the_same_shards_once(
    epochs: list[list[int]], affinity: str, repeats: bool
) -> None:
    assert Reader(epochs, 7, affinity=affinity).repeats is repeats


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": [[0.5]]}, "epochs must be a flat sequence of ints, not float64"),
        ({"epochs": [[-1]]}, r"epochs must have shards in \[0, 2\*\*40\), not -1 to -1"),
        ({"epochs": [[1, 1 << 40]]}, r"epochs must have shards in .*, not 1 to 1099511627776"),
        ({"shard_bytes": [5, 5]}, "shard_bytes must be one number or at least 3, one for each shard, not 2"),
        ({"shard_bytes": -1}, "shard_bytes must be at least 0"),
        ({"speed": 0.0}, "speed must be above 0 and finite, not 0.0"),
        ({"speed": float("nan")}, "speed must be above 0 and finite"),
        ({"affinity": "node"}, "affinity must be one of 'global', 'lane', not 'node'"),
        ({"epochs": [[0, 1], [0, 2]], "affinity": "lane"}, "affinity must be 'global', not 'lane', where"),
    ],
)
def test_reader_refuses_what_is_no_reader(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reader(**{"epochs": [[0, 2, 1]], "shard_bytes": 7, **arguments})


def test_merge_goes_by_time_and_then_by_the_sequence_of_readers() -> None:
    slow = Reader([[0, 1], [2]], 3, speed=1)
    fast = Reader([[3, 4, 5, 6]], 5, speed=2)
    merged = merge([slow, fast])
    # Times of slow: 1 2 3; of fast: .5 1 1.5 2.
    assert merged.items.tolist() == [3, 0, 4, 5, 1, 6, 2]
    assert merged.nbytes.tolist() == [5, 3, 5, 5, 3, 5, 3]


def test_merge_shares_the_shards_of_one_corpus_and_no_others() -> None:
    readers = [Reader([[0, 1]], 3, corpus=corpus) for corpus in ("a", "b", "a")]
    assert merge(readers).items.tolist() == [0, 2, 0, 1, 3, 1]


def test_merge_of_nobody_is_nothing() -> None:
    assert len(merge([])) == len(merge([Reader([], 1)])) == 0
    assert merge([]).item_bytes.tolist() == []


def test_requests_number_their_items_and_know_the_most_bytes_of_each() -> None:
    requests = Requests(np.array([2**64 - 1, 5, 2**64 - 1], dtype=np.uint64), [3, 4, 7])
    assert requests.items.tolist() == [1, 0, 1]
    assert requests.item_bytes.tolist() == [4, 7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5], 1), "items must be a flat sequence of ints, not float64"),
        (([[1]], 1), r"items must be a flat sequence of ints, not int64 of shape \(1, 1\)"),
        (([1], [1, 1]), "nbytes must be one number or 1"),
        (([1], -1), "nbytes must be at least 0"),
    ],
)
def test_requests_refuse_what_is_no_trace(arguments: tuple[object, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Requests(*arguments)


def test_sample_of_few_requests_is_all_of_them() -> None:
    requests = Requests([3, 1, 3], [5, 6, 7])
    part = sample(requests, 11, most=3)
    assert part.requests is requests
    assert (part.capacity_bytes, part.expected_bytes) == (11, 18)


def test_sample_takes_all_requests_for_some_items_and_as_much_less_room() -> None:
    random = np.random.default_rng(1)
    ids = np.concatenate([random.permutation(600) for _ in range(10)])
    sizes = random.integers(1, 100, 600)
    part = sample(Requests(ids, sizes[ids]), int(sizes.sum()) // 2, most=1500)
    assert len(part.requests) == 1500
    assert np.bincount(part.requests.items).tolist() == [10] * 150
    assert part.capacity_bytes == pytest.approx(part.requests.item_bytes.sum() / 2, abs=1)
    assert part.expected_bytes == pytest.approx(part.requests.nbytes.sum(), abs=1)


def test_sample_ends_when_it_is_full_and_expects_no_more_than_came_until_then() -> None:
    everything = np.tile(np.arange(100), 10)
    chosen = np.unique(sample(Requests(everything, everything + 1), 50, most=50).requests.nbytes)
    assert chosen.size == 5
    ids = np.concatenate([np.arange(100), np.full(900, chosen[0] - 1)])
    part = sample(Requests(ids, ids + 1), 50, most=50)
    assert part.requests.nbytes.tolist()[5:] == [chosen[0]] * 45
    share = chosen.sum() / (np.arange(100) + 1).sum()
    assert part.expected_bytes == int(share * (ids[:145] + 1).sum())


def test_sample_hits_as_all_requests_do() -> None:
    """Also where a few items are most of what is asked for, and are chosen by luck."""
    ids = np.random.default_rng(2).zipf(1.1, 200_000) % 5000
    part = sample(Requests(ids, 1), 400, most=20_000)
    for name in ("lru", "belady"):
        run = replay(name, part.requests.items, part.requests.nbytes, part.capacity_bytes)
        found = 1 - run.misses / part.expected_bytes
        assert found == pytest.approx(replay(name, ids, 1, 400).hits / 200_000, abs=0.03)


def test_reader_of_one_size_needs_no_number_for_each_shard() -> None:
    assert Reader([[(1 << 40) - 1, 0]], 1 << 40).nbytes.tolist() == [1 << 40] * 2
